"""Accuracy against labels: what is trained, what a comparison leaves, and that a stopped one goes on."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from PIL import Image

from t2t_vit.cli import main
from t2t_vit.errors import UserError
from t2t_vit.experiments import grid
from t2t_vit.experiments.compare import compare
from t2t_vit.experiments.config import TWINS, CompareConfig
from t2t_vit.experiments.grid import Cell, cells_of, summarize, time_left_s
from t2t_vit.flags import parse
from t2t_vit.inference.evaluate import Accuracy
from t2t_vit.models.names import VARIANTS
from t2t_vit.models.preprocessing import data_config_of
from t2t_vit.options import configure
from t2t_vit.runtime.files import write_text
from t2t_vit.training import hindsight, setup
from t2t_vit.training.checkpointer import model_section
from t2t_vit.training.learner import Learner
from t2t_vit.training.train import TrainResult

MODELS = ("t2t_vit_7", "t2t_vit_7_no_t2t")


def settings(*words):
    return parse(CompareConfig, words, prog="t2t-vit compare")


def rows_of(folder):
    with (folder / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def asked(picture_folder, folder):
    """The words for a comparison of eight short runs."""
    return (
        str(picture_folder), "--models", ",".join(MODELS), "--labels", "4,8", "--seeds", "2", "--steps", "3",
        "--img-size", "32", "-b", "8", "-j", "0", "--device", "cpu", "--output", str(folder),
    )  # fmt: skip


@pytest.fixture
def trained(monkeypatch):
    """The settings that training was called with; what it leaves is no network, and an accuracy by labels and seed."""
    configs = []

    def train(config, display):
        configs.append(config)
        output = Path(config.output)
        write_text(output / "last.pt", "")
        display.say("a line of the run's own")
        accuracy = Accuracy(90 + config.seed % 7 + config.labels / 100, 100, 1, 8)
        return TrainResult(output, [{"step": config.steps}], 50.0, 1.5, test=accuracy)

    monkeypatch.setattr(grid, "run_training", train)
    monkeypatch.setattr(grid, "Predictor", lambda *_, **__: SimpleNamespace(network=None))
    monkeypatch.setattr(grid, "count_parameters", lambda network: (7, 9))
    return configs


# Settings


@pytest.mark.parametrize("words", [["a,b", "50,all"], ["a", "b", "50", "all"]])
def test_commas_and_spaces_part_models_and_labels(words):
    half = len(words) // 2
    config = settings("digits", "--models", *words[:half], "--labels", *words[half:])
    assert (config.models, config.labels) == (("a", "b"), ("50", "all"))


def test_numbers_are_labels_too_in_yaml_and_python(tmp_path):
    (tmp_path / "run.yaml").write_text("data: digits\nlabels: [50, all]\n")
    assert settings("-c", str(tmp_path / "run.yaml")).labels == ("50", "all")
    assert configure(CompareConfig, data="digits", labels=(50, 100)).labels == ("50", "100")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits --labels 50,some,0", "--labels must be numbers of images, or all, got some 0."),
        ("digits --labels 50 --epochs 3", "--epochs 3 would give few labels fewer steps: give --steps, which are the "),
        ("digits --steps 5 --epochs 3", "--epochs has no effect beside --steps 5."),
        (
            "--resume --output nowhere",
            "nowhere holds no comparison to go on with: give its folder to --output, or DATA.",
        ),
        ("--seeds 3", "--seeds has no effect without DATA."),
        ("digits --seeds 0", "--seeds must be at least 1, got 0."),
    ],
)
def test_settings_that_make_no_comparison_are_refused(words, message):
    with pytest.raises(UserError) as told:
        settings(*words.split())
    assert str(told.value).startswith(message)


def test_every_cell_comes_once_before_any_comes_with_another_seed():
    cells = cells_of(CompareConfig(data="digits", models=("a", "b"), labels=("50", "100"), seeds=2, seed=7))
    assert [(cell.model, cell.labels) for cell in cells[:4]] == [("a", 50), ("b", 50), ("a", 100), ("b", 100)]
    assert [cell.seed for cell in cells] == [7] * 4 + [8] * 4


def test_all_labels_are_as_many_as_there_are_and_come_once(picture_folder, folder, trained):
    compare(
        CompareConfig(
            data=str(picture_folder), models=TWINS, labels=("all", "24", "8"), output=str(folder), device="cpu"
        )
    )
    assert [config.labels for config in trained] == [8, 8, 24, 24]
    trained.clear()
    compare(CompareConfig(data=str(picture_folder), models=TWINS, seeds=1, output=str(folder / "seeds"), device="cpu"))
    assert [(config.labels, config.seed) for config in trained] == [(24, 42)] * 2


def test_all_runs_have_the_same_budget(asked, folder, trained):
    compare(settings(*asked))
    assert len(trained) == 8
    assert {(config.steps, config.eval_every, config.batch_size, config.img_size) for config in trained} == {
        (3, 1, 8, 32)
    }
    assert {Path(config.output).relative_to(folder).as_posix() for config in trained} == {
        f"{model}/labels-{labels}/seed-{seed}" for model in MODELS for labels in (4, 8) for seed in (42, 43)
    }


def test_sizes_that_are_left_open_are_chosen_once_for_all(picture_folder, folder, trained):
    compare(CompareConfig(data=str(picture_folder), models=("resnet18", *MODELS), seeds=1, output=str(folder)))
    assert {(config.steps, config.batch_size, config.img_size) for config in trained} == {(600, 64, 64)}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A function that writes weights of a network of two classes, and gives their path; by default it is not named."""
    monkeypatch.chdir(tmp_path)

    def write(model, *, is_named=False, **model_args):
        network = timm.create_model(model, num_classes=2, **model_args)
        about = {}
        if is_named:
            arguments = {"num_classes": 2, **model_args}
            data = data_config_of(network)
            about = model_section(model, arguments, class_names=["circles", "squares"], data_config=data)
        torch.save({**about, "state_dict": network.state_dict()}, "weights.pt")
        return "weights.pt"

    return write


