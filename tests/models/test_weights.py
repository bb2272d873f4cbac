"""How checkpoints go into networks: exactly, resized, adapted, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.models.t2t_vit import T2TViT
from t2t_vit.models.variants import VARIANTS
from t2t_vit.models.weights import (
    Checkpoint,
    build_model,
    identify,
    load_checkpoint,
    load_for_transfer_learning,
    read_checkpoint,
)

SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 5, "img_size": 64}


def make(name: str = "t2t_vit_7", seed: int = 0, *, small: bool = True, **kwargs: Any) -> T2TViT:
    """A network whose every tensor, positions apart, is random: equal seeds make equal ones.

    Args:
        small: of one narrow block, rather than as the table has it.
    """
    model = timm.create_model(name, **{**(SMALL if small else {"num_classes": 5, "img_size": 64}), **kwargs}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key != "pos_embed":
                tensor.normal_(std=0.2, generator=generator)
    return model


def logits(model: nn.Module, *shape: int) -> Tensor:
    with torch.no_grad():
        return model(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def bare(network: nn.Module, **said: Any) -> Checkpoint:
    return Checkpoint("weights.pth", "bare state dict", dict(network.state_dict()), **said)


def of_shapes(name: str) -> Checkpoint:
    """A checkpoint with the shapes of a network, a single number in memory for each tensor."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in timm.create_model(name).state_dict().items()}
    return Checkpoint("weights.pth", "bare state dict", {key: torch.zeros(()).expand(s) for key, s in shapes.items()})


# Formats, end to end


def write_official(model: T2TViT, path: Path) -> Path:
    noise = {f"module.{key}": torch.randn_like(tensor) for key, tensor in model.state_dict().items()}
    average = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"arch": "T2t_vit_7", "state_dict": noise, "state_dict_ema": average}, path)
    return path


def write_cifar(model: T2TViT, path: Path) -> Path:
    torch.save({"net": {f"module.{key}": tensor for key, tensor in model.state_dict().items()}, "acc": 98.0}, path)
    return path


def write_ours(model: T2TViT, path: Path) -> Path:
    content = {"format": "t2t_vit", "version": 1, "model": "t2t_vit_7", "model_args": SMALL}
    torch.save({**content, "state_dict": model.state_dict()}, path)
    return path


