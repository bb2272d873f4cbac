"""`t2t-vit benchmark`, with tiny networks that are really measured, and with made-up measurements."""

import csv
import sys
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image

import t2t_vit
from t2t_vit.cli import main
from t2t_vit.errors import UserError
from t2t_vit.insight.complexity import describe
from t2t_vit.speed import benchmark as module
from t2t_vit.speed.benchmark import Row, benchmark, checked, contender_groups, print_rows, rows_of
from t2t_vit.speed.config import BenchmarkConfig
from t2t_vit.speed.contenders import Contender, Facts, Outcome, Round

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


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder with the layout of the official repository."""
    folder = tmp_path_factory.mktemp("official")
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").write_text("from .t2t_vit import *\n")
    (folder / "models" / "t2t_vit.py").write_text(OFFICIAL_CODE)
    return str(folder)


@pytest.mark.slow
def test_the_whole_command(official, tmp_path, capfd):
    table, picture = tmp_path / "speed.csv", tmp_path / "speed.png"
    words = "benchmark T2t_vit_7 --mode train --precision bfloat16 --img-size 32 -b 2 --threads 1 --rounds 3"
    files = ["--official", official, "--csv", str(table), "--plot", str(picture)]
    baseline = ["--seconds", "0.02", "--device", "cpu", "--baseline", "official t2t_vit_7"]
    assert main([*words.split(), *files, *baseline]) == 0

    printed, progress = capfd.readouterr()
    assert "adopt performer" not in printed + progress
    assert progress == "1 of 1: train, bfloat16, batch size 2, eager\n"
    lines = [line for line in printed.splitlines() if " train " in line]
    assert [line.split()[-1] for line in lines][1] == "1.00"

    with table.open(newline="") as file:
        ours, theirs = csv.DictReader(file)
    assert (ours["model"], ours["precision"]) == ("t2t_vit_7", "bfloat16")
    assert (theirs["model"], theirs["precision"]) == ("official t2t_vit_7", "amp_bfloat16")
    for row in (ours, theirs):
        rate = float(row["images_per_second"])
        assert row["error"] == ""
        assert 0 < float(row["lowest"]) <= rate <= float(row["highest"])
        assert float(row["ms_per_step"]) == pytest.approx(2000 / rate)
        assert float(row["gmacs_per_second"]) == pytest.approx(rate * 3 * describe("t2t_vit_7", 32).macs / 1e9)
        assert float(row["ratio"]) == pytest.approx(rate / float(theirs["images_per_second"]))
        assert (row["img_size"], row["rounds"], row["threads"]) == ("32x32", "3", "1")
        assert (row["torch"], row["t2t_vit"]) == (torch.__version__, t2t_vit.__version__)
        assert row["hardware"]
    # 4.3 million weights, their gradients and two moments, of two bytes; the other has 31 thousand.
    assert float(ours["peak_memory_mb"]) > 34
    assert float(ours["peak_memory_mb"]) > float(theirs["peak_memory_mb"])
    with Image.open(picture) as image:
        assert image.width == 1760

    # Nothing of it has reached this process.
    assert "models" not in sys.modules
    assert official not in sys.path
    assert timm.model_entrypoint("t2t_vit_7").__module__ == "t2t_vit.models.variants"


def test_each_setting_is_a_group(official):
    config = BenchmarkConfig(
        models=("t2t_vit_7", "resnet18"),
        mode=("train", "infer"),
        precision=("float16", "amp_bfloat16"),
        batch_size=(4, 8, 4),
        compile="both",
        compile_mode="max-autotune",
        official=official,
    )
    groups = list(contender_groups(config))
    assert len(groups) == 2 * 2 * 2 * 2
    assert all([one.name for one in group] == ["t2t_vit_7", "resnet18", "official t2t_vit_7"] for group in groups)
    settings = {(one.mode, one.precision, one.compile_mode, one.batch_size) for one, *_ in groups}
    assert len(settings) == 16
    assert ("infer", "float16", "max-autotune", 8) in settings
    assert {(ours.precision, theirs.precision) for ours, _, theirs in groups} == {
        ("float16", "amp_float16"),
        ("amp_bfloat16", "amp_bfloat16"),
    }


def outcome(name, rates, **changes):
    asked = Contender(name, dict, "infer", "float32", batch_size=4)
    rounds = [Round(rate, 10**6) for rate in rates]
    return replace(Outcome(asked, Facts((32, 48), 2 * 10**9, 3), rounds), **changes)


def test_rows_hold_medians_spread_and_ratio():
    failed = outcome("broken", [], facts=None, error="out of memory")
    slow, fast, broken = rows_of(
        [outcome("slow", [30.0, 10.0, 20.0]), outcome("fast", [50.0]), failed], baseline="slow", hardware="abacus"
    )
    assert (slow.lowest, slow.images_per_second, slow.highest, slow.ms_per_step) == (10.0, 20.0, 30.0, 200.0)
    assert (slow.gmacs_per_second, slow.peak_memory_mb, slow.threads) == (40.0, 1.0, 3)
    assert (slow.ratio, fast.ratio, broken.ratio) == (1.0, 2.5, None)
    assert broken == Row(
        model="broken",
        mode="infer",
        precision="float32",
        compile="no",
        batch_size=4,
        img_size=None,
        error="out of memory",
        rounds=0,
        channels_last=False,
        hardware="abacus",
        threads=None,
    )
    assert {row.ratio for row in rows_of([outcome("a", [1.0]), failed], baseline="broken", hardware="")} == {None}


def test_the_table_tells_who_failed_and_why(capsys):
    failed = outcome("broken", [], facts=None, error="out of memory")
    print_rows(rows_of([outcome("good", [1234.5]), failed], baseline="good", hardware="abacus"))
    header, _, good, broken, about = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["Ratio", "Failed"]
    assert " ".join(good.split()) == "good infer float32 no 4 32x48 1,234 1,234 1,234 3.24 2,469 1 1.00"
    assert " ".join(broken.split()) == "broken infer float32 no 4 out of memory"
    assert about.startswith("abacus, 3 threads, torch ")


def test_what_is_measured_is_kept_when_the_rest_is_stopped(tmp_path, monkeypatch):
    def measure(group, **settings):
        if group[0].batch_size == 2:
            raise KeyboardInterrupt
        return [Outcome(one, Facts((32, 32), 1, 1), [Round(5.0, 1)]) for one in group]

    monkeypatch.setattr(module, "measure", measure)
    path = tmp_path / "speed.csv"
    with pytest.raises(KeyboardInterrupt):
        benchmark(BenchmarkConfig(models=("resnet18",), batch_size=(1, 2), device="cpu", csv=str(path)))
    with path.open(newline="") as file:
        assert [row["batch_size"] for row in csv.DictReader(file)] == ["1"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": ("t2t_vit_13",)}, r"Unknown model 't2t_vit_13'\. Did you mean t2t_vit_"),
        ({"baseline": "t2t_vit_77"}, r"Unknown baseline 't2t_vit_77'\. Did you mean t2t_vit_7\? It must be one of"),
        ({"official": "missing"}, r"missing is no copy of the official repository"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(changes, told, monkeypatch):
    monkeypatch.setattr(module, "measure", None)
    with pytest.raises(UserError, match=told):
        benchmark(BenchmarkConfig(**{"models": ("t2t_vit_7", "resnet18"), **changes}))


def test_official_models_that_are_not_there(official):
    with pytest.raises(UserError, match=r"holds none of these models: resnet18\."):
        checked(BenchmarkConfig(models=("resnet18",), official=official))
    assert checked(BenchmarkConfig(models=("T2t_vit_7", "t2t_vit_7"), official=official)).models == ("t2t_vit_7",)
