"""The flags of the official code: every one has its answer, and the documentation tells the same."""

import pkgutil
import re
from pathlib import Path

import pytest

from t2t_vit.cli import COMMANDS, main
from t2t_vit.old_flags import FLAGS, UNCHANGED, advise
from t2t_vit.options import options_of

DOCS = Path(__file__).parents[1] / "docs" / "from-the-official-code.md"
MAIN = (
    "-c", "--config", "--model", "--pretrained", "--initial-checkpoint", "--resume", "--eval_checkpoint",
    "--no-resume-opt", "--num-classes", "--gp", "--img-size", "--crop-pct", "--mean", "--std", "--interpolation",
    "-b", "--batch-size", "-vb", "--validation-batch-size-multiplier", "--opt", "--opt-eps", "--opt-betas",
    "--momentum", "--weight-decay", "--clip-grad", "--sched", "--lr", "--lr-noise", "--lr-noise-pct",
    "--lr-noise-std", "--lr-cycle-mul", "--lr-cycle-limit", "--warmup-lr", "--min-lr", "--epochs", "--start-epoch",
    "--decay-epochs", "--warmup-epochs", "--cooldown-epochs", "--patience-epochs", "--decay-rate", "--dr",
    "--no-aug", "--scale", "--ratio", "--hflip", "--vflip", "--color-jitter", "--aa", "--aug-splits", "--jsd",
    "--reprob", "--remode", "--recount", "--resplit", "--mixup", "--cutmix", "--cutmix-minmax", "--mixup-prob",
    "--mixup-switch-prob", "--mixup-mode", "--mixup-off-epoch", "--smoothing", "--train-interpolation", "--drop",
    "--drop-connect", "--drop-path", "--drop-block", "--bn-tf", "--bn-momentum", "--bn-eps", "--sync-bn",
    "--dist-bn", "--split-bn", "--model-ema", "--model-ema-force-cpu", "--model-ema-decay", "--seed",
    "--log-interval", "--recovery-interval", "-j", "--workers", "--num-gpu", "--save-images", "--amp", "--apex-amp",
    "--native-amp", "--channels-last", "--pin-mem", "--no-prefetcher", "--output", "--eval-metric", "--tta",
    "--local_rank", "--use-multi-epochs-loader",
)  # fmt: skip
TRANSFER = (
    "--lr", "--wd", "--min-lr", "--dataset", "--b", "--resume", "-r", "--pretrained", "--num-classes", "--model",
    "--drop", "--drop-connect", "--drop-path", "--drop-block", "--gp", "--img-size", "--bn-tf", "--bn-momentum",
    "--bn-eps", "--initial-checkpoint", "--transfer-learning", "--transfer-model", "--transfer-ratio",
)  # fmt: skip


def flags_of(command: str) -> set[str]:
    options = options_of(pkgutil.resolve_name(COMMANDS[command].config))
    return {spelling for option in options.values() for spelling in option.spellings} | {"-c", "--config"}


def test_every_flag_of_the_official_parsers_is_in_the_table_once():
    names = [name for flag in FLAGS for name in flag.names]
    assert sorted([*names, *UNCHANGED]) == sorted({*MAIN, *TRANSFER})


def test_unchanged_flags_exist():
    assert set(UNCHANGED) <= flags_of("train")


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.names[0])
def test_what_is_given_instead_exists(flag):
    command, flags = "train", re.findall(r"--[a-z-]+", f"{flag.here} {flag.note}")
    if flag.here.startswith("t2t-vit "):
        command = flag.here.split()[1]
    if flag.here.startswith("torchrun "):
        flags = []
    assert set(flags) <= flags_of(command)
    assert flag.here or flag.note
    # What keeps its name keeps its short form, so that it is no unknown flag.
    assert flag.here not in flag.names or {name for name in flag.names if name != "-r"} <= flags_of("train")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("transfer cifar10 --transfer-model x", "The official code's --transfer-model is --checkpoint here."),
        (
            "transfer cifar10 --transfer-learning True",
            "The official code's --transfer-learning is t2t-vit transfer here.",
        ),
        ("train data --eval_checkpoint=x", "The official code's --eval_checkpoint is t2t-vit eval --checkpoint here."),
        ("train --dataset cifar10", "The official code's --dataset is the argument DATA here."),
        (
            "train data -vb 2",
            "The official code's -vb has no counterpart here: validation takes batches of the same size.",
        ),
        ("train data --local_rank=0", "The official code's --local_rank has no counterpart here: torchrun tells "),
        ("train data --b 64", "The official code's --b is --batch-size here."),
        ("eval data --wd 0.1", "See t2t-vit eval --help."),
        ("eval data --batchsize 8", "Did you mean --batch-size?"),
    ],
)
def test_a_flag_of_the_official_code_is_answered(words, answer, capsys):
    assert main(words.split()) == 2
    unknown = next(word for word in words.split() if word.startswith("-")).partition("=")[0]
    assert capsys.readouterr().err.startswith(f"t2t-vit: error: Unknown flag {unknown}. {answer}")


def test_underscores_are_as_good_as_dashes():
    assert advise("--eval-checkpoint", ()) == advise("--eval_checkpoint", ()).replace("_", "-")
    assert advise("--frobnicate", ()) is None


def test_the_documentation_lists_every_flag_as_the_table_does():
    rows = [line.replace("`", "") for line in DOCS.read_text().splitlines() if line.startswith("| `-")]
    told = [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in rows]
    assert told == [(", ".join(flag.names), flag.here or "none", flag.note) for flag in FLAGS]
    paragraph = re.search(r"^Unchanged are (.+?)\.$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert re.findall(r"`(-[^`]+)`", paragraph[1]) == list(UNCHANGED)