def write_bare(model: T2TViT, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def write_safetensors(model: T2TViT, path: Path) -> Path:
    save_file(model.state_dict(), path)
    return path


def write_hub(model: T2TViT, path: Path) -> Path:
    save_for_hf(model, path, safe_serialization=True)
    return path


def write_hub_for_transformers(model: T2TViT, path: Path) -> Path:
    """transformers takes the class count from the top of config.json alone."""
    config = json.loads((write_hub(model, path) / "config.json").read_text())
    del config["model_args"]["num_classes"]
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("write", [write_official, write_cifar, write_ours, write_bare, write_safetensors, write_hub])
def test_every_format_comes_back_exactly(tmp_path: Path, write: Callable[[T2TViT, Path], Path]) -> None:
    source, target = make(seed=1), make(seed=2)
    report = load_checkpoint(target, write(source, tmp_path / "file"))
    assert torch.equal(logits(target, 1, 3, 64, 64), logits(source, 1, 3, 64, 64))
    assert (report.loaded, report.changed, report.left) == (len(source.state_dict()), [], [])


@pytest.mark.parametrize(
    ("write", "small"),
    [(write_ours, True), (write_hub, True), (write_hub_for_transformers, True), (write_official, False)],
)
def test_the_network_of_a_file_is_built(tmp_path: Path, write: Callable[[T2TViT, Path], Path], small: bool) -> None:
    source = make(seed=1, small=small)
    model, checkpoint = build_model(write(source, tmp_path / "file"))
    assert isinstance(model, T2TViT)
    assert (model.num_classes, model.img_size) == (5, (64, 64))
    assert torch.equal(logits(model.eval(), 1, 3, 64, 64), logits(source, 1, 3, 64, 64))
    assert checkpoint.report is not None
    assert (checkpoint.report.changed, checkpoint.report.left) == ([], [])


def test_ema_is_a_choice(tmp_path: Path) -> None:
    path = write_official(make(seed=1), tmp_path / "file")
    average, raw = make(), make()
    assert load_checkpoint(average, path).used_ema
    assert not load_checkpoint(raw, path, use_ema=False).used_ema
    assert torch.equal(average.cls_token, make(seed=1).cls_token)
    assert not torch.equal(raw.cls_token, average.cls_token)


def test_timm_loads_a_released_file(tmp_path: Path) -> None:
    source = make(seed=1, small=False, num_classes=1000)
    path = write_official(source, tmp_path / "71.7_T2T_ViT_7.pth.tar")
    overlay = {"file": str(path), "custom_load": True}
    model = timm.create_model("t2t_vit_7", True, overlay, img_size=64, num_classes=7)
    assert torch.equal(model.cls_token, source.cls_token)
    assert model.head.weight.shape[0] == 7


# What is changed, and said


def test_head_for_other_classes() -> None:
    model = make(num_classes=3)
    own_head = model.head.weight.clone()
    report = load_checkpoint(model, bare(make(seed=1)))
    assert report.changed == ["head: rebuilt for 3 classes, the file has 5"]
    assert torch.equal(model.head.weight, own_head)
    assert report.loaded == len(model.state_dict()) - 2


def test_head_missing_on_either_side() -> None:
    report = load_checkpoint(make(num_classes=0), bare(make()))
    assert (report.changed, report.left) == ([], ["head.weight", "head.bias"])
    report = load_checkpoint(make(), bare(make(num_classes=0)))
    assert report.changed == ["head: rebuilt for 5 classes, the file has no head"]


def test_auxiliary_head_is_left_out() -> None:
    checkpoint = bare(make(seed=1))
    checkpoint.state_dict.update({"aux_head.weight": torch.ones(1000, 32), "aux_head.bias": torch.ones(1000)})
    report = load_checkpoint(make(), checkpoint)
    assert (report.changed, report.left) == ([], ["aux_head.weight", "aux_head.bias"])


def test_positions_for_another_size() -> None:
    """4 x 4 of a square file to 3 x 5, against interpolation written out."""
    source = make(seed=1)
    source.pos_embed.normal_(generator=torch.Generator().manual_seed(3))
    model = make(img_size=(48, 80))
    report = load_checkpoint(model, bare(source))
    assert report.changed == ["positions: resampled from 4 x 4 to 3 x 5 tokens"]
    grid = source.pos_embed[0, 1:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, size=(3, 5), mode="bicubic").reshape(32, 15).T
    torch.testing.assert_close(model.pos_embed[0, 1:], expected)
    assert torch.equal(model.pos_embed[0, 0], source.pos_embed[0, 0])


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        (
            {"model": "t2t_vit_7", "model_args": {**SMALL, "img_size": [32, 128]}},
            ["positions: resampled from 2 x 8 to 4 x 4 tokens"],
        ),
        ({}, []),  # saved bare: these may be this very network's
    ],
)
def test_positions_of_a_rectangle_with_as_many_tokens(said: dict[str, Any], changed: list[str]) -> None:
    assert load_checkpoint(make(), bare(make(img_size=(32, 128)), **said)).changed == changed


def test_positions_of_official_files_are_square() -> None:
    checkpoint = Checkpoint("81.5.pth.tar", "official T2T-ViT checkpoint", dict(make().state_dict()))
    report = load_checkpoint(make(img_size=(32, 128)), checkpoint)
    assert report.changed == ["positions: resampled from 4 x 4 to 2 x 8 tokens"]


