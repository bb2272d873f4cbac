"""Measures the speed and memory that this project aims at, as far as the machine at hand can tell.

    python benchmarks/targets.py                           # what needs no official code
    git clone https://github.com/yitu-opensource/T2T-ViT
    python benchmarks/targets.py --official T2T-ViT        # everything

On a CUDA GPU it measures what is wanted of GPUs, otherwise (or with --device cpu) what is wanted of CPUs. What the
budget of time, by default nine minutes, has no room for is "not measured"; on two cores take --budget 1800.
benchmarks/results/targets-HARDWARE.csv gets the table, and targets-HARDWARE-rows.csv all that was measured.

Networks that are compared take turns, as in `t2t-vit benchmark`. "bf16" is bfloat16 weights in inference, and autocast,
as it is trained, in training; the official code always runs under autocast. "Ours" is the faster one of eager and
compiled, the official code is eager, and timm's ViT is eager with eager and compiled with compiled.
"""

import argparse
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from official import official_contender, official_models

from t2t_vit.models.tokens import TokensToToken
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv
from t2t_vit.runtime.hardware import hardware_name
from t2t_vit.runtime.machine import find_machine
from t2t_vit.speed.benchmark import Row, draw_rows, rows_of
from t2t_vit.speed.contenders import Contender, model_contender
from t2t_vit.speed.turns import measure

VIT = "vit_small_patch16_224"
PRECISIONS = {
    ("infer", "bf16"): "bfloat16",
    ("train", "bf16"): "amp_bfloat16",
    ("infer", "fp32"): "float32",
    ("train", "fp32"): "float32",
}
BATCH_SIZE = {"cpu": 16, "cuda": 256}
SWEEP = (128, 512, 1024)  # besides, on a GPU
TOKEN_SIDES = (224, 448, 896)
# Softmax over the 50,176 tokens of 896 pixels takes a CPU core ten seconds an image.
TOKEN_BATCH_SIZE = {
    ("cpu", "performer"): 4,
    ("cpu", "transformer"): 1,
    ("cuda", "performer"): 16,
    ("cuda", "transformer"): 16,
}
ROUNDS, SECONDS = {"cpu": 3, "cuda": 5}, 1.0

Rows = Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Goal:
    """One number that is wanted.

    Attributes:
        kind: "cpu" or "cuda": what it is measured on.
        measured: the number, of all rows; None where one that it needs is missing.
        most: whether the number is to be at most, and not at least, what is wanted.
    """

    kind: str
    what: str
    against: str
    wanted: float
    measured: Callable[[Rows], float | None]
    stretch: float | None = None
    most: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of the table."""

    what: str
    against: str
    target: str
    measured: float | None
    verdict: str


# What is wanted


def goals() -> Iterator[Goal]:
    """All targets, in their order."""
    official, itself = "official code", "itself"
    for (mode, kind), precision in PRECISIONS.items():
        for compiled in (False, True):
            about = f"CPU, MACs per second, {mode}, {kind}, {'compiled' if compiled else 'eager'}"
            yield Goal("cpu", about, VIT, 1.0, partial(macs_ratio, mode, precision, compiled), 1.1)
    for model, mode, kind, wanted, stretch in (
        ("t2t_vit_14", "infer", "bf16", 1.35, 1.5),
        ("t2t_vit_t_14", "infer", "bf16", 2.2, 2.5),
        ("t2t_vit_7", "infer", "bf16", 1.35, 1.5),
        ("t2t_vit_14", "infer", "fp32", 1.2, None),
        ("t2t_vit_t_14", "infer", "fp32", 1.8, None),
        ("t2t_vit_14", "train", "bf16", 1.15, 1.3),
        ("t2t_vit_t_14", "train", "bf16", 1.5, 2.0),
    ):
        speed = partial(official_ratio, model, mode, PRECISIONS[mode, kind])
        yield Goal("cpu", f"CPU, images per second, {model}, {mode}, {kind}", official, wanted, speed, stretch)
    for mode, stretch in (("infer", 4.0), ("train", None)):
        speed = partial(official_ratio, "t2t_vit_14", mode, PRECISIONS[mode, "bf16"])
        yield Goal("cuda", f"GPU, images per second, t2t_vit_14, {mode}, bf16", official, 3.0, speed, stretch)
    yield Goal("cuda", "GPU, peak memory, t2t_vit_14, train, bf16", official, 0.5, memory_ratio, most=True)
    yield Goal("cuda", "GPU, images per second, t2t_vit_14, train, bf16", "nobody", 8000, best_training)
    for mode in ("infer", "train"):
        speed = partial(macs_ratio, mode, PRECISIONS[mode, "bf16"], True)
        yield Goal("cuda", f"GPU, MACs per second, {mode}, bf16, compiled", VIT, 1.0, speed)
    for device, tokens, column in (
        (device, *which)
        for device in ("cpu", "cuda")
        for which in (("performer", "ms_per_step"), ("performer", "peak_memory_mb"), ("transformer", "peak_memory_mb"))
    ):
        about = f"{'CPU' if device == 'cpu' else 'GPU'}, T2T module, {tokens}, {column.split('_')[0]} per pixel"
        yield Goal(device, f"{about} from 224 to 896 px", itself, 1.1, partial(growth, tokens, column), most=True)


def find(rows: Rows, **wanted: object) -> list[Row]:
    """The rows with these values that hold a measurement."""
    return [
        row
        for row in rows
        if row.images_per_second and all(getattr(row, name) == value for name, value in wanted.items())
    ]


def fastest(rows: Rows, **wanted: object) -> Row | None:
    """The one with most images per second."""
    return max(find(rows, **wanted), key=lambda row: row.images_per_second or 0, default=None)


def macs_ratio(mode: str, precision: str, compiled: bool, rows: Rows) -> float | None:
    """Of t2t_vit_14 to timm's ViT, both in the setting that both were measured in."""
    setting = {"mode": mode, "precision": precision, "compile": "default" if compiled else "no"}
    theirs = fastest(rows, model=VIT, **setting)
    ours = theirs and fastest(rows, model="t2t_vit_14", batch_size=theirs.batch_size, **setting)
    return ours.gmacs_per_second / theirs.gmacs_per_second if ours and theirs else None


