"""`t2t-vit benchmark`, with tiny networks that are really measured, and with made-up measurements."""

import csv

import pytest
import torch
from PIL import Image
from torch import nn

import t2t_vit
from t2t_vit.cli import main
from t2t_vit.deploy.export import source_of
from t2t_vit.deploy.formats import write_onnx
from t2t_vit.errors import UserError
from t2t_vit.insight.complexity import describe
from t2t_vit.speed import benchmark as module
from t2t_vit.speed.benchmark import Row, benchmark, contender_groups, print_rows, rows_of
from t2t_vit.speed.config import BenchmarkConfig
from t2t_vit.speed.contenders import Contender
from t2t_vit.speed.turns import Outcome, Round


@pytest.mark.slow
def test_the_whole_command(tmp_path, capfd):
    table, picture = tmp_path / "speed.csv", tmp_path / "speed.png"
    words = "benchmark T2t_vit_7 test_vit --mode train --precision bfloat16 --img-size 32 -b 2 --threads 1 --rounds 3"
    more = "--seconds 0.02 --device cpu --baseline test_vit --csv"
    assert main([*words.split(), *more.split(), str(table), "--plot", str(picture)]) == 0

    printed, progress = capfd.readouterr()
    assert progress == "1 of 1: train, bfloat16, batch size 2, eager\n"
    lines = [line for line in printed.splitlines() if " train " in line]
    assert [line.split()[-1] for line in lines][1] == "1.00"

    with table.open(newline="") as file:
        ours, theirs = rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["t2t_vit_7", "test_vit"]
    for row in rows:
        rate = float(row["images_per_second"])
        assert row["error"] == ""
        assert 0 < float(row["lowest"]) <= rate <= float(row["highest"])
        assert float(row["ms_per_step"]) == pytest.approx(2000 / rate)
        assert float(row["gmacs_per_second"]) == pytest.approx(rate * 3 * describe(row["model"], 32).macs / 1e9)
        assert float(row["ratio"]) == pytest.approx(rate / float(theirs["images_per_second"]))
        assert (row["precision"], row["img_size"], row["rounds"], row["threads"]) == ("bfloat16", "32x32", "3", "1")
        assert (row["torch"], row["t2t_vit"]) == (torch.__version__, t2t_vit.__version__)
        assert row["hardware"]
    # 4.3 million weights, their gradients and two moments, of two bytes; the other has 0.4 million.
    assert float(ours["peak_memory_mb"]) > 34
    assert float(ours["peak_memory_mb"]) > float(theirs["peak_memory_mb"])
    with Image.open(picture) as image:
        assert image.width == 1760


@pytest.mark.slow
def test_an_exported_file_is_measured_beside_a_model(small_checkpoint, tmp_path, capfd):
    pytest.importorskip("onnxruntime")
    write_onnx(source_of(t2t_vit.Predictor(small_checkpoint, device="cpu")), tmp_path)
    more = "--img-size 32 -b 2 --threads 1 --rounds 2 --seconds 0.02 --device cpu --baseline t2t_vit_7 --csv"
    table = tmp_path / "speed.csv"
    assert main(["benchmark", str(tmp_path), "t2t_vit_7", *more.split(), str(table)]) == 0
    with table.open(newline="") as file:
        exported, _ = list(csv.DictReader(file))
    assert exported["model"] == str(tmp_path / "model.onnx")
    assert float(exported["images_per_second"]) > 0
    assert (exported["img_size"], exported["gmacs_per_second"], exported["error"]) == ("32x32", "", "")
    capfd.readouterr()
    assert main(["benchmark", str(tmp_path), "--mode", "train"]) == 2
    assert "An exported network cannot be trained" in capfd.readouterr().err
    assert main(["benchmark", "t2t_vit_7", "--runtime", "openvino"]) == 2
    assert "--runtime has no effect without an exported file" in capfd.readouterr().err


def test_each_setting_is_a_group():
    config = BenchmarkConfig(
        models=("T2t_vit_7", "t2t_vit_7", "resnet18"),
        mode=("train", "infer"),
        precision=("float16", "amp_bfloat16"),
        batch_size=(4, 8, 4),
        compile="both",
        compile_mode="max-autotune",
    )
    groups = list(contender_groups(config))
    assert len(groups) == 2 * 2 * 2 * 2
    assert all([one.name for one in group] == ["t2t_vit_7", "resnet18"] for group in groups)
    settings = {(one.mode, one.precision, one.compile_mode, one.batch_size) for one, _ in groups}
    assert len(settings) == 16
    assert ("infer", "float16", "max-autotune", 8) in settings


def outcome(name, rates, error=""):
    asked = Contender(name, nn.Identity, (3, 32, 48), "infer", "float32", batch_size=4)
    return Outcome(asked, 2 * 10**9, [Round(rate, 10**6) for rate in rates], error)


def test_rows_hold_medians_spread_and_ratio():
    failed = outcome("broken", [], "out of memory")
    outcomes = [outcome("slow", [30.0, 10.0, 20.0]), outcome("fast", [50.0]), failed]
    slow, fast, broken = rows_of(outcomes, baseline="slow", hardware="abacus", threads=3)
    assert (slow.lowest, slow.images_per_second, slow.highest, slow.ms_per_step) == (10.0, 20.0, 30.0, 200.0)
    assert (slow.gmacs_per_second, slow.peak_memory_mb, slow.threads) == (40.0, 1.0, 3)
    assert (slow.ratio, fast.ratio, broken.ratio) == (1.0, 2.5, None)
    assert broken == Row(
        model="broken",
        mode="infer",
        precision="float32",
        compile="no",
        batch_size=4,
        img_size=(32, 48),
        error="out of memory",
        rounds=0,
        channels_last=False,
        hardware="abacus",
        threads=3,
    )
    assert {row.ratio for row in rows_of([outcome("a", [1.0]), failed], baseline="broken", hardware="")} == {None}


def test_the_table_tells_who_failed_and_why(capsys):
    failed = outcome("broken", [], "out of memory")
    print_rows(rows_of([outcome("good", [1234.5]), failed], baseline="good", hardware="abacus", threads=3))
    header, _, good, broken, about = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["Ratio", "Failed"]
    assert " ".join(good.split()) == "good infer float32 no 4 32x48 1,234 1,234 1,234 3.24 2,469 1 1.00"
    assert " ".join(broken.split()) == "broken infer float32 no 4 32x48 out of memory"
    assert about.startswith("abacus, 3 threads, torch ")


def test_what_is_measured_is_kept_when_the_rest_is_stopped(tmp_path, monkeypatch):
    def measure(group, **settings):
        if group[0].batch_size == 2:
            raise KeyboardInterrupt
        return [Outcome(one, 1, [Round(5.0, 1)]) for one in group]

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
        ({"baseline": "t2t_vit_77"}, r"Unknown model 't2t_vit_77'\. Did you mean t2t_vit_7"),
        ({"baseline": "resnet34"}, r"Unknown baseline 'resnet34'\. Did you mean resnet18\? It must be one of"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(changes, told, monkeypatch):
    monkeypatch.setattr(module, "measure", None)
    with pytest.raises(UserError, match=told):
        benchmark(BenchmarkConfig(**{"models": ("t2t_vit_7", "resnet18"), **changes}))