def test_bare_rectangle_comes_back_as_it_was() -> None:
    source, model = make(seed=1, img_size=(48, 80)), make(img_size=(48, 80))
    assert load_checkpoint(model, bare(source)).changed == []
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_bare_rectangle_for_another_size_is_refused() -> None:
    message = r"weights\.pth has 15 positions, which make no square grid, .* the model's grid is 4 x 4\. Give the model"
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(), bare(make(img_size=(48, 80))))


def even_channels(model: T2TViT) -> T2TViT:
    """Gives the first norm the same scale and shift in every channel, so that adapting it loses nothing."""
    with torch.no_grad():
        if hasattr(model.tokens_to_token, "attention1"):
            norm = model.tokens_to_token.attention1.norm1
            for tensor in (norm.weight, norm.bias):
                tensor.copy_(tensor.view(model.in_chans, -1)[0].repeat(model.in_chans))
    return model


@pytest.mark.parametrize("tokens", ["performer", "transformer", "convolution", "patch"])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 6)])
def test_grey_images_look_the_same_in_any_number_of_channels(tokens: str, old: int, new: int) -> None:
    source = even_channels(make(seed=1, in_chans=old, tokens=tokens))
    model = make(seed=2, in_chans=new, tokens=tokens)
    report = load_checkpoint(model, bare(source))
    assert report.changed == [f"input channels: adapted from {old} to {new}"]
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(grey.repeat(1, new, 1, 1)), source(grey.repeat(1, old, 1, 1)))


def test_fourth_channel_repeats_the_first() -> None:
    source, model = make(seed=1), make(seed=2, in_chans=4)
    load_checkpoint(model, bare(source))
    given = source.tokens_to_token.attention1.norm1.weight.view(3, 49)
    adapted = model.tokens_to_token.attention1.norm1.weight.view(4, 49)
    torch.testing.assert_close(adapted, given[[0, 1, 2, 0]])
    given = source.tokens_to_token.attention1.kqv.weight.view(192, 3, 49)
    adapted = model.tokens_to_token.attention1.kqv.weight.view(192, 4, 49)
    torch.testing.assert_close(adapted, given[:, [0, 1, 2, 0]] * 3 / 4)


def test_strict_refuses_every_change() -> None:
    checkpoint = bare(make())
    load_checkpoint(make(), checkpoint, strict=True)
    checkpoint.state_dict["aux_head.bias"] = torch.ones(1)
    with pytest.raises(UserError, match=r"strict=True asks for: aux_head\.bias: left out\."):
        load_checkpoint(make(), checkpoint, strict=True)
    message = (
        r"weights\.pth does not fit t2t_vit_7 as it is, which strict=True asks for: "
        r"head: rebuilt for 3 classes, the file has 5, aux_head\.bias: left out\."
    )
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(num_classes=3), checkpoint, strict=True)


def test_report_in_words() -> None:
    checkpoint = bare(make(), used_ema=True)
    loaded = len(checkpoint.state_dict) - 2
    checkpoint.state_dict.update({f"aux_head.{i}": torch.ones(1) for i in range(7)})
    report = load_checkpoint(make(num_classes=3, img_size=96), checkpoint)
    assert str(report).splitlines() == [
        f"Loaded {loaded} tensors of the bare state dict weights.pth (moving average of the weights)",
        "  changed: head: rebuilt for 3 classes, the file has 5",
        "  changed: positions: resampled from 4 x 4 to 6 x 6 tokens",
        "  left out: aux_head.0, aux_head.1, aux_head.2, aux_head.3, aux_head.4 and 2 more",
    ]


# What is refused


def test_another_models_file_is_named() -> None:
    message = (
        r"weights\.pth does not fit: expected a t2t_vit_7, this file is a t2t_vit_19; \d+ tensors do not fit: "
        r"cls_token is \(1, 1, 448\), expected \(1, 1, 256\), "
    )
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(small=False), of_shapes("t2t_vit_19"))