def official_ratio(model: str, mode: str, precision: str, rows: Rows) -> float | None:
    """Images per second of ours to the official code's, at its batch size."""
    theirs, ours = beside_official(model, mode, precision, rows)
    return ours.images_per_second / theirs.images_per_second if ours and theirs else None


def memory_ratio(rows: Rows) -> float | None:
    """Peak memory of a training step of ours to the official code's."""
    theirs, ours = beside_official("t2t_vit_14", "train", PRECISIONS["train", "bf16"], rows)
    return ours.peak_memory_mb / theirs.peak_memory_mb if ours and theirs else None


def beside_official(model: str, mode: str, precision: str, rows: Rows) -> tuple[Row | None, Row | None]:
    """The official code's row, and the fastest of ours at its batch size."""
    their_precision = "float32" if precision == "float32" else "amp_bfloat16"
    theirs = fastest(rows, model=f"official {model}", mode=mode, precision=their_precision)
    setting = {"mode": mode, "precision": precision}
    return theirs, theirs and fastest(rows, model=model, batch_size=theirs.batch_size, **setting)


def best_training(rows: Rows) -> float | None:
    """Images per second of the best batch size."""
    best = fastest(rows, model="t2t_vit_14", mode="train", precision=PRECISIONS["train", "bf16"])
    return best and best.images_per_second


def growth(tokens: str, column: str, rows: Rows) -> float | None:
    """1 where each pixel costs the same: the growth from 448 to 896 over four times that from 224 to 448 px.

    Differences leave out what does not depend on the image: weights, libraries, launches.
    """
    values = [getattr(row, column) for side in TOKEN_SIDES for row in find(rows, model=f"{tokens} tokens {side}")]
    if len(values) < len(TOKEN_SIDES):
        return None
    small, medium, large = values
    return (large - medium) / (medium - small) / 4


# What is measured for it


def groups(kind: str, official: str | None) -> Iterator[list[Contender]]:
    """Those that take turns, the most wanted ones first."""
    if kind == "cuda":
        for mode in ("infer", "train"):
            yield contenders(kind, official, "t2t_vit_14", mode, "bf16", vit=True)
        yield from token_groups(kind)
        for mode in ("train", "infer"):
            for batch_size in SWEEP:
                setting = {"mode": mode, "precision": PRECISIONS[mode, "bf16"], "batch_size": batch_size}
                yield [model_contender("t2t_vit_14", **setting, compile_mode="default")]
        return
    for mode, precision in PRECISIONS:
        yield contenders(kind, official, "t2t_vit_14", mode, precision, vit=True)
    if official:
        for model, mode, precision in (
            ("t2t_vit_t_14", "infer", "bf16"),
            ("t2t_vit_7", "infer", "bf16"),
            ("t2t_vit_t_14", "train", "bf16"),
            ("t2t_vit_t_14", "infer", "fp32"),
        ):
            yield contenders(kind, official, model, mode, precision)
    yield from token_groups(kind)


