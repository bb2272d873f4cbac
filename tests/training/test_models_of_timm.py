"""Any network of timm: trained at the size asked for, and its checkpoint used everywhere."""

import pytest
import timm
import torch

from t2t_vit import Predictor, evaluate
from t2t_vit.errors import UserError
from t2t_vit.options import configure
from t2t_vit.training.build import build_network
from t2t_vit.training.config import TransferConfig
from t2t_vit.training.train import run_training

QUICK = ("test_convnext", "test_vit")
OTHERS = (
    "test_resnet", "test_efficientnet", "test_nfnet", "test_byobnet", "test_mambaout", "test_coatnet",
    "cait_xxs24_224", "convnext_atto", "deit_tiny_distilled_patch16_224", "densenet121", "levit_128s", "mixer_s32_224",
    "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "regnetx_002", "swin_tiny_patch4_window7_224",
)  # fmt: skip


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_checkpoint_of_any_network_is_used_everywhere(name, tiny_config, picture_folder, tmp_path):
    changes = {"model": name, "img_size": 64, "epochs": 1, "batch_size": 12, "model_ema": False, "lr": 0.01}
    run = run_training(tiny_config(**changes))
    assert (run.output / "report.html").exists()
    best = str(run.output / "best.pt")
    contents = torch.load(best, weights_only=True)
    assert contents["data_config"]["input_size"] == [3, 64, 64]

    assert evaluate(str(picture_folder), checkpoint=best, device="cpu", workers=0).top1 == run.best_top1
    prediction = Predictor(best, device="cpu")(picture_folder / "val" / "lying" / "0.png")
    assert {label for label, _ in prediction.labels} == {"lying", "upright"}

    settings = {"data": str(picture_folder), "checkpoint": best, "device": "cpu", "backbone_lr_scale": 0.01}
    config = configure(TransferConfig, **settings)
    assert (config.model, config.img_size) == (name, 64)
    for class_names, changed in [(("lying", "upright"), 0), (("a", "b", "c"), 1)]:
        model, _, report = build_network(config, name, class_names=class_names)
        assert len(report.changed) == changed, str(report)
        assert model.num_classes == len(class_names)
    own = {key: value for key, value in model.state_dict().items() if value.shape == contents["state_dict"][key].shape}
    assert len(own) >= len(contents["state_dict"]) - 4  # weight and bias of two heads
    assert sum(torch.equal(value, contents["state_dict"][key]) for key, value in own.items()) >= len(own) - 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_evaluation_takes_another_size_where_the_network_does(name, tiny_config, picture_folder, tmp_path):
    best = run_training(tiny_config(model=name, img_size=64, epochs=1)).output / "best.pt"
    if name == "test_resnet":
        predictor = Predictor(best, device="cpu", img_size=(32, 48))
        assert predictor.data_config["input_size"] == (3, 32, 48)
    assert Predictor(best, device="cpu").data_config["input_size"] == (3, 64, 64)


def test_a_network_without_branches_trains_unless_they_are_to_be_dropped(tiny_config):
    _, args, _ = build_network(tiny_config(model="ghostnet_050"), "ghostnet_050", class_names=("a", "b"))
    assert args == {"num_classes": 2}
    with pytest.raises(UserError, match=r"--drop-path has no effect on ghostnet_050: leave it out"):
        build_network(tiny_config(model="ghostnet_050", drop_path=0.2), "ghostnet_050", class_names=("a", "b"))


@pytest.mark.parametrize("name", ["test_vit", "efficientformer_l1"])
def test_a_size_that_a_network_cannot_take_is_told(name, tiny_config):
    expected = f"{name} cannot take images of 40 x 64 pixels: .*. Choose another --img-size"
    with pytest.raises(UserError, match=expected):
        build_network(tiny_config(model=name, img_size=(40, 64)), name, class_names=("a", "b"))


def test_several_heads_are_trained_alone(tiny_config):
    name = "deit_tiny_distilled_patch16_224"
    model, *_ = build_network(tiny_config(model=name, freeze_backbone=True), name, class_names=("a", "b"))
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_weights_of_timm_start_a_run(tiny_config, monkeypatch):
    released = timm.create_model("test_resnet")
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *args, **kwargs: released.state_dict())
    config = tiny_config(model="test_resnet", pretrained=True)
    model, _, report = build_network(config, "test_resnet", class_names=("a", "b"))
    assert torch.equal(model.conv1[0].weight, released.conv1[0].weight)
    assert str(report).endswith(
        "of the weights of timm test_resnet.r160_in1k\n  changed: head: rebuilt for 2 classes, the file has 1000"
    )


def test_weights_of_timm_that_cannot_be_had_are_told(tiny_config, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    config = tiny_config(model="test_resnet", pretrained=True)
    with pytest.raises(UserError, match=r"The released weights of test_resnet could not be had: no network"):
        build_network(config, "test_resnet", class_names=("a", "b"))
