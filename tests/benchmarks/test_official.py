"""`benchmarks/official.py`, with code in the layout of the official repository whose network is a small one."""

import sys
from pathlib import Path

import pytest
import timm
import torch

import t2t_vit
from t2t_vit.errors import UserError
from t2t_vit.speed.config import BenchmarkConfig
from t2t_vit.speed.turns import measure

# The layout, the imports and the manners of the official code; the network is another.
OFFICIAL_CODE = """
from timm.models.helpers import load_pretrained
from timm.models.layers import DropPath, trunc_normal_
from timm.models.registry import register_model
from torch import nn

class Net(nn.Sequential):
    def __init__(self, img_size):
        print("adopt performer encoder for tokens-to-token")
        super().__init__(nn.Flatten(), nn.Linear(3 * img_size**2, 10), DropPath(0.1))
        trunc_normal_(self[1].weight, std=0.02)

@register_model
def t2t_vit_7(pretrained=False, **kwargs):
    return Net(**kwargs)
"""


@pytest.fixture
def official(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import official

    return official


@pytest.fixture
def folder(tmp_path):
    """A folder with the layout of the official repository."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("from .t2t_vit import *\n")
    (tmp_path / "models" / "t2t_vit.py").write_text(OFFICIAL_CODE)
    return str(tmp_path)


@pytest.mark.slow
def test_the_official_model_competes_in_its_own_process(official, folder, capfd):
    config = BenchmarkConfig(models=("resnet18", "t2t_vit_7"), mode=("train",), precision=("bfloat16",), img_size=(32,))
    ((*_, ours, theirs),) = official.groups_with_official(config, folder)
    assert (ours.name, ours.precision) == ("t2t_vit_7", "bfloat16")
    assert (theirs.name, theirs.precision) == ("official t2t_vit_7", "amp_bfloat16")

    (outcome,) = measure([theirs], device=torch.device("cpu"), rounds=1, seconds=0.01, threads=1)
    assert (outcome.error, len(outcome.rounds), outcome.macs) == ("", 1, 3 * 32 * 32 * 10)
    assert capfd.readouterr() == ("", "")
    # Nothing of it has reached this process.
    assert "models" not in sys.modules
    assert folder not in sys.path
    assert timm.model_entrypoint("t2t_vit_7").__module__ == t2t_vit.t2t_vit_7.__module__


@pytest.mark.parametrize(
    ("asked", "theirs"),
    [("float32", "float32"), ("float16", "amp_float16"), ("amp_bfloat16", "amp_bfloat16")],
)
def test_weights_of_half_precision_are_unknown_to_the_official_code(official, folder, asked, theirs):
    config = BenchmarkConfig(models=("t2t_vit_7",), precision=(asked,))
    ((_, contender),) = official.groups_with_official(config, folder)
    assert contender.precision == theirs


def test_what_is_not_there_is_told(official, folder, tmp_path):
    with pytest.raises(UserError, match=r"holds none of these models: resnet18\."):
        next(official.groups_with_official(BenchmarkConfig(models=("resnet18",)), folder))
    (tmp_path / "models" / "t2t_vit.py").unlink()
    with pytest.raises(UserError, match=r"is no copy of the official repository: expected models/t2t_vit\.py in it"):
        official.official_models(folder)