def test_weights_are_for_the_model_that_they_are_of(picture_folder, folder, trained, capsys):
    words = (str(picture_folder), "--seeds", "1", "--checkpoint", "formulas", "--output", str(folder), "--models")
    for models in (MODELS, MODELS[:1]):
        with pytest.raises(UserError, match="--checkpoint formulas is of t2t_vit_7_local, and compared are t2t_vit_7"):
            compare(settings(*words, *models))
    assert trained == []
    assert not folder.exists()
    compare(settings(*words, "resnet18,t2t_vit_7_local"))
    starts = {config.model: (config.checkpoint, config.img_size) for config in trained}
    assert starts == {"resnet18": (None, 64), "t2t_vit_7_local": ("formulas", 64)}
    assert capsys.readouterr().out.count("t2t_vit_7_local starts from formulas") == 2


def test_from_formulas_images_have_the_size_that_train_chooses(folder, trained, tmp_path):
    for number in range(10):
        for name in ("dark", "light"):
            (tmp_path / "large" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (120, 100), (20 * number,) * 3).save(tmp_path / "large" / name / f"{number}.png")
    words = (str(tmp_path / "large"), "--seeds", "1", "--models", "t2t_vit_7_local", "--device", "cpu")
    compare(settings(*words, "--checkpoint", "formulas", "--output", str(folder)))
    assert [config.img_size for config in trained] == [128]


@pytest.mark.parametrize("models", [("resnet18", "t2t_vit_7"), ("t2t_vit_7", "resnet18"), ("t2t_vit_7",)])
def test_the_size_of_weights_is_for_all_models(models, weights, picture_folder, folder, trained):
    words = (str(picture_folder), "--seeds", "1", "--output", str(folder), "--models", *models)
    compare(settings(*words, "--checkpoint", weights("t2t_vit_7", is_named=True, img_size=48)))
    assert {config.img_size for config in trained} == {48}
    assert [Path(config.checkpoint) for config in trained if config.checkpoint] == [Path("weights.pt").absolute()]
    trained.clear()
    file = folder / "comparison.yaml"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("checkpoint")), encoding="utf-8")
    with pytest.raises(UserError, match=r"checkpoint was none, now .*weights\.pt"):  # as older ones, which have none
        compare(settings(*words, "--checkpoint", "weights.pt", "--img-size", "48", "--resume"))
    assert trained == []


def test_weights_that_fit_several_models_are_refused(weights, picture_folder, folder, trained):
    words = (str(picture_folder), "--seeds", "1", "--output", str(folder), "--checkpoint", weights("t2t_vit_14"))
    with pytest.raises(UserError, match="fits t2t_vit_14 and t2t_vit_14_resnext: compare one of them at a time"):
        compare(settings(*words, "--models", "t2t_vit_14,t2t_vit_14_resnext"))
    compare(settings(*words, "--models", "resnet18,t2t_vit_14_resnext"))
    assert [config.checkpoint is None for config in trained] == [True, False]


def test_other_channels_than_those_of_the_weights_are_refused(weights, picture_folder, folder, trained):
    words = (str(picture_folder), "--seeds", "1", "--output", str(folder), "--models", "resnet18,t2t_vit_7")
    checkpoint = weights("t2t_vit_7", is_named=True, in_chans=1)
    with pytest.raises(UserError, match="The weights take other channels than the other models do: give --in-chans"):
        compare(settings(*words, "--checkpoint", checkpoint))
    compare(settings(*words, "--checkpoint", checkpoint, "--in-chans", "1"))
    assert {config.in_chans for config in trained} == {1}


