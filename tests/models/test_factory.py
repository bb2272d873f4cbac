"""Networks made from names, and from files."""

import pytest
import timm
import torch
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.models.factory import create_model, load_model, settings_of
from t2t_vit.models.t2t_vit import T2TViT
from t2t_vit.models.weights import load_checkpoint

# From names


def test_create_model_passes_arguments_on():
    model = create_model("T2t_vit_7", img_size=(32, 48), in_chans=1, num_classes=4, drop_path_rate=0.1)
    assert (model.img_size, model.in_chans, model.num_classes) == ((32, 48), 1, 4)
    assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)
    with pytest.raises(TypeError, match=r"unknown_argument"):
        create_model("t2t_vit_7", unknown_argument=1)


def test_create_model_makes_networks_of_timm_too():
    assert create_model("test_vit", img_size=64, num_classes=2).pos_embed.shape[1] == 1 + 4 * 4
    assert create_model("test_resnet", img_size=64, num_classes=2).num_classes == 2  # it takes any size


@pytest.mark.parametrize("kind", ["ours", "official", "cifar", "hub", "bare"])
def test_create_model_takes_from_a_file_what_the_caller_leaves_open(tmp_path, caplog, kind, make, logits, write):
    source = make(seed=1, small=kind == "ours", num_classes=5, img_size=64)
    model = create_model("T2t_vit_7", checkpoint=str(write(kind, source, tmp_path / "file")))
    assert torch.equal(logits(model.eval(), 1, 3, 64, 64), logits(source, 1, 3, 64, 64))
    assert caplog.records == []


def test_create_model_warns_of_what_the_caller_changes(tmp_path, caplog, make, write):
    source = make(seed=1, num_classes=5, img_size=64)
    path = write("ours", source, tmp_path / "best.pt")
    model = create_model("t2t_vit_7", checkpoint=path, num_classes=3, img_size=48, in_chans=1)
    assert (model.num_classes, model.img_size, model.in_chans) == (3, (48, 48), 1)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert [line.strip() for line in caplog.text.splitlines()[1:]] == [
        "changed: head: rebuilt for 3 classes, the file has 5",
        "changed: input channels: adapted from 3 to 1",
        "changed: positions: resampled from 4 x 4 to 3 x 3 tokens",
    ]


def test_an_official_cifar_file_brings_its_classes_and_how_its_images_were_prepared(tmp_path, of_shapes):
    state = {**of_shapes("t2t_vit_14").state_dict, "head.weight": torch.zeros(10, 384), "head.bias": torch.zeros(10)}
    torch.save({"net": state, "acc": 98.3}, tmp_path / "cifar10.pth")
    model = create_model("t2t_vit_14", checkpoint=tmp_path / "cifar10.pth")
    assert (model.num_classes, model.pretrained_cfg["tag"]) == (10, "cifar10")
    assert model.pretrained_cfg["crop_pct"] == 1.0


def test_features_of_a_checkpoint(tmp_path, make, write):
    source = make(seed=1)
    path = write("ours", source, tmp_path / "best.pt")
    features = create_model("t2t_vit_7", checkpoint=path, features_only=True, out_indices=[0])
    images = torch.randn(1, 3, 64, 64)
    expected = source.forward_intermediates(images, [0], intermediates_only=True)
    torch.testing.assert_close(features.eval()(images), expected, rtol=0, atol=0)


# From files


@pytest.mark.parametrize(
    ("kind", "is_small"), [("ours", True), ("hub", True), ("hub for transformers", True), ("official", False)]
)
def test_the_network_of_a_file_is_built(tmp_path, kind, is_small, make, logits, write):
    source = make(seed=1, small=is_small)
    model, checkpoint = load_model(write(kind, source, tmp_path / "file"))
    assert isinstance(model, T2TViT)
    assert (model.num_classes, model.img_size) == (5, (64, 64))
    assert torch.equal(logits(model.eval(), 1, 3, 64, 64), logits(source, 1, 3, 64, 64))
    assert (checkpoint.report.changed, checkpoint.report.left) == ([], [])


