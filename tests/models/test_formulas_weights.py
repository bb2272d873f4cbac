"""The weights that come with the package."""

import pytest
import torch

import t2t_vit
from t2t_vit.cli import main
from t2t_vit.errors import UserError
from t2t_vit.models.checkpoint_formats import read_checkpoint
from t2t_vit.models.names import SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_the_file_says_what_it_is(name):
    read = read_checkpoint(name)
    assert read.model == "t2t_vit_7_local"
    assert read.data_config["input_size"] == [3, 64, 64]
    assert not any(key.startswith("head.") for key in read.state_dict)
    assert all(tensor.isfinite().all() for tensor in read.state_dict.values())


def test_any_size_head_and_channels():
    kwargs = {"num_classes": 7, "img_size": (64, 96), "in_chans": 1}
    network = t2t_vit.create_model("t2t_vit_7_local", checkpoint="formulas", **kwargs)
    assert network(torch.zeros(2, 1, 64, 96)).shape == (2, 7)
    stored = read_checkpoint("formulas").state_dict["blocks.3.mlp.fc1.weight"]
    assert torch.equal(network.blocks[3].mlp.fc1.weight.detach(), stored.float())


def test_its_features_tell_images_apart_that_it_has_not_seen():
    # Signs of eight new classes, which another seed makes: the nearest mean of four images each.
    from t2t_vit.data.formulas import draw

    network = t2t_vit.create_model("t2t_vit_7_local", checkpoint="formulas", num_classes=0).eval()
    untrained = t2t_vit.create_model("t2t_vit_7_local", img_size=64, num_classes=0).eval()
    labels = torch.arange(8).repeat_interleave(8)
    images = draw("strokes", labels, torch.arange(64), side=64, seed=5).float() / 127.5 - 1

    def right(model):
        with torch.inference_mode():
            features = torch.nn.functional.normalize(model(images)).unflatten(0, (8, 8))
        means = torch.nn.functional.normalize(features[:, :4].mean(dim=1))
        return ((features[:, 4:] @ means.T).argmax(dim=2) == torch.arange(8)[:, None]).float().mean()

    assert right(network) > 0.8
    assert right(network) > right(untrained) + 0.2


def test_another_network_is_told():
    with pytest.raises(UserError, match="formulas does not fit: expected a t2t_vit_14, this file is a t2t_vit_7_local"):
        t2t_vit.create_model("t2t_vit_14", checkpoint="formulas")


def test_a_folder_of_that_name_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "formulas").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"give \./formulas for that one"):
        read_checkpoint("formulas")
    with pytest.raises(UserError, match=r"No checkpoint in the folder \./formulas"):
        read_checkpoint("./formulas")


@pytest.mark.parametrize("command", ["predict", "visualize"])
def test_it_classifies_nothing_by_itself(command, picture_folder, capsys):
    picture = next(picture_folder.rglob("*.png"))
    assert main([command, str(picture), "--checkpoint", "formulas"]) == 2
    assert "has no head" in capsys.readouterr().err