@pytest.mark.parametrize(
    ("labels", "message"), [("25", "at most the 24 training"), ("8,3", "at least 4 for 2 classes")]
)
def test_budgets_that_cannot_be_are_told_before_the_first_run(labels, message, picture_folder, folder, trained):
    with pytest.raises(UserError, match=message):
        compare(settings(str(picture_folder), "--labels", labels, "--output", str(folder)))
    assert trained == []
    assert not folder.exists()


# What is left


def test_tables_picture_and_logs(asked, folder, trained, capsys, monkeypatch):
    drawn = {}
    monkeypatch.setattr(grid, "labels_figure", lambda accuracies, path, **texts: drawn.update(texts, lines=accuracies))
    compare(settings(*asked))
    first, *others = rows_of(folder)
    assert first == {
        "model": "t2t_vit_7", "labels": "4", "seed": "42", "steps": "3", "top1": "90.04", "val_top1": "50.0",
        "num_test": "8", "seconds": "1.5", "parameters": "9",
    }  # fmt: skip
    assert len(others) == 7
    with (folder / "comparison_summary.csv").open(newline="") as file:
        means = list(csv.DictReader(file))
    assert [(row["model"], row["labels"], row["seeds"]) for row in means] == [
        (model, labels, "2") for labels in ("4", "8") for model in MODELS
    ]
    assert float(means[0]["top1_mean"]) == pytest.approx(90.54)
    assert float(means[0]["top1_std"]) == pytest.approx(0.5**0.5)
    assert drawn["lines"] == {model: {4: [90.04, 91.04], 8: [90.08, 91.08]} for model in MODELS}
    assert "standard deviation of 2 seeds, 3 steps each; 8 images by which nothing was chosen" in drawn["note"]

    printed = capsys.readouterr().out
    assert "run 3 of 8: t2t_vit_7, 8 labels, seed 42: 90.08 %, in 0:0" in printed
    assert "a line of the run's own" not in printed
    assert "t2t_vit_7_no_t2t 90.54 ± 0.71 90.58 ± 0.71" in printed
    run = folder / "t2t_vit_7/labels-4/seed-42"
    assert (run / "log.txt").read_text() == "a line of the run's own\n"
    assert sorted(path.name for path in run.iterdir()) == ["log.txt", "result.json"]  # last.pt is large


def test_a_single_seed_has_no_spread():
    row = {"model": "a", "labels": 50, "top1": 90.0}
    assert summarize([row]) == [{"model": "a", "labels": 50, "seeds": 1, "top1_mean": 90.0, "top1_std": None}]


def test_the_time_left_follows_each_model():
    fast, slow = ([Cell(model, 50, seed) for seed in range(3)] for model in ("fast", "slow"))
    assert time_left_s([*fast, *slow], {fast[0]: 2.0, slow[0]: 10.0, slow[1]: 20.0}) == 2 * 2 + 15
    assert time_left_s([*fast, *slow], {fast[0]: 2.0}) == 2 * 5
    assert time_left_s(fast, dict.fromkeys(fast, 1.0)) == 0


# Going on


def test_a_comparison_goes_on_with_what_is_left_and_grows(asked, folder, trained, capsys):
    compare(settings(*asked))
    trained.clear()
    shutil.rmtree(folder / "t2t_vit_7_no_t2t/labels-8/seed-43")
    before = rows_of(folder)
    compare(settings("--resume", "--output", str(folder)))
    assert [(config.model, config.labels, config.seed) for config in trained] == [("t2t_vit_7_no_t2t", 8, 43)]
    assert "7 of 8 runs are finished already" in capsys.readouterr().out
    assert rows_of(folder) == before
    trained.clear()
    compare(settings("--resume", "--output", str(folder), "--seeds", "3", "--labels", "4,8,all"))
    new = [(config.labels, config.seed) for config in trained if config.model == "t2t_vit_7"]
    assert new == [(24, 42), (24, 43), (4, 44), (8, 44), (24, 44)]
    trained.clear()
    compare(settings("--resume", "--output", str(folder), "--models", ",".join([*MODELS, "resnet18"])))
    assert {config.model for config in trained} == {"resnet18"}
    assert yaml.safe_load((folder / "comparison.yaml").read_text())["models"] == [*MODELS, "resnet18"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--steps", "4"], "steps was 3, now 4"),
        (["--seed", "3"], "seed was 42, now 3"),
        (["--seeds", "1"], "seeds was 2, now 1"),
        (["--labels", "4"], "labels was 4 8, now 4"),
        (["--models", "t2t_vit_7"], "models was t2t_vit_7 t2t_vit_7_no_t2t, now t2t_vit_7"),
        (["--img-size", "48", "-b", "4"], "batch_size was 8, now 4; img_size was 32, now 48"),
    ],
)
def test_other_settings_are_refused_in_one_line(change, told, asked, folder, trained):
    compare(settings(*asked))
    with pytest.raises(UserError) as error:
        compare(settings(*asked, *change, "--resume"))
    assert str(error.value) == (
        f"The comparison in {folder} cannot go on under other settings: {told}. Leave them as they were (models, "
        "labels and seeds may be added), or start another one with another --output."
    )
    assert len(trained) == 8


