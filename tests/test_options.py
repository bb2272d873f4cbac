from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from t2t_vit.errors import UserError
from t2t_vit.flags import parse
from t2t_vit.options import URLS, Settings, argument, configure, option, refuse_missing


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings with a rule of every kind."""

    data: str = argument("where the images are", default="digits")
    epochs: int = option(10, "passes over the images", at_least=1)
    warmup: int = option(2, "epochs of warm-up", at_least=0, below="epochs")
    lr: float = option(0.1, "peak learning rate", above=0)
    min_lr: float = option(0.01, "learning rate at the end", at_most="lr")
    momentum: float | None = option(None, "of the optimiser", at_least=0, below=1)
    size: int | tuple[int, int] | None = option(None, "in pixels", at_least=1)
    scale: tuple[float, float] = option((0.1, 1.0), "area of crops", above=0, at_most=1, ascending=True, unless="pad")
    pad: int = option(0, "pixels around the image, instead of crops")
    teacher: str | None = option(None, "a model")
    alpha: float = option(0.5, "share of the teacher", needs="teacher")
    ema: bool = option(True, "average the weights")
    decay: float = option(0.99, "of the average", needs="ema")
    half: bool | None = option(None, "half precision, where it is quicker")
    half_type: str = option("bfloat16", "type of half precision", needs="half", choices=("bfloat16", "float16"))
    mixup: float = option(0.0, "mixup alpha")
    cutmix: float = option(0.0, "CutMix alpha")
    switch: float = option(0.5, "share of CutMix", needs="mixup and cutmix")
    mix_epochs: int = option(0, "epochs that are mixed", needs="mixup or cutmix")
    csv: str | None = option(None, "the table", writes=())
    plot: str | None = option(None, "the picture", writes=(".png", ".svg"))

    @classmethod
    def defaults_for(cls, given):
        """A warm-up of a half at most, and the average for long runs alone."""
        return {"warmup": min(2, given.get("epochs", 10) // 2), "ema": given.get("epochs", 10) > 3}

    def contradictions(self):
        if self.mixup and self.half_type == "float16":
            yield "--mixup overflows in float16."


def mistake(words: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(Config, words.split(), prog="p")
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 0", "--epochs must be at least 1, got 0."),
        ("--lr 0", "--lr must be above 0, got 0.0."),
        ("--momentum 1", "--momentum must be at least 0 and below 1, got 1.0."),
        ("--size 32 0", "--size must be at least 1, got 32 0."),
        ("--scale 2 3", "--scale must be above 0 and at most 1 and the smaller one first, got 2.0 3.0."),
        ("--scale 0.5 0.2", "--scale must be above 0 and at most 1 and the smaller one first, got 0.5 0.2."),
        ("--epochs 4 --warmup 4", "--warmup must be at least 0 and below --epochs 4, got 4."),
        ("--lr 0.001", "--min-lr must be at most --lr 0.001, got 0.01 by default."),
        ("--plot a.pdf", "--plot must be a .png or .svg file in a folder that is there, got a.pdf."),
        ("--csv missing/a.csv", "--csv must be a file in a folder that is there, got missing/a.csv."),
        ("--csv .", "--csv must be a file in a folder that is there, got .."),
        ("--mixup 1 --half-type float16", "--mixup overflows in float16."),
        # What depends on a wrong setting is not held against it; all else is told at once.
        ("--epochs -3 --warmup 12 --lr 0", "--epochs must be at least 1, got -3. --lr must be above 0, got 0.0."),
        ("--lr x --epochs 0 --alpha 1", "--lr: expected a number, got 'x'. --epochs must be at least 1, got 0. "
         "--alpha has no effect without --teacher."),
    ],
)  # fmt: skip
def test_a_broken_rule_is_told(words: str, message: str):
    assert mistake(words) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--alpha 0.9", "--alpha has no effect without --teacher."),
        ("--decay 0.5 --no-ema", "--decay has no effect beside --no-ema."),
        ("--decay 0.5 --epochs 2", "--decay has no effect without --ema."),
        ("--half-type float16 --no-half", "--half-type has no effect beside --no-half."),
        ("--scale 0.5 1 --pad 4", "--scale has no effect beside --pad 4."),
        ("--switch 0.9 --mixup 1", "--switch has no effect without --mixup and --cutmix."),
        ("--mix-epochs 3", "--mix-epochs has no effect without --mixup or --cutmix."),
    ],
)
def test_a_setting_without_effect_is_refused(words: str, message: str):
    assert mistake(words) == message


@pytest.mark.parametrize(
    "words",
    [
        "--alpha 0.9 --teacher resnet18",
        "--alpha 0.5 --scale 0.1 1 --pad 4",  # what would have been so anyway may stand in a file
        "--teacher none --momentum none",
        "--half-type float16",  # it may have an effect
        "--mix-epochs 3 --cutmix 1",
        "--switch 0.9 --cutmix 1 --mixup 1",
        "--no-ema --pad 4",
        "--epochs 1",
        "--plot a.svg --csv a",
    ],
)
def test_settings_that_make_sense_pass(words: str):
    assert parse(Config, words.split(), prog="p")


def test_python_and_the_command_line_give_the_same(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("epochs: 3\n")
    ours = configure(Config, data=Path("pets"), size=[32, 64], ema=False, epochs=3)
    theirs = parse(Config, f"pets --size 32 64 --no-ema -c {tmp_path}/run.yaml".split(), prog="p")
    assert ours == theirs
    assert ours.given == theirs.given == {"data", "size", "ema", "epochs"}
    assert ours.changed == {"data", "size", "epochs"}  # a run of three epochs keeps no average
    assert (ours.data, ours.size, ours.warmup) == ("pets", (32, 64), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "Unknown setting epoch. Did you mean epochs?"),
        ({"learning_rate": 3}, "Unknown setting learning_rate. Did you mean lr?"),
        ({"zzz": 3}, r"Unknown setting zzz. Known: data, epochs, .* and 11 more."),
        (
            {"lr": True, "size": 1.5},
            "lr: expected a number, got True. size: expected 1 or 2 whole numbers",
        ),
        ({"lr": 0}, "lr must be above 0, got 0.0."),
    ],
)
def test_a_mistake_in_python_is_told(settings: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        configure(Config, **settings)


def test_what_was_given_is_no_setting():
    config = configure(Config, epochs=20)
    assert "given" not in asdict(config)
    assert "given" not in [field.name for field in fields(config)]
    assert "given" not in repr(config)
    assert config == Config(epochs=20)
    assert replace(config, lr=0.2).given == {"epochs"}
    assert Config().given == frozenset()


@dataclass(frozen=True, kw_only=True)
class Paths(Settings):
    """Settings that name files."""

    data: str = argument("a folder, or digits", exists=("digits", "wds/"))
    images: tuple[str, ...] = option((), "image files", exists=())
    weights: str | None = option("no/default.pt", "a path or a URL", exists=URLS)


def test_paths_that_do_not_exist_are_told_together(tmp_path):
    (tmp_path / "a.png").touch()
    there = str(tmp_path / "a.png")
    for data, weights in (("digits", None), ("wds/any", "https://host/x.pt"), (str(tmp_path), there)):
        refuse_missing(configure(Paths, data=data, images=there, weights=weights))
    refuse_missing(configure(Paths, data="digits"))  # a default is nobody's mistake
    with pytest.raises(UserError) as caught:
        refuse_missing(configure(Paths, data="digit", images=["b.png", there, "c.png"], weights="ftp://host"))
    assert str(caught.value) == (
        "DATA: there is no file or folder digit. Did you mean digits? "
        "--images: there is no file or folder b.png, c.png. Expected image files. "
        "--weights: there is no file or folder ftp://host. Expected a path or a URL."
    )
