"""`t2t-vit benchmark`: speed and memory of networks side by side, as a table, a CSV file and a picture."""

import dataclasses
import itertools
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

import t2t_vit
from t2t_vit.errors import UserError, closest
from t2t_vit.inference.exported import exported_file
from t2t_vit.models.names import resolve_name
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv
from t2t_vit.runtime.hardware import hardware_name
from t2t_vit.runtime.machine import find_machine
from t2t_vit.speed.config import BenchmarkConfig
from t2t_vit.speed.contenders import Contender, exported_contender, model_contender
from t2t_vit.speed.turns import Outcome, measure

MACS_PER_TRAINED_MAC = 3  # forward, gradients of activations, gradients of weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one contender; numbers are None where it failed, and `error` says why.

    Attributes:
        compile: mode of torch.compile, or "no".
        img_size: height and width in pixels.
        images_per_second: the median of the rounds; `lowest` and `highest` are their spread.
        ms_per_step: at that median.
        gmacs_per_second: 1e9 multiply-accumulates of the network's definition; three times those in training.
        peak_memory_mb: 1e6 bytes. On a GPU, what torch allocated; elsewhere, what the process held in main memory
            beyond what it held before the network was built.
        ratio: images per second over those of the baseline in the same setting.
        threads: of torch on the CPU.
    """

    model: str
    mode: str
    precision: str
    compile: str
    batch_size: int
    img_size: tuple[int, int]
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
    threads: int
    torch: str = torch.__version__
    timm: str = timm.__version__
    python: str = platform.python_version()
    t2t_vit: str = t2t_vit.__version__


def benchmark(config: BenchmarkConfig) -> None:
    """Measures models side by side, one setting after the other.

    Raises:
        UserError: for an unknown model or baseline, before anything is measured.
    """
    baseline = config.baseline and _name_of(config.baseline)
    compare_speed(dataclasses.replace(config, baseline=baseline), contender_groups(config))


def compare_speed(config: BenchmarkConfig, groups: Iterable[Sequence[Contender]]) -> None:
    """Measures each group of contenders side by side; prints, writes and draws the results.

    Raises:
        UserError: when the baseline is none of the contenders.
    """
    groups = list(groups)
    baseline, names = config.baseline or groups[0][0].name, {contender.name for contender in groups[0]}
    if baseline not in names:
        raise UserError(f"{closest(baseline, names, 'baseline')} It must be one of the models that are compared.")
    device = find_machine(config.device, amp=False).device
    rows: list[Row] = []
    for number, group in enumerate(groups, 1):
        first = group[0]
        how = f"compiled ({first.compile_mode})" if first.compile_mode else "eager"
        setting = f"{first.mode}, {first.precision}, batch size {first.batch_size}, {how}"
        print(f"{number} of {len(groups)}: {setting}", file=sys.stderr, flush=True)
        outcomes = measure(group, device=device, rounds=config.rounds, seconds=config.seconds, threads=config.threads)
        rows += rows_of(outcomes, baseline=baseline, hardware=hardware_name(device), threads=config.threads)
        if config.csv:  # after each setting: a long sweep that is stopped leaves what it has measured
            write_csv(Path(config.csv), rows)
    print_rows(rows)
    if config.plot:
        draw_rows(rows, config.plot)


def contender_groups(config: BenchmarkConfig) -> Iterator[list[Contender]]:
    """The models as contenders, each once, a group for each setting."""
    models = {name: exported_file(name) for name in dict.fromkeys(map(_name_of, config.models))}
    if "train" in config.mode and any(models.values()):
        raise UserError("An exported network cannot be trained: leave out --mode train.")
    if config.runtime and not any(models.values()):
        raise UserError("--runtime has no effect without an exported file: leave it out.")
    compile_modes = {"no": (None,), "yes": (config.compile_mode,), "both": (None, config.compile_mode)}[config.compile]
    sizes: tuple[int | None, ...] = config.img_size or (None,)
    settings = itertools.product(config.mode, config.precision, compile_modes, sizes, config.batch_size)
    for mode, precision, compile_mode, img_size, batch_size in dict.fromkeys(settings):
        setting: dict[str, Any] = {"mode": mode, "precision": precision}
        setting |= {"batch_size": batch_size, "compile_mode": compile_mode}
        yield [
            exported_contender(path, runtime=config.runtime, trust_code=config.trust_code, **setting)
            if path
            else model_contender(name, img_size, **setting, channels_last=config.channels_last)
            for name, path in models.items()
        ]


def _name_of(word: str) -> str:
    """A registered name, or the path of an exported file as it is."""
    path = exported_file(word)
    return resolve_name(word) if path is None else str(path)


def rows_of(outcomes: Sequence[Outcome], *, baseline: str, hardware: str, threads: int | None = None) -> list[Row]:
    """The rows of the contenders of one setting; `baseline` names the one whose ratio is 1."""
    base = next((outcome.images_per_second for outcome in outcomes if outcome.contender.name == baseline), None)
    rows = []
    for outcome in outcomes:
        contender, numbers = outcome.contender, dict[str, Any]()
        if speed := outcome.images_per_second:
            macs = outcome.macs * (MACS_PER_TRAINED_MAC if contender.mode == "train" else 1)
            numbers = {
                "images_per_second": speed,
                "lowest": min(done.images_per_second for done in outcome.rounds),
                "highest": max(done.images_per_second for done in outcome.rounds),
                "ms_per_step": 1e3 * contender.batch_size / speed,
                "gmacs_per_second": speed * macs / 1e9 or None,
                "peak_memory_mb": max(done.peak_bytes for done in outcome.rounds) / 1e6,
                "ratio": speed / base if base else None,
            }
        row = Row(
            model=contender.name,
            mode=contender.mode,
            precision=contender.precision,
            compile=contender.compile_mode or "no",
            batch_size=contender.batch_size,
            img_size=contender.input_size[1:],
            **numbers,
            error=outcome.error,
            rounds=len(outcome.rounds),
            channels_last=contender.channels_last,
            hardware=hardware,
            threads=threads or torch.get_num_threads(),
        )
        rows.append(row)
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """Prints rows as a table for people."""
    words, numbers = ("Model", "Mode", "Precision", "Compile"), ("Batch", "Pixels", "Images/s", "Low", "High")
    table = new_table(*words, *numbers, "ms/step", "GMAC/s", "Peak MB", "Ratio", num_words=len(words))
    if any(row.error for row in rows):
        table.add_column("Failed", no_wrap=True)
    for row in rows:
        setting = (row.model, row.mode, row.precision, row.compile, str(row.batch_size), _pixels(row))
        measured = (row.images_per_second, row.lowest, row.highest, row.ms_per_step, row.gmacs_per_second)
        memory = "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(*setting, *map(_three_digits, measured), memory, ratio, *([row.error] if row.error else []))
    print_table(table)
    first = rows[0]
    print(f"{first.hardware}, {first.threads} threads, torch {first.torch}, timm {first.timm}.", end=" ")
    print("Images/s: median, lowest and highest round.")


def _pixels(row: Row) -> str:
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
