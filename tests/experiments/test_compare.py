"""Models side by side, with a training that only writes what training leaves."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError
from t2t_vit.experiments import compare as module
from t2t_vit.experiments.compare import choose_images, compare, train_config
from t2t_vit.experiments.config import CompareConfig
from t2t_vit.insight.complexity import describe
from t2t_vit.models.preprocessing import data_config_of
from t2t_vit.options import configure
from t2t_vit.training.checkpointer import model_section
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.train import TrainResult

MODELS = ("t2t_vit_7_32px", "t2t_vit_7_no_t2t")


@pytest.fixture
def data(tmp_path):
    """Two classes, dark and light, ten images each."""
    for name, grey in (("dark", 40), ("light", 200)):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (40, 40), (grey + number,) * 3).save(tmp_path / "shades" / name / f"{number}.png")
    return str(tmp_path / "shades")


@pytest.fixture
def trained(monkeypatch):
    """The settings that training was called with; what it leaves says always `light`."""
    configs = []

    def train(config: TrainConfig) -> TrainResult:
        configs.append(config)
        output = Path(config.output)
        output.mkdir(parents=True)
        source = open_source(config.data, seed=config.seed)
        model = timm.create_model(config.model, num_classes=2, img_size=config.img_size, depth=1)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(torch.tensor([0.0, 1.0]))
        model_args = {"num_classes": 2, "img_size": config.img_size, "depth": 1}
        about = model_section(
            config.model, model_args, class_names=source.class_names, data_config=data_config_of(model)
        )
        torch.save({**about, "state_dict": model.state_dict(), "split": source.split}, output / "best.pt")
        best = 50.0 + len(configs)
        metrics = [{"epoch": 0, "step": 5, "val_top1": 10.0, "val_images": 9}]
        metrics.append({"epoch": 1, "step": 10, "val_top1": 20.0, "ema_top1": best, "val_images": 9})
        return TrainResult(output=output, metrics=metrics, best_top1=best, seconds=12.5)

    monkeypatch.setattr(module, "run_training", train)
    return configs


def test_same_settings_for_every_model(data, trained, tmp_path):
    settings = {
        "img_size": 32,
        "epochs": 7,
        "batch_size": 3,
        "seed": 5,
        "workers": 0,
        "recipe": "small",
        "resume": True,
    }
    compare(CompareConfig(data=data, models=MODELS, output=str(tmp_path / "out"), **settings))
    first, second = trained
    assert (first.model, second.model) == MODELS
    assert {name: getattr(first, name) for name in settings} == settings
    assert (first.output, second.output) == tuple(str(tmp_path / "out" / name) for name in MODELS)
    assert dataclasses.replace(second, model=first.model, output=first.output) == first


def test_two_models_are_trained_unless_others_are_named():
    assert configure(CompareConfig, data="digits").models == ("t2t_vit_7", "t2t_vit_7_no_t2t")
    assert configure(CompareConfig, data="digits", models=("t2t_vit_10",)).models == ("t2t_vit_10",)
    assert configure(CompareConfig).models == ()


def test_what_is_left_open_is_the_recipes():
    ours = train_config(CompareConfig(data="digits"), model="t2t_vit_7_64px", output=Path("runs/x"))
    expected = TrainConfig(**TrainConfig.defaults_for({"data": "digits"}), data="digits")
    assert ours == dataclasses.replace(expected, model="t2t_vit_7_64px", output=str(Path("runs/x")))


def test_table_and_picture(data, trained, tmp_path, capsys, monkeypatch):
    drawn = {}

    def draw(curves, samples, path, **texts):
        drawn.update(curves=curves, samples=samples, **texts)

    monkeypatch.setattr(module, "comparison_figure", draw)
    compare(CompareConfig(data=data, models=MODELS, output=str(tmp_path / "out"), img_size=32, workers=0))

    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], float(row["top1_percent"]), float(row["seconds"])) for row in rows] == [
        (MODELS[0], 51.0, 12.5), (MODELS[1], 52.0, 12.5),
    ]  # fmt: skip
    assert [row["img_size"] for row in rows] == ["32x32", "32x32"]
    # One block, two classes and 32 pixels, as in the checkpoint, not the seven of the model's name.
    assert int(rows[0]["parameters"]) < describe(MODELS[0]).parameters / 3
    assert int(rows[0]["macs"]) > int(rows[1]["macs"]) > 0

    assert drawn["curves"] == {MODELS[0]: {5: 10.0, 10: 51.0}, MODELS[1]: {5: 10.0, 10: 52.0}}
    assert drawn["sheet_title"] == "t2t_vit_7_no_t2t on validation images"  # the best of the two
    assert drawn["sheet_note"] == "4 of 4 images; 2 mistakes, all of them framed here"
    assert [(sample.predicted, sample.label) for sample in drawn["samples"]] == [
        ("light", "dark"), ("light", "dark"), ("light", "light"), ("light", "light"),
    ]  # fmt: skip
    assert [np.asarray(sample.image).mean() < 100 for sample in drawn["samples"]] == [True, True, False, False]

    printed = capsys.readouterr().out
    assert [line.split()[:3] for line in printed.splitlines() if "32px " in line] == [["t2t_vit_7_32px", "51.00", "32"]]
    assert str(tmp_path / "out" / "comparison.csv") in printed
    assert str(tmp_path / "out" / "comparison.png") in printed


def test_the_picture_is_drawn(data, trained, tmp_path):
    compare(CompareConfig(data=data, models=MODELS[1:], output=str(tmp_path / "out"), img_size=32, workers=0))
    with Image.open(tmp_path / "out" / "comparison.png") as image:
        assert image.format == "PNG"


def test_an_unknown_model_is_told_before_any_is_trained(data, trained, tmp_path):
    with pytest.raises(UserError, match=r"Unknown model 't2t_vit_13'"):
        compare(CompareConfig(data=data, models=("t2t_vit_7", "t2t_vit_13"), output=str(tmp_path / "out")))
    assert trained == []


def test_few_mistakes_are_all_shown():
    labels = [0] * 100
    predicted = dict.fromkeys(range(100), 0) | {31: 1, 97: 2}
    shown = choose_images(predicted, labels, count=12)
    assert len(set(shown)) == 12
    assert {31, 97} <= set(shown)
    assert shown == sorted(shown)
    assert min(shown) == 0


def test_many_mistakes_are_shown_in_proportion():
    labels = [0] * 100
    predicted = {index: int(index < 50) for index in range(100)}
    shown = choose_images(predicted, labels, count=12)
    assert sum(predicted[index] for index in shown) == 6
    assert choose_images({3: 0, 1: 0}, labels, count=12) == [1, 3]


def test_the_folder_of_a_data_set_reaches_training_and_predictions(data, trained, tmp_path, monkeypatch):
    seen, open_evaluation = [], module.open_evaluation

    def spy(data, *, data_dir, trained_split):
        seen.append(data_dir)
        return open_evaluation(data, trained_split=trained_split)

    monkeypatch.setattr(module, "open_evaluation", spy)
    output = str(tmp_path / "out")
    compare(CompareConfig(data=data, data_dir="archives", models=MODELS[:1], img_size=32, output=output, workers=0))
    assert [config.data_dir for config in trained] == seen == ["archives"]


def test_a_signal_ends_the_comparison_and_not_one_run(data, tmp_path, monkeypatch):
    names = []

    def stopped(config: TrainConfig) -> TrainResult:
        names.append(config.model)
        return TrainResult(output=tmp_path, metrics=[], best_top1=0.0, seconds=1.0, interrupted=143)

    monkeypatch.setattr(module, "run_training", stopped)
    assert compare(CompareConfig(data=data, models=MODELS, output=str(tmp_path / "out"))) == 143
    assert names == [MODELS[0]]