def test_all_candidates_are_named() -> None:
    with pytest.raises(UserError, match="this file is a t2t_vit_14 or t2t_vit_14_resnext;"):
        load_checkpoint(make(), of_shapes("t2t_vit_14"))


def test_a_deeper_models_file_is_refused_though_all_tensors_match() -> None:
    with pytest.raises(UserError, match=r"is a t2t_vit_10; 33 tensors do not fit: blocks\.7\.\S+ has no place"):
        load_checkpoint(make(small=False), of_shapes("t2t_vit_10"))


def test_missing_tensor_is_named() -> None:
    checkpoint = bare(make())
    del checkpoint.state_dict["tokens_to_token.attention1.w"]
    message = (
        "this file is no network known here: it holds cls_token, pos_embed, .* and .* more; "
        r"1 tensors do not fit: tokens_to_token\.attention1\.w is missing\."
    )
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(), checkpoint)


def test_same_model_of_other_dimensions() -> None:
    checkpoint = bare(make(mlp_ratio=1.0), model="t2t_vit_7", model_args={**SMALL, "mlp_ratio": 1.0})
    with pytest.raises(UserError, match="expected a t2t_vit_7, this file is a t2t_vit_7 too, but of other dimensions;"):
        load_checkpoint(make(), checkpoint)


def test_nothing_matches() -> None:
    checkpoint = bare(nn.Sequential(nn.Linear(2, 2)))
    message = "this file is no network known here: it holds 0.weight, 0.bias; nothing in it matches"
    with pytest.raises(UserError, match=message):
        load_checkpoint(make(), checkpoint)


