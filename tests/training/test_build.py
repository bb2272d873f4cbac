import io
import itertools

import pytest
import timm
import torch

from t2t_vit.errors import UserError
from t2t_vit.models import checkpoint_formats, names
from t2t_vit.options import configure
from t2t_vit.runtime.machine import find_machine
from t2t_vit.training.build import build_mixup, build_network, build_optimizer, build_schedule, build_task
from t2t_vit.training.checkpointer import model_section
from t2t_vit.training.config import TrainConfig, TransferConfig
from t2t_vit.training.loop import fit
from t2t_vit.training.recipes import RECIPES
from t2t_vit.training.settings import refuse_unavailable
from t2t_vit.training.setup import setup
from t2t_vit.training.train import run_training

CLASSES = ("lying", "upright")


def network(config):
    return build_network(config, config.model, class_names=CLASSES)[0]


def groups_of(optimizer):
    return [{id(parameter) for parameter in group["params"]} for group in optimizer.param_groups]


@pytest.mark.parametrize(
    "changes",
    [{}, {"backbone_lr_scale": 0.01}, {"layer_decay": 0.7}, {"freeze_backbone": True}, {"opt": "sgd", "momentum": 0.9}],
)
def test_every_trained_tensor_is_in_exactly_one_group(changes, tiny_config):
    model = network(tiny_config(**changes))
    groups = groups_of(build_optimizer(tiny_config(**changes), model))
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert set().union(*groups) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_transfer_groups_are_the_head_and_the_rest(tiny_config):
    recipe = {name: RECIPES["transfer"].values[name] for name in ("opt", "momentum", "lr", "min_lr", "weight_decay")}
    config = tiny_config(**recipe, backbone_lr_scale=0.01)
    model = network(config)
    optimizer = build_optimizer(config, model)
    schedule = build_schedule(config, optimizer, num_steps=8, steps_per_epoch=4)
    head, rest = optimizer.param_groups
    assert {id(parameter) for parameter in head["params"]} == {id(model.head.weight), id(model.head.bias)}
    assert id(model.cls_token) in {id(parameter) for parameter in rest["params"]}
    assert (head["lr"], rest["lr"]) == (0.05, pytest.approx(5e-4))
    assert (head["weight_decay"], rest["weight_decay"], head["momentum"]) == (5e-4, 5e-4, 0.9)
    assert not head["nesterov"]
    schedule.step_update(8)
    assert (head["lr"], rest["lr"]) == (2e-4, pytest.approx(2e-6))


def test_weight_decay_spares_biases_norms_and_the_class_token(tiny_config):
    model = network(tiny_config())
    groups = build_optimizer(tiny_config(), model).param_groups
    spared = {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in spared}
    assert {"cls_token", "norm.weight", "blocks.0.norm1.bias", "head.bias"} <= names
    assert "blocks.0.attn.qkv.weight" not in names


def test_layer_decay_lowers_the_rate_towards_the_stem(tiny_config):
    config = tiny_config(layer_decay=0.5)
    model = network(config)
    scales = {
        id(p): group["lr_scale"] for group in build_optimizer(config, model).param_groups for p in group["params"]
    }
    assert scales[id(model.head.weight)] == 1.0
    first, *_, last = (scales[id(block.mlp.fc1.weight)] for block in model.blocks)
    assert first == pytest.approx(last * 0.5 ** (len(model.blocks) - 1))
    assert scales[id(model.cls_token)] == pytest.approx(first * 0.5)


def test_a_frozen_backbone_does_not_move(tiny_config):
    config = tiny_config(freeze_backbone=True, epochs=1, lr=0.1, model_ema=False)
    torch.manual_seed(config.seed)  # as the run does before it builds the network
    before = network(config).state_dict()
    state = torch.load(run_training(config).output / "last.pt", weights_only=True)["state_dict"]
    moved = {key for key in state if not torch.equal(state[key], before[key])}
    assert moved == {"head.weight", "head.bias"}


