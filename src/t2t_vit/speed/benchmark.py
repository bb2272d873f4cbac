"""`t2t-vit benchmark`: speed and memory of networks side by side, as a table, a CSV file and a picture."""

import dataclasses
import itertools
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

import t2t_vit
from t2t_vit.errors import UserError, closest
from t2t_vit.models.names import resolve_name
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv
from t2t_vit.runtime.hardware import hardware_name
from t2t_vit.runtime.machine import find_machine
from t2t_vit.speed.config import BenchmarkConfig
from t2t_vit.speed.contenders import (
    Contender,
    Outcome,
    build_model,
    build_official,
    measure,
    official_models,
)

MACS_PER_TRAINED_MAC = 3  # forward, gradients of activations, gradients of weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What one contender came to; numbers are None where it failed, and `error` says why.

    Attributes:
        compile: mode of torch.compile, or "no".
        img_size: height and width in pixels.
        images_per_second: the median of the rounds; `lowest` and `highest` are their spread.
        ms_per_step: of the median.
        gmacs_per_second: 1e9 multiply-accumulates of the network's definition; three times those in training.
        peak_memory_mb: 1e6 bytes; on a GPU what torch allocated, elsewhere what the process held in main memory beyond
            what it held before the network was built.
        ratio: images per second over the baseline's of the same setting.
        threads: of torch on the CPU.
    """

    model: str
    mode: str
    precision: str
    compile: str
    batch_size: int
    img_size: tuple[int, int] | None
    images_per_second: float | None = None
    lowest: float | None = None
    highest: float | None = None
    ms_per_step: float | None = None
    gmacs_per_second: float | None = None
    peak_memory_mb: float | None = None
    ratio: float | None = None
    error: str = ""
    rounds: int
    channels_last: bool
    hardware: str
    threads: int | None
    torch: str = torch.__version__
    timm: str = timm.__version__
    python: str = platform.python_version()
    t2t_vit: str = t2t_vit.__version__


def benchmark(config: BenchmarkConfig) -> None:
    """Measures the contenders of each setting side by side, one setting after the other.

    Raises:
        UserError: for what cannot be meant, before anything is measured.
    """
    config = checked(config)
    device = find_machine(config.device, amp=False).device
    groups = list(contender_groups(config))
    rows: list[Row] = []
    for number, group in enumerate(groups, 1):
        print(f"{number} of {len(groups)}: {setting_of(group[0])}", file=sys.stderr, flush=True)
        outcomes = measure(group, device=device, rounds=config.rounds, seconds=config.seconds, threads=config.threads)
        rows += rows_of(outcomes, baseline=config.baseline or group[0].name, hardware=hardware_name(device))
        if config.csv:  # after each setting: a long sweep that is stopped leaves what it has measured
            write_csv(Path(config.csv), rows)
    print_rows(rows)
    if config.plot:
        draw_rows(rows, config.plot)


def checked(config: BenchmarkConfig) -> BenchmarkConfig:
    """The config with the models' full names, each once.

    Raises:
        UserError: every problem of the config, in one message.
    """
    problems: list[str] = []
    names: dict[str, None] = {}
    for name in config.models:
        try:
            names[resolve_name(name)] = None
        except UserError as error:
            problems.append(str(error))
    official: set[str] = set()
    if config.official:
        try:
            official = names.keys() & official_models(config.official).keys()
            if not official and not problems:
                problems.append(f"{config.official} holds none of these models: {', '.join(names)}.")
        except UserError as error:
            problems.append(str(error))
    everybody = {*names, *(f"official {name}" for name in official)}
    baseline = config.baseline and config.baseline.replace("T2t_", "t2t_")
    if baseline and baseline not in everybody and not problems:
        problems.append(f"{closest(baseline, everybody, 'baseline')} It must be one of the models that are compared.")
    if problems:
        raise UserError(" ".join(problems))
    return dataclasses.replace(config, models=tuple(names), baseline=baseline)


def contender_groups(config: BenchmarkConfig) -> Iterator[list[Contender]]:
    """For each setting those that are compared in it, the official models last."""
    compile_modes = {"no": (None,), "yes": (config.compile_mode,), "both": (None, config.compile_mode)}
    sizes: tuple[int | None, ...] = config.img_size or (None,)
    official = official_models(config.official) if config.official else {}
    settings = itertools.product(
        dict.fromkeys(config.mode),
        dict.fromkeys(config.precision),
        compile_modes[config.compile],
        dict.fromkeys(sizes),
        dict.fromkeys(config.batch_size),
    )
    for mode, precision, compile_mode, img_size, batch_size in settings:
        contend = partial(
            Contender,
            mode=mode,
            batch_size=batch_size,
            compile_mode=compile_mode,
            channels_last=config.channels_last,
        )
        group = [contend(name, partial(build_model, name, img_size), precision=precision) for name in config.models]
        for name in filter(official.__contains__, config.models):
            build = partial(build_official, str(config.official), name, img_size)
            group.append(contend(f"official {name}", build, precision=official_precision(precision)))
        yield group


def official_precision(precision: str) -> str:
    """What stands for a precision in the official code: weights of half precision are not known there."""
    return precision if precision == "float32" or precision.startswith("amp_") else f"amp_{precision}"


def setting_of(contender: Contender) -> str:
    """What the contenders of a group have in common, in words."""
    how = f"compiled ({contender.compile_mode})" if contender.compile_mode else "eager"
    return f"{contender.mode}, {contender.precision}, batch size {contender.batch_size}, {how}"


# Results


def rows_of(outcomes: Iterable[Outcome], *, baseline: str, hardware: str) -> list[Row]:
    """The rows of the contenders of one setting.

    Args:
        outcomes: what they came to.
        baseline: the name of the one that has the ratio 1.
        hardware: what it was measured on.
    """
    rows = [_row(outcome, hardware) for outcome in outcomes]
    base = next((row.images_per_second for row in rows if row.model == baseline), None)
    return [
        dataclasses.replace(row, ratio=row.images_per_second / base if base and row.images_per_second else None)
        for row in rows
    ]


def _row(outcome: Outcome, hardware: str) -> Row:
    contender, facts = outcome.contender, outcome.facts
    numbers: dict[str, Any] = {}
    if outcome.rounds:
        assert facts is not None
        rates = [done.images_per_second for done in outcome.rounds]
        rate = statistics.median(rates)
        macs = facts.macs * (MACS_PER_TRAINED_MAC if contender.mode == "train" else 1)
        numbers = {
            "images_per_second": rate,
            "lowest": min(rates),
            "highest": max(rates),
            "ms_per_step": 1e3 * contender.batch_size / rate,
            "gmacs_per_second": rate * macs / 1e9,
            "peak_memory_mb": max(done.peak_bytes for done in outcome.rounds) / 1e6,
        }
    return Row(
        model=contender.name,
        mode=contender.mode,
        precision=contender.precision,
        compile=contender.compile_mode or "no",
        batch_size=contender.batch_size,
        img_size=facts.img_size if facts else None,
        error=outcome.error,
        rounds=len(outcome.rounds),
        channels_last=contender.channels_last,
        hardware=hardware,
        threads=facts.threads if facts else None,
        **numbers,
    )


def print_rows(rows: Sequence[Row]) -> None:
    """Prints rows as a table for people."""
    words, numbers = ("Model", "Mode", "Precision", "Compile"), ("Batch", "Pixels", "Images/s", "Low", "High")
    table = new_table(*words, *numbers, "ms/step", "GMAC/s", "Peak MB", "Ratio", num_words=len(words))
    if any(row.error for row in rows):
        table.add_column("Failed", no_wrap=True)
    for row in rows:
        measured = (row.images_per_second, row.lowest, row.highest, row.ms_per_step, row.gmacs_per_second)
        table.add_row(
            row.model,
            row.mode,
            row.precision,
            row.compile,
            str(row.batch_size),
            _pixels(row),
            *map(_three_digits, measured),
            "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
            *([row.error] if row.error else []),
        )
    print_table(table)
    first = rows[0]
    print(f"{first.hardware}, {first.threads or '?'} threads, torch {first.torch}, timm {first.timm}.", end=" ")
    print("Images/s: median, lowest and highest round.")


def _pixels(row: Row) -> str:
    if row.img_size is None:
        return ""
    height, width = row.img_size
    return str(height) if height == width else f"{height}x{width}"


def _three_digits(value: float | None) -> str:
    return "" if value is None else f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def draw_rows(rows: Sequence[Row], path: str) -> None:
    """Writes rows as bars, a panel for each mode."""
    from t2t_vit.pictures.figures import Bar, speed_figure  # matplotlib, where a picture is asked for

    settings = [
        (row.precision, f"batch size {row.batch_size}", f"{_pixels(row)} pixels", f"compile: {row.compile}")
        for row in rows
    ]
    differing = [len(set(column)) > 1 for column in zip(*settings, strict=True)]
    panels: dict[str, list[Bar]] = {}
    for row, setting in zip(rows, settings, strict=True):
        about = ", ".join(itertools.compress(setting, differing))
        bar = Bar(row.model, about, row.images_per_second, row.lowest, row.highest, row.ratio, row.error)
        panels.setdefault({"infer": "Inference", "train": "Training"}[row.mode], []).append(bar)
    same = ", ".join(itertools.compress(settings[0], [not differs for differs in differing]))
    speed_figure(panels, path, note=f"{rows[0].hardware}; {same}" if same else rows[0].hardware)
