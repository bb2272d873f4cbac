import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.options import Settings, argument, option, options_of
from t2t_vit.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Train something.

    A second paragraph.
    """

    data: str = argument("where the images are")
    mode: str = option("min", "which value is best", choices=("min", "max"))
    batch_size: int = option(64, "images per step", short="b", heading="Schedule")
    lr: float = option(5e-4, "learning rate, scaled by 100% of the batch")
    clip_grad: float | None = option(1.0, "largest norm of the gradient")
    img_size: int | tuple[int, int] | None = option(None, "side, or height and width, in pixels")
    scale: tuple[float, float] = option((0.1, 1.0), "area of crops", heading="Images")
    betas: tuple[float, ...] = option((0.9, 0.999), "of the optimiser")
    models: tuple[str, ...] = option((), "networks to train", metavar="MODEL")
    amp: bool = option(False, "half precision")
    ema: bool | None = option(None, "average the weights")
    opt: Literal["adamw", "sgd"] = option("adamw", "the optimiser")


def read(*words: str) -> Config:
    return parse(Config, ["digits", *words], prog="t2t-vit train")


def mistake(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(Config, words, prog="t2t-vit train")
    return str(caught.value)


def test_defaults_without_flags():
    assert read() == Config(data="digits")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--batch-size 128", "batch_size", 128),
        ("--batch-size=128", "batch_size", 128),
        ("-b 128", "batch_size", 128),
        ("-b128", "batch_size", 128),
        ("-b 1 -b 2", "batch_size", 2),
        ("--lr 1e-3", "lr", 1e-3),
        ("--lr 1", "lr", 1.0),
        ("--lr -1", "lr", -1.0),
        ("--clip-grad none", "clip_grad", None),
        ("--img-size 64", "img_size", 64),
        ("--img-size 64 96", "img_size", (64, 96)),
        ("--img-size none", "img_size", None),
        ("--betas 0.8", "betas", (0.8,)),
        ("--betas 0.8 0.9 1", "betas", (0.8, 0.9, 1.0)),
        ("--models a b", "models", ("a", "b")),
        ("--models a", "models", ("a",)),
        ("--amp", "amp", True),
        ("--amp --no-amp", "amp", False),
        ("--ema", "ema", True),
        ("--no-ema", "ema", False),
        ("--opt sgd", "opt", "sgd"),
        ("--mode max", "mode", "max"),
        ("-b=128", "batch_size", 128),
        ("--scale 0.2 0.5", "scale", (0.2, 0.5)),
    ],
)
def test_a_flag_becomes_a_typed_field(words: str, name: str, value: Any):
    config = read(*words.split())
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
    assert config == Config(**{"data": "digits", name: value})


@pytest.mark.parametrize(
    "words",
    [
        "--img-size 64 digits",
        "--img-size 64 96 digits",
        "--betas 0.8 digits",
        "digits --amp",
        "--amp digits",
        "-b8 digits",
    ],
)
def test_numbers_of_a_flag_end_where_the_arguments_begin(words: str):
    assert parse(Config, words.split(), prog="t2t-vit train").data == "digits"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Missing DATA: where the images are. See t2t-vit train --help."),
        ("digits more", "Unexpected 'more'. See t2t-vit train --help."),
        ("digits --amp more", "--amp takes no value, got 'more'; it means: half precision."),
        (
            "digits --img-size 1 2 3",
            "--img-size: expected 1 or 2 whole numbers or none, got 3 values: 1 2 3.",
        ),
        ("digits --batch-size 3.5", "--batch-size: expected a whole number, got '3.5'."),
        ("digits --lr fast", "--lr: expected a number, got 'fast'."),
        ("digits --lr nan", "--lr: expected a number, got 'nan'."),
        ("digits --lr none", "--lr: expected a number, got 'none'."),
        ("digits --clip-grad x", "--clip-grad: expected a number or none, got 'x'."),
        ("digits --img-size big", "--img-size: expected 1 or 2 whole numbers or none, got 'big'."),
        ("digits --betas x", "--betas: expected numbers, got 'x'."),
        ("digits --opt sdg", "Unknown value of --opt: 'sdg'. Did you mean sgd?"),
        ("digits --mode x", "Unknown value of --mode: 'x'. Did you mean max?"),
        (
            "digits --img-size 1 2.5",
            "--img-size: expected 1 or 2 whole numbers or none, got 2 values: 1 2.5.",
        ),
        (
            "digits --lr",
            "--lr needs a value: learning rate, scaled by 100% of the batch. See t2t-vit train --help.",
        ),
        ("digits --amp=yes", "--amp takes no value, got 'yes'; it means: half precision."),
        ("digits --lr x -b y", "--lr: expected a number, got 'x'. --batch-size: expected a whole number, got 'y'."),
    ],
)
def test_a_wrong_value_is_told_in_one_line(words: str, message: str):
    assert mistake(*words.split()) == message


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("--learning-rate=0.1", "Unknown flag --learning-rate. Did you mean --lr?"),
        ("--batchsize", "Unknown flag --batchsize. Did you mean --batch-size?"),
        ("--batch_size", "Unknown flag --batch_size. Did you mean --batch-size?"),
        ("--batch", "Unknown flag --batch. Did you mean --batch-size?"),
        ("--half", "Unknown flag --half. Did you mean --amp?"),
        ("--no-lr", "Unknown flag --no-lr. Did you mean --lr?"),
        ("--frobnicate", "Unknown flag --frobnicate. See t2t-vit train --help."),
        ("-x5", "Unknown flag -x5. See t2t-vit train --help."),
    ],
)
def test_an_unknown_flag_names_the_closest(word: str, answer: str):
    assert mistake("digits", word) == answer
    assert mistake("digits", word, "0.1") == answer
    assert mistake(word, "0.1") == answer  # and not the missing argument, which may be the flag's value


def test_flags_are_not_abbreviated():
    assert "Unknown flag --batch-siz. Did you mean --batch-size?" in mistake("digits", "--batch-siz", "1")


def test_a_file_sets_flags_and_the_command_line_wins(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: flowers\nbatch-size: 8\nlr: 1e-3\nimg_size: [64, 96]\namp: yes\nclip_grad: null\nmodels: [a]\n"
    )
    config = parse(Config, ["-c", str(file), "--batch-size", "16"], prog="t2t-vit train")
    assert config == Config(
        data="flowers", batch_size=16, lr=1e-3, img_size=(64, 96), amp=True, clip_grad=None, models=("a",)
    )
    assert parse(Config, ["digits", "--config", str(file)], prog="t2t-vit train").data == "digits"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach_size: 8", "Unknown setting bach_size in FILE. Did you mean batch_size?"),
        ("learning-rate: 8", "Unknown setting learning-rate in FILE. Did you mean lr?"),
        ("zzz: 8", "Unknown setting zzz in FILE. Known: data, mode, batch_size"),
        ("batch_size: 8.5", "batch_size in FILE: expected a whole number, got 8.5."),
        ("batch_size: true", "batch_size in FILE: expected a whole number, got True."),
        ("amp: 1", "amp in FILE: expected true or false, got 1."),
        ("data: 7", "data in FILE: expected a word, got 7."),
        ("batch_size: null", "batch_size in FILE: expected a whole number, got None."),
        ("opt: [adamw, sgd]", "opt in FILE: expected a word, got 2 values: adamw sgd."),
        ("img_size: {a: 1}", "img_size in FILE: expected 1 or 2 whole numbers or none, got {'a': 1}."),
        ("- 1", "FILE must hold lines such as 'batch_size: 64', but holds [1]."),
        ("a: [", "FILE is no YAML file: "),
        ("\x00", "FILE is no YAML file: "),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, message: str):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert mistake("-c", str(file)).startswith(message.replace("FILE", str(file)))


def test_an_empty_file_sets_nothing(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("# all defaults\n")
    assert read("-c", str(tmp_path / "run.yaml")) == Config(data="digits")


def test_a_missing_file_is_told(tmp_path: Path):
    path = tmp_path / "none.yaml"
    assert mistake("digits", "-c", str(path)) == f"Cannot read the settings file {path}: No such file or directory."


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Follow a recipe."""

    recipe: str = option("short", "named defaults")
    epochs: int = option(1, "passes over the data")
    lr: float = option(0.1, "learning rate")

    @classmethod
    def defaults_for(cls, given: dict[str, Any]) -> dict[str, Any]:
        assert "epochs" not in given or isinstance(given["epochs"], int), "values arrive typed"
        return {"epochs": 300, "lr": 0.5} if given.get("recipe") == "long" else {}