def contenders(
    kind: str, official: str | None, model: str, mode: str, precision: str, *, vit: bool = False
) -> list[Contender]:
    """Ours, and on request timm's ViT, eager and compiled; the official code where there is a copy."""
    setting = {"mode": mode, "precision": PRECISIONS[mode, precision], "batch_size": BATCH_SIZE[kind]}
    found = [
        model_contender(name, **setting, compile_mode=compile_mode)
        for name in (model, *[VIT] * vit)
        for compile_mode in (None, "default")
    ]
    return [*found, official_contender(official, found[0])] if official else found


def token_groups(kind: str) -> Iterator[list[Contender]]:
    """T2T modules of t2t_vit_14 on their own, at rising sizes of the image."""
    for tokens in ("performer", "transformer"):
        yield [
            Contender(
                name=f"{tokens} tokens {side}",
                build=partial(TokensToToken, tokens=tokens),
                input_size=(3, side, side),
                mode="infer",
                precision="bfloat16" if kind == "cuda" else "float32",
                batch_size=TOKEN_BATCH_SIZE[kind, tokens],
            )
            for side in TOKEN_SIDES
        ]


# The table


def judge(goal: Goal, kind: str, rows: Rows) -> Verdict:
    """The line of one goal."""
    sign, unit = ("<=" if goal.most else ">="), (" x" if goal.wanted < 100 else " images/s")
    target = f"{sign} {goal.wanted:,g}{unit}" + (f" (stretch {goal.stretch:g})" if goal.stretch else "")
    value = goal.measured(rows) if goal.kind == kind else None
    if value is None:
        why = "" if goal.kind == kind else f": needs a {'CUDA GPU' if goal.kind == 'cuda' else 'run with --device cpu'}"
        return Verdict(goal.what, goal.against, target, None, f"not measured{why}")
    met = value <= goal.wanted if goal.most else value >= goal.wanted
    stretched = met and goal.stretch is not None and value >= goal.stretch
    return Verdict(
        goal.what, goal.against, target, round(value, 3), "stretch" if stretched else "met" if met else "missed"
    )


def report(kind: str, hardware: str, rows: Rows, output: Path) -> list[Verdict]:
    """Writes what has been measured so far."""
    verdicts = [judge(goal, kind, [row for row in rows if not row.error]) for goal in goals()]
    pipeline = ("input pipeline, images per second per core", "timm's loader", ">= 1.5 x (stretch 2)")
    verdicts.append(Verdict(*pipeline, None, "not measured: see input_pipeline.py"))
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    write_csv(output / f"targets-{slug}.csv", verdicts)
    write_csv(output / f"targets-{slug}-rows.csv", rows)
    return verdicts


def main() -> None:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--official", metavar="PATH", help="a copy of the official repository")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="of time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of each process on the CPU; by default torch's choice")
    parser.add_argument("--plot", metavar="FILE", help="a picture of the whole networks, uncompiled")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR", help="(default: %(default)s)"
    )
    args = parser.parse_args()
    if args.official:
        official_models(args.official)  # refuses what is none, before anything is measured
    args.output.mkdir(parents=True, exist_ok=True)
    device = find_machine(args.device, amp=False).device
    hardware = hardware_name(device)

    start, longest, rows = time.monotonic(), 0.0, []
    for group in groups(device.type, args.official):
        begun = time.monotonic()
        first = group[0]
        about = f"{begun - start:4.0f} s: {first.name}, {first.mode}, {first.precision}, batch size {first.batch_size}"
        if begun - start + longest > args.budget:
            print(f"{about}: no time left", flush=True)
            continue
        print(about, flush=True)
        outcomes = measure(group, device=device, rounds=ROUNDS[device.type], seconds=SECONDS, threads=args.threads)
        rows += rows_of(outcomes, baseline=first.name, hardware=hardware, threads=args.threads)
        for outcome in outcomes:
            if outcome.error:
                print(f"        {outcome.contender.name}: {outcome.error}", flush=True)
        report(device.type, hardware, rows, args.output)  # each time, in case that somebody stops it
        longest = max(longest, time.monotonic() - begun)

    table = new_table("What", "Against", "Target", "Measured", "Verdict", num_words=3)
    for line in report(device.type, hardware, rows, args.output):
        table.add_row(
            line.what, line.against, line.target, "" if line.measured is None else f"{line.measured:,g}", line.verdict
        )
    print_table(table)
    print(f"{hardware}, torch {torch.__version__}; {args.output}")
    if args.plot:
        draw_rows([row for row in rows if row.compile == "no" and "tokens" not in row.model], args.plot)


if __name__ == "__main__":
    main()