def test_build_from_our_file_takes_its_word(tmp_path, make, logits, small):
    args = {**small, "num_classes": 2, "img_size": [48, 80], "in_chans": 1}
    source = make(seed=1, **args)
    content = {"format": "t2t_vit", "version": 1, "model": "t2t_vit_7", "model_args": args}
    torch.save({**content, "state_dict": source.state_dict()}, tmp_path / "best.pt")
    model, checkpoint = load_model(tmp_path / "best.pt")
    assert (checkpoint.report.changed, checkpoint.report.left) == ([], [])
    assert torch.equal(logits(model.eval(), 1, 1, 48, 80), logits(source, 1, 1, 48, 80))


def test_build_from_shapes_alone(tmp_path, make, logits, write):
    source = make(seed=1, small=False, num_classes=3, img_size=96, in_chans=1)
    model, checkpoint = load_model(write("bare", source, tmp_path / "a.pth"))
    assert checkpoint.report.changed == []
    assert torch.equal(logits(model.eval(), 1, 1, 96, 96), logits(source, 1, 1, 96, 96))


def test_build_with_overrides(tmp_path, make, write):
    model, checkpoint = load_model(write("ours", make(), tmp_path / "a.pth"), num_classes=7, img_size=96)
    assert isinstance(model, T2TViT)
    assert (model.num_classes, model.img_size) == (7, (96, 96))
    assert len(checkpoint.report.changed) == 2


@pytest.mark.slow
def test_build_says_when_several_fit(tmp_path, of_shapes):
    torch.save(of_shapes("t2t_vit_14").state_dict, tmp_path / "a.pth")
    model, checkpoint = load_model(tmp_path / "a.pth")
    assert model.pretrained_cfg["architecture"] == "t2t_vit_14"
    said = "model: taken for t2t_vit_14, though t2t_vit_14_resnext would fit too; name the model to choose"
    assert checkpoint.report.changed == [said]

    model, checkpoint = load_model(tmp_path / "a.pth", model="T2t_vit_14_resnext")
    assert model.pretrained_cfg["architecture"] == "t2t_vit_14_resnext"
    assert checkpoint.report.changed == []


def test_build_a_network_of_timms_that_we_trained(tmp_path, logits):
    source = timm.create_model("test_resnet", num_classes=3).eval()
    content = {"format": "t2t_vit", "version": 1, "model": "test_resnet", "model_args": {"num_classes": 3}}
    torch.save({**content, "state_dict": source.state_dict()}, tmp_path / "best.pt")
    model, _ = load_model(tmp_path / "best.pt")
    assert torch.equal(logits(model.eval(), 1, 3, 64, 64), logits(source, 1, 3, 64, 64))
    report = load_checkpoint(timm.create_model("test_resnet", num_classes=4), tmp_path / "best.pt")
    assert report.changed == ["head: rebuilt for 4 classes, the file has 3"]


def test_build_from_an_unknown_network(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth fits no network known here, .*: it holds weight, bias\. Name the"):
        load_model(tmp_path / "a.pth")


def test_build_another_model_than_the_files(tmp_path, make, write):
    path = write("ours", make(), tmp_path / "best.pt")
    with pytest.raises(UserError, match="expected a t2t_vit_10, this file is a t2t_vit_7; "):
        load_model(path, model="t2t_vit_10")


def test_the_settings_of_a_checkpoint(tmp_path, make, write):
    bare = write("bare", make(small=False, img_size=96, in_chans=1), tmp_path / "a.pth")
    assert settings_of(bare) == {"model": "t2t_vit_7", "img_size": 96, "in_chans": 1}
    contents = {"format": "t2t_vit", "version": 1, "model": "test_resnet", "model_args": {"num_classes": 2}}
    state = timm.create_model("test_resnet", num_classes=2).state_dict()
    torch.save({**contents, "state_dict": state, "data_config": {"input_size": [3, 32, 48]}}, tmp_path / "b.pt")
    assert settings_of(tmp_path / "b.pt") == {"model": "test_resnet", "img_size": (32, 48)}