def test_a_refused_file_leaves_the_model_alone() -> None:
    model = make()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError):
        load_checkpoint(model, of_shapes("t2t_vit_10"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_twin_of_equal_shapes_is_loaded_and_told() -> None:
    checkpoint = bare(make("t2t_vit_14_resnext"), model="t2t_vit_14_resnext", model_args=SMALL)
    report = load_checkpoint(make("t2t_vit_14"), checkpoint)
    assert report.changed == ["model: the file is for t2t_vit_14_resnext, which t2t_vit_14 shares all shapes with"]


# Names


@pytest.mark.parametrize("name", ["t2t_vit_7", "t2t_vit_7_64px", "t2t_vit_7_no_t2t"])
def test_identify_whatever_the_input_and_the_classes(name: str) -> None:
    assert identify(of_shapes(name).state_dict) == [name]
    assert identify(make(name, small=False, in_chans=2, img_size=128, num_classes=0).state_dict()) == [name]


def test_identify_tells_every_variant_apart_but_resnext() -> None:
    twins = ["t2t_vit_14", "t2t_vit_14_resnext"]
    assert {name: identify(of_shapes(name).state_dict) for name in VARIANTS} == {
        name: twins if name in twins else [name] for name in VARIANTS
    }


def test_nobodys_random_numbers_are_drawn() -> None:
    """Not even by the networks that are built for their shapes: the performer draws its features on the CPU."""
    checkpoint = bare(make(), model="t2t_vit_7", model_args={**SMALL, "drop_path_rate": 0.1})
    model = make(img_size=96)
    before = torch.get_rng_state()
    load_checkpoint(model, checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


# Transfer


def test_transfer_learning_keeps_the_new_head(tmp_path: Path) -> None:
    path = write_official(make(seed=1), tmp_path / "71.7_T2T_ViT_7.pth.tar")
    model = make(num_classes=10)
    head = model.head.weight.clone()
    report = load_for_transfer_learning(model, path, use_ema=True, strict=False, num_classes=10)
    assert report.changed == ["head: rebuilt for 10 classes, the file has 5"]
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.cls_token, make(seed=1).cls_token)


def test_transfer_learning_checks_the_class_count(tmp_path: Path) -> None:
    message = "num_classes=10, but the model has 5 classes: create it with num_classes=10, or pass num_classes=5 here"
    with pytest.raises(UserError, match=message):
        load_for_transfer_learning(make(), tmp_path / "never_read", num_classes=10)


# Networks from files


def test_build_from_our_file_takes_its_word(tmp_path: Path) -> None:
    args = {**SMALL, "num_classes": 2, "img_size": [48, 80], "in_chans": 1}
    source = make(seed=1, **args)
    content = {"format": "t2t_vit", "version": 1, "model": "t2t_vit_7", "model_args": args}
    torch.save({**content, "state_dict": source.state_dict()}, tmp_path / "best.pt")
    model, checkpoint = build_model(tmp_path / "best.pt")
    assert checkpoint.report is not None
    assert (checkpoint.report.changed, checkpoint.report.left) == ([], [])
    assert torch.equal(logits(model.eval(), 1, 1, 48, 80), logits(source, 1, 1, 48, 80))


def test_build_from_shapes_alone(tmp_path: Path) -> None:
    source = make(seed=1, small=False, num_classes=3, img_size=96, in_chans=1)
    model, checkpoint = build_model(write_bare(source, tmp_path / "a.pth"))
    assert checkpoint.report is not None
    assert checkpoint.report.changed == []
    assert torch.equal(logits(model.eval(), 1, 1, 96, 96), logits(source, 1, 1, 96, 96))


def test_build_with_overrides(tmp_path: Path) -> None:
    model, checkpoint = build_model(write_ours(make(), tmp_path / "a.pth"), num_classes=7, img_size=96)
    assert isinstance(model, T2TViT)
    assert (model.num_classes, model.img_size) == (7, (96, 96))
    assert checkpoint.report is not None
    assert len(checkpoint.report.changed) == 2


def test_build_says_when_several_fit(tmp_path: Path) -> None:
    torch.save(of_shapes("t2t_vit_14").state_dict, tmp_path / "a.pth")
    model, checkpoint = build_model(tmp_path / "a.pth")
    assert model.pretrained_cfg["architecture"] == "t2t_vit_14"
    assert checkpoint.report is not None
    said = "model: taken for t2t_vit_14, though t2t_vit_14_resnext would fit too; name the model to choose"
    assert checkpoint.report.changed == [said]

    model, checkpoint = build_model(tmp_path / "a.pth", model="T2t_vit_14_resnext")
    assert model.pretrained_cfg["architecture"] == "t2t_vit_14_resnext"
    assert checkpoint.report is not None
    assert checkpoint.report.changed == []


def test_build_a_network_of_timms_that_we_trained(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=3).eval()
    content = {"format": "t2t_vit", "version": 1, "model": "test_resnet", "model_args": {"num_classes": 3}}
    torch.save({**content, "state_dict": source.state_dict()}, tmp_path / "best.pt")
    model, _ = build_model(tmp_path / "best.pt")
    assert torch.equal(logits(model.eval(), 1, 3, 64, 64), logits(source, 1, 3, 64, 64))
    report = load_checkpoint(timm.create_model("test_resnet", num_classes=4), tmp_path / "best.pt")
    assert report.changed == ["head: rebuilt for 4 classes, the file has 3"]


def test_build_from_an_unknown_network(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth fits no network known here, .*: it holds weight, bias\. Name the"):
        build_model(tmp_path / "a.pth")


def test_build_another_model_than_the_files(tmp_path: Path) -> None:
    path = write_ours(make(), tmp_path / "best.pt")
    with pytest.raises(UserError, match="expected a t2t_vit_10, this file is a t2t_vit_7; "):
        build_model(path, model="t2t_vit_10")


def test_a_checkpoint_read_once_can_be_loaded_twice(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_bare(make(seed=1), tmp_path / "a.pth"))
    for model in (make(), make(img_size=96)):
        load_checkpoint(model, checkpoint)
        assert torch.equal(model.cls_token, checkpoint.state_dict["cls_token"])