def test_the_schedule_warms_up_follows_the_cosine_and_cools_down(tiny_config):
    config = tiny_config(epochs=10, warmup_epochs=2, cooldown_epochs=2, lr=1.0, min_lr=0.1, warmup_lr=0.0)
    optimizer = build_optimizer(config, network(config))
    schedule = build_schedule(config, optimizer, num_steps=40, steps_per_epoch=4)
    rates = []
    for step in range(40):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:8] == pytest.approx([i / 8 for i in range(8)])
    assert rates[16] == pytest.approx(0.55)
    assert rates[32:] == pytest.approx([0.1] * 8)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[8:]))


def test_a_checkpoint_of_another_class_count_starts_the_run(tiny_config, tmp_path, capsys):
    torch.manual_seed(1)
    donor = timm.create_model("t2t_vit_7", img_size=32, num_classes=7)
    torch.save(donor.state_dict(), tmp_path / "donor.pth")
    config = tiny_config(checkpoint=str(tmp_path / "donor.pth"), epochs=1, lr=1e-9, min_lr=0.0, model_ema=False)
    state = torch.load(run_training(config).output / "last.pt", weights_only=True)["state_dict"]
    torch.testing.assert_close(state["blocks.3.mlp.fc1.weight"], donor.state_dict()["blocks.3.mlp.fc1.weight"])
    assert "head: rebuilt for 2 classes, the file has 7" in capsys.readouterr().out


@pytest.mark.slow
def test_a_student_follows_its_teacher(tiny_config, tmp_path):
    """With nothing but the teacher's part in the loss, labels do not matter."""
    torch.manual_seed(0)
    teacher = timm.create_model("t2t_vit_7", img_size=32, num_classes=2)
    with torch.no_grad():
        teacher.head.weight.zero_()
        teacher.head.bias.copy_(torch.tensor([0.0, 3.0]))
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    settings = {"teacher": "t2t_vit_7", "teacher_checkpoint": str(tmp_path / "teacher.pth"), "distill_alpha": 1.0}
    result = run_training(tiny_config(**settings, epochs=6, lr=1e-2, model_ema=False))
    assert result.metrics[-1]["val_top1"] == 50.0  # always the second class
    assert result.metrics[-1]["train_loss"] < 0.1 * result.metrics[0]["train_loss"]


def test_a_teacher_of_other_classes_is_refused(tiny_config, tmp_path):
    torch.save(timm.create_model("t2t_vit_7", img_size=32, num_classes=5).state_dict(), tmp_path / "teacher.pth")
    config = tiny_config(teacher="t2t_vit_7", teacher_checkpoint=str(tmp_path / "teacher.pth"))
    with pytest.raises(UserError, match=r"teacher t2t_vit_7 tells 5 classes apart, the data has 2"):
        build_task(config, network(config), find_machine("cpu"), CLASSES)


def write_ours(path, class_names, **model_args):
    """A checkpoint of our format."""
    model_args = {"num_classes": len(class_names), "img_size": [32, 32], **model_args}
    model = timm.create_model("t2t_vit_7", **model_args)
    section = model_section("t2t_vit_7", model_args, class_names=class_names, data_config={})
    torch.save({**section, "state_dict": model.state_dict()}, path)
    return model


def test_a_teacher_whose_classes_have_other_names_is_refused(tiny_config, tmp_path):
    config = tiny_config(teacher="t2t_vit_7", teacher_checkpoint=str(tmp_path / "teacher.pt"))
    write_ours(tmp_path / "teacher.pt", ("flat", "upright"))
    with pytest.raises(
        UserError, match=r"not those of the teacher t2t_vit_7: 'lying' for 'flat': give --teacher-check"
    ):
        build_task(config, network(config), find_machine("cpu"), CLASSES)
    write_ours(tmp_path / "teacher.pt", CLASSES)
    build_task(config, network(config), find_machine("cpu"), CLASSES)