def test_a_recipe_fills_what_the_user_left_open(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("lr: 0.2\n")
    assert parse(Recipe, [], prog="p") == Recipe()
    assert parse(Recipe, ["--recipe", "long"], prog="p") == Recipe(recipe="long", epochs=300, lr=0.5)
    words = ["--recipe", "long", "--epochs", "1", "-c", str(tmp_path / "run.yaml")]
    assert parse(Recipe, words, prog="p") == Recipe(recipe="long", epochs=1, lr=0.2)


@dataclass(frozen=True, kw_only=True)
class Predict(Settings):
    """Name what is in images."""

    images: tuple[str, ...] = argument("image files", metavar="IMAGE")
    checkpoint: str = option(..., "weights", metavar="PATH")
    topk: int = option(5, "labels per image")


def test_many_arguments_and_a_required_flag():
    config = parse(Predict, ["a.png", "--checkpoint", "best.pt", "b.png"], prog="p")
    assert config == Predict(images=("a.png", "b.png"), checkpoint="best.pt")
    with pytest.raises(
        UserError, match=r"^Missing IMAGE: image files\. Missing --checkpoint: weights\. See p --help\.$"
    ):
        parse(Predict, [], prog="p")


def test_help_is_grouped_and_shows_defaults(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        parse(Config, ["--help", "--unknown"], prog="t2t-vit train", epilog="Example: t2t-vit train digits")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: t2t-vit train DATA [options]\n\nTrain something.\n\nA second paragraph.\n")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "DATA where the images are" in lines
    assert "-b N, --batch-size N images per step (default: 64)" in lines
    assert "--lr X learning rate, scaled by 100% of the batch (default: 0.0005)" in lines
    assert "--img-size N [N] side, or height and width, in pixels" in lines
    assert "--scale X X area of crops (default: 0.1 1.0)" in lines
    assert "--betas X... of the optimiser (default: 0.9 0.999)" in lines
    assert "--amp, --no-amp half precision (default: off)" in lines
    assert "--ema, --no-ema average the weights" in lines
    assert "--opt OPT the optimiser: adamw, sgd (default: adamw)" in lines
    assert [line for line in lines if line.endswith(":")] == [
        "Arguments:", "Options:", "Schedule:", "Images:", "General:",
    ]  # fmt: skip
    assert lines[-1] == "Example: t2t-vit train digits"


def test_help_of_many_arguments(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse(Predict, ["-h"], prog="t2t-vit predict")
    text = capsys.readouterr().out
    assert text.startswith("usage: t2t-vit predict IMAGE... [options]")
    assert "weights (required)" in text


def test_help_shows_what_matters_most_and_help_all_the_rest(capsys: pytest.CaptureFixture[str]):
    def flags(word: str) -> set[str]:
        with pytest.raises(SystemExit):
            parse(TrainConfig, [word], prog="t2t-vit train")
        return set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))

    few, every = flags("--help"), flags("--help-all")
    assert {"--model", "--steps", "--help-all"} <= few
    assert "--mixup" not in few
    assert {f"--{name.replace('_', '-')}" for name in options_of(TrainConfig) if name != "data"} <= every
    assert len(few) < 30 < len(every)