def test_other_data_are_refused(asked, folder, trained, picture_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(picture_folder, data)
    compare(settings(str(data), *asked[1:]))
    (data / "val/lying/3.png").unlink()
    with pytest.raises(UserError, match="the data has other images or classes"):
        compare(settings("--resume", "--output", str(folder)))


def test_a_folder_that_is_taken_is_refused(asked, folder, trained):
    compare(settings(*asked))
    with pytest.raises(UserError, match=r"holds a comparison: continue it with --resume, or choose another --output"):
        compare(settings(*asked))
    (folder / "comparison.yaml").unlink()
    with pytest.raises(UserError, match=r"holds a comparison without --labels and --seeds: choose another --output"):
        compare(settings(*asked))


def test_a_mistake_inside_a_run_names_the_run(asked, monkeypatch):
    def fail(config, display):
        raise UserError("The disk is full.")

    monkeypatch.setattr(grid, "run_training", fail)
    with pytest.raises(UserError, match=r"^t2t_vit_7, 4 labels, seed 42: The disk is full\.$"):
        compare(settings(*asked))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_between_runs_stops_with_what_is_finished(number, code, asked, folder, trained, monkeypatch, capsys):
    train = grid.run_training

    def stop(config, display):
        if len(trained) == 3:
            os.kill(os.getpid(), number)
        return train(config, display)

    monkeypatch.setattr(grid, "run_training", stop)
    before = signal.getsignal(number)
    assert main(["compare", *asked]) == code
    assert signal.getsignal(number) is before
    printed = capsys.readouterr().out
    assert printed.endswith(f"Stopped after 3 of 8 runs. To go on: t2t-vit compare --resume --output {folder}\n")
    assert len(rows_of(folder)) == 3


@pytest.mark.slow
def test_a_comparison_that_was_killed_ends_as_one_that_never_was(asked, folder, tmp_path, monkeypatch, capsys):
    """Stopped by a signal in the middle of a run, which saves; then killed in another, which cannot."""
    for name in MODELS:
        for setting, value in {"embed_dim": 32, "depth": 4, "token_dim": 16}.items():
            monkeypatch.setitem(VARIANTS[name].model_args, setting, value)
    monkeypatch.setattr(setup, "NUM_REHEARSED", 2)
    monkeypatch.setattr(hindsight, "write_report", lambda *args, **kwargs: None)
    whole = tmp_path / "whole"
    assert main(["compare", *asked, "--output", str(whole)]) == 0
    learn, steps = Learner.learn, [0]

    class KilledError(BaseException):
        pass

    def die(self, *args):
        steps[0] += 1
        if steps[0] == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        if steps[0] == 11:
            raise KilledError
        return learn(self, *args)

    monkeypatch.setattr(Learner, "learn", die)
    assert main(["compare", *asked]) == 143
    assert [row["labels"] for row in rows_of(folder)] == ["4"]
    assert "Stopped after 1 of 8 runs." in capsys.readouterr().out
    with pytest.raises(KilledError):
        main(["compare", "--resume", "--output", str(folder), "-j", "0"])
    assert 1 < len(rows_of(folder)) < 8
    assert main(["compare", "--resume", "--output", str(folder), "-j", "0"]) == 0

    def results(path):
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows_of(path)]

    assert results(folder) == results(whole)
    assert (folder / "comparison_summary.csv").read_bytes() == (whole / "comparison_summary.csv").read_bytes()
    assert (folder / "comparison.png").read_bytes() == (whole / "comparison.png").read_bytes()
    for row in results(whole):
        run = whole / row["model"] / f"labels-{row['labels']}" / f"seed-{row['seed']}"
        split = json.loads((run / "split.json").read_text())["labels"]
        assert (split["count"], split["num_test"]) == (int(row["labels"]), int(row["num_test"]))
        assert (run / "best.pt").exists()