def test_a_head_starts_anew_where_the_classes_have_other_names(tiny_config, tmp_path):
    config = tiny_config(checkpoint=str(tmp_path / "start.pt"))
    start = write_ours(tmp_path / "start.pt", ("flat", "upright"))
    model, _, report = build_network(config, config.model, class_names=CLASSES)
    assert not torch.equal(model.head.weight, start.head.weight)
    assert torch.equal(model.norm.weight, start.norm.weight)
    assert report.changed == ["head: rebuilt, since the file's classes have other names: 'lying' for 'flat'"]
    assert report.loaded == len(start.state_dict()) - 2
    start = write_ours(tmp_path / "start.pt", CLASSES)
    assert torch.equal(network(config).head.weight, start.head.weight)


def test_accumulation_changes_nothing_but_rounding(tiny_config, tmp_path):
    # no dropout; and no Adam, which makes the sign of a gradient of rounding errors count
    settings = {
        "model": "t2t_vit_7_no_t2t",
        "epochs": 1,
        "model_ema": False,
        "opt": "sgd",
        "lr": 0.01,
        "drop_path": 0.0,
    }
    states = [
        torch.load(
            run_training(tiny_config(**settings, grad_accum_steps=steps, output=str(tmp_path / str(steps)))).output
            / "last.pt",
            weights_only=True,
        )["state_dict"]
        for steps in (1, 4)
    ]
    whole, parts = (torch.cat([value.flatten() for value in state.values()]) for state in states)
    assert (whole - parts).norm() < 1e-6 * whole.norm()


def test_channels_last_is_the_layout_of_weights_and_of_training_images(tiny_config):
    run = setup(tiny_config(model="test_resnet", channels_last=True, epochs=1))
    layouts = []
    run.model.conv1[0].register_forward_pre_hook(
        lambda conv, inputs: layouts.append([x.stride(1) for x in (conv.weight, *inputs) if conv.training])
    )
    fit(run)
    assert [strides for strides in layouts if strides] == [[1, 1]] * 3


def test_checkpointed_blocks_run_twice_and_learn_the_same(tiny_config, tmp_path):
    states, calls = [], []
    for checkpointed in (True, False):
        run = setup(tiny_config(grad_checkpointing=checkpointed, output=str(tmp_path / str(checkpointed)), epochs=1))
        passes = []
        run.model.blocks[0].register_forward_pre_hook(lambda block, _, passes=passes: passes.append(block.training))
        fit(run)
        states.append(run.model.state_dict())
        calls.append(sum(passes))
    assert calls == [6, 3]
    assert [key for key, value in states[1].items() if not torch.equal(value, states[0][key])] == []


def test_mixup_only_where_it_is_wanted(tiny_config):
    assert build_mixup(tiny_config(), num_classes=2) is None
    assert build_mixup(tiny_config(mixup=0.8), num_classes=2) is not None


def test_a_teacher_of_another_image_size_or_without_weights_is_refused(tiny_config, tmp_path):
    write_ours(tmp_path / "teacher.pt", CLASSES, img_size=[48, 32])
    config = tiny_config(teacher="t2t_vit_7", teacher_checkpoint=str(tmp_path / "teacher.pt"))
    expected = "takes images of 48 x 32 pixels, the student of 32 x 32: give --img-size 48 32, or another teacher"
    with pytest.raises(UserError, match=expected):
        build_task(config, network(config), find_machine("cpu"), CLASSES)
    config = tiny_config(teacher="t2t_vit_7_no_t2t")
    with pytest.raises(UserError, match=r"t2t_vit_7_no_t2t comes without weights: .* Give them with --teacher-check"):
        build_task(config, network(config), find_machine("cpu"), CLASSES)


@pytest.mark.parametrize(("opt", "fused"), [("adamw", True), ("momentum", True), ("lamb", None)])
def test_an_optimizer_is_fused_where_it_can_be(opt, fused, tiny_config):
    config = tiny_config(opt=opt)
    assert build_optimizer(config, network(config)).defaults.get("fused") is fused


# Where a run starts


@pytest.mark.parametrize("cls", [TransferConfig, TrainConfig])
def test_model_and_size_are_the_checkpoint_s(cls, tmp_path):
    path = tmp_path / "start.pt"
    write_ours(path, CLASSES, img_size=[48, 32])
    settings = {"data": "pets", "checkpoint": str(path)}
    config = configure(cls, **settings)
    assert (config.model, config.img_size) == ("t2t_vit_7", (48, 32))
    assert config.run_directory == "runs/pets-t2t_vit_7"
    assert configure(cls, **{**settings, "data": "digits"}).img_size == (48, 32)
    assert configure(cls, **settings, img_size=64).img_size == 64
    config = configure(cls, **settings, recipe="finetune-384")
    assert (config.model, config.img_size) == ("t2t_vit_7", 384)
    imagenet = configure(cls, **settings, recipe="imagenet")
    assert imagenet.lr == configure(TrainConfig, data="x", recipe="imagenet", model="t2t_vit_7").lr
    write_ours(path, CLASSES, in_chans=4)
    config = configure(cls, **settings)
    assert (config.in_chans, config.aa, config.color_jitter) == (4, None, None)
    torch.save(torch.load(path)["state_dict"], path)  # whose shapes tell it
    config = configure(cls, data="pets", checkpoint=str(path), model="T2T-ViT-7")
    assert (config.model, config.img_size, config.in_chans) == ("T2T-ViT-7", 32, 4)


@pytest.fixture
def released(site, monkeypatch):
    """The released weights of t2t_vit_7, on a server of this machine."""
    torch.manual_seed(5)
    model = timm.create_model("t2t_vit_7")
    content = io.BytesIO()
    torch.save({"state_dict_ema": model.state_dict()}, content)
    site.files["/71.7_T2T_ViT_7.pth.tar"] = content.getvalue()
    monkeypatch.setattr(names, "RELEASES", f"{site.url}/")
    monkeypatch.setattr(checkpoint_formats, "RELEASES", f"{site.url}/")
    return model


@pytest.mark.parametrize("given", [{"model": "t2t_vit_7", "pretrained": True}, {"model": "t2t_vit_7.in1k"}])
@pytest.mark.parametrize("cls", [TransferConfig, TrainConfig])
def test_training_starts_from_released_weights(cls, given, released, site, capfd):
    config = configure(cls, data="pets", img_size=32, **given)
    assert config.pretrained
    model, _, report = build_network(config, config.model, class_names=CLASSES)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, released.blocks[3].mlp.fc1.weight)
    assert report.changed[0] == "head: rebuilt for 2 classes, the file has 1000"
    told = capfd.readouterr().err
    assert told.startswith(f"Downloading {site.url}/71.7_T2T_ViT_7.pth.tar")
    assert f"100%|██████████| {len(site.files['/71.7_T2T_ViT_7.pth.tar']) / 2**10:.0f}k/" in told
    build_network(config, config.model, class_names=CLASSES, goes_on=True)
    assert len(site.requests) == 1


def test_what_released_weights_there_are_is_told():
    with pytest.raises(UserError, match=r"No weights of t2t_vit_14_se were released. There are some of t2t_vit_7, t2t"):
        refuse_unavailable(configure(TrainConfig, data="digits", model="t2t_vit_14_se", pretrained=True))
    with pytest.raises(UserError, match=r"timm has no weights of densenet264d\. It has some of densenet20?1"):
        refuse_unavailable(configure(TrainConfig, data="digits", model="densenet264d", pretrained=True))
    with pytest.raises(UserError, match=r"pretrained has no effect beside --checkpoint a\.pt"):
        configure(TrainConfig, data="digits", model="t2t_vit_14", checkpoint="a.pt", pretrained=True)
    assert not configure(TrainConfig, data="digits", checkpoint="a.pt", model="t2t_vit_14.in1k").pretrained


def test_a_transfer_starts_from_weights():
    with pytest.raises(UserError, match=r"Missing --checkpoint: weights to start from. Or give --pretrained for the "):
        configure(TransferConfig, data="digits")
