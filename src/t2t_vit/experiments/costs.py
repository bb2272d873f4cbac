"""`t2t-vit compare` without data: what networks cost, beside what was published, as tables and as a picture."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from t2t_vit.experiments.config import CompareConfig
from t2t_vit.insight.complexity import (
    LEGEND,
    PARTS,
    SIZE,
    TOP1,
    Columns,
    Complexity,
    build,
    describe,
    input_size_of,
    known_name,
    own_size,
    print_complexity,
)
from t2t_vit.insight.published import COMPARED, OFFICIAL, PAPER
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.files import write_csv, write_errors_told, write_text
from t2t_vit.runtime.hardware import hardware_name
from t2t_vit.runtime.machine import find_machine
from t2t_vit.speed.contenders import Contender
from t2t_vit.speed.turns import Outcome, measure

TABLE, MARKDOWN, PICTURE = "comparison.csv", "comparison.md", "comparison.png"
BATCH_SIZE, ROUNDS, SECONDS = 32, 3, 1.0
CONTENDERS_AT_A_TIME = 8  # all of these are in memory, each in a process of its own
LOWEST_TOP1_PERCENT = 69.5  # of what is drawn: AlexNet alone would halve the height of all others
LOOKS: dict[str, dict[str, Any]] = {
    "T2T-ViT": {"look": 0, "connected": True},
    "T2T-ViT_t": {"look": 3, "connected": True},
    "ViT": {"look": 1},
    "today": {"look": 4},
    "ResNet": {"look": 5, "connected": True},
    "MobileNet": {"look": 2},
    "other CNN": {"look": 5, "hollow": True},
    "T2T variant": {"look": 0, "hollow": True},
}
"""How a picture shows the families of COMPARED, in the order in which their labels are placed."""


PUBLISHERS = f"Published: by the paper ({PAPER}) and its code ({OFFICIAL}), where no note says otherwise."


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Images per second of models, and how they were measured.

    Attributes:
        images_per_second: medians, by model; None where it failed, and `errors` says why.
    """

    images_per_second: dict[str, float | None]
    errors: dict[str, str]
    batch_size: int
    threads: int
    hardware: str

    def __str__(self) -> str:
        failed = "".join(f" {name} failed: {error}." for name, error in self.errors.items())
        return (
            f"Images/s: inference in float32, batch size {self.batch_size}, {self.hardware}, {self.threads} threads; "
            f"medians of {ROUNDS} rounds.{failed}"
        )


def compare_costs(config: CompareConfig) -> None:
    """Prints what networks cost; given an output folder, writes the table as CSV and Markdown, and the picture.

    Raises:
        UserError: a model is unknown, or cannot take the size.
    """
    names = list(dict.fromkeys(known_name(name) for name in config.models or COMPARED))
    output = Path(config.output) if config.output else None
    if output:
        with write_errors_told(output):
            output.mkdir(parents=True, exist_ok=True)
    rows = []
    with Display(stderr=True).steps("counting", len(names)) as steps:
        for name in names:
            rows.append(describe(name, config.img_size))
            steps.advance()
    speeds = measure_speeds(rows, config) if config.measure else None
    notes = {note: number for number, note in enumerate(dict.fromkeys(row.note for row in rows if row.note), 1)}
    columns = columns_of(speeds, notes)
    print_complexity(rows, columns)
    about = [PUBLISHERS, str(speeds)] if speeds else [PUBLISHERS]
    print(*(f"{number}: {note}" for note, number in notes.items()), *about, sep="\n")
    if output:
        write_csv(output / TABLE, [record(row, speeds) for row in rows])
        write_text(output / MARKDOWN, markdown(rows, columns, notes, about))
        print(f"Table:   {output / TABLE}, {output / MARKDOWN}")
        if draw(rows, speeds, output / PICTURE):
            print(f"Picture: {output / PICTURE}")


def measure_speeds(rows: Sequence[Complexity], config: CompareConfig) -> Speeds:
    """Times the inference of networks on random images, a few in turns and then the next ones."""
    batch_size, device = config.batch_size or BATCH_SIZE, find_machine(config.device, amp=False).device
    contenders = [
        Contender(row.model, partial(build, row.model, config.img_size), input_size_of(row.model, config.img_size),
                  mode="infer", precision="float32", batch_size=batch_size)
        for row in rows if row.cost
    ]  # fmt: skip
    outcomes: list[Outcome] = []
    while group := contenders[len(outcomes) : len(outcomes) + CONTENDERS_AT_A_TIME]:
        print(f"measuring {len(outcomes) + 1} to {len(outcomes) + len(group)} of {len(contenders)}", file=sys.stderr)
        outcomes += measure(group, device=device, rounds=ROUNDS, seconds=SECONDS)
    return Speeds(
        images_per_second={outcome.contender.name: outcome.images_per_second for outcome in outcomes},
        errors={outcome.contender.name: outcome.error for outcome in outcomes if outcome.error},
        batch_size=batch_size,
        threads=torch.get_num_threads(),
        hardware=hardware_name(device),
    )


def columns_of(speeds: Speeds | None, notes: Mapping[str, int]) -> Columns:
    """The columns of the table for people; `notes` has the number of each note."""
    measured: Columns = {"Images/s": lambda row: _digits(speeds.images_per_second.get(row.model))} if speeds else {}
    return {
        **TOP1,
        **SIZE,
        **PARTS,
        **measured,
        "M published": lambda row: _text(row.published.params_m),
        "GMACs published": lambda row: _text(row.published.gmacs),
        "Note": lambda row: _text(notes.get(row.note)),
    }


def record(row: Complexity, speeds: Speeds | None) -> dict[str, Any]:
    """A row of the CSV; what timm's results files have bears their names and units."""
    own, counted, published = own_size(row.model), row.cost, row.published
    cells = {
        "model": row.model,
        "img_size": _timm_size(own),
        "top1": row.top1_percent,
        "param_count": row.parameters / 1e6,
        "infer_img_size": _timm_size(row.img_size),
        "infer_gmacs": row.macs / 1e9,
        "t2t_gmacs": counted and counted.t2t_macs / 1e9,
        "attention_gmacs": counted and counted.attention_macs / 1e9,
        "mlp_gmacs": counted and counted.mlp_macs / 1e9,
        "other_gmacs": counted and counted.other_macs / 1e9,
        "infer_macts": counted and counted.activations / 1e6,
    }
    if speeds:
        cells |= {
            "infer_samples_per_sec": speeds.images_per_second.get(row.model),
            "infer_batch_size": speeds.batch_size,
            "threads": speeds.threads,
            "hardware": speeds.hardware,
        }
    return {
        **cells,
        "source": "counted" if counted else "published",
        "published_param_count": published.params_m,
        "published_gmacs": published.gmacs,
        "published_by": published.source,
        "title": published.title,
        "family": published.family,
        "note": row.note,
    }


def markdown(rows: Sequence[Complexity], columns: Columns, notes: Mapping[str, int], about: Iterable[str]) -> str:
    """The table for a README, with the notes below."""
    lines = [["Model", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[f"`{row.model}`", *(text(row) for text in columns.values())] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    numbered = "\n".join(f"{number}. {note}" for note, number in notes.items())
    return "\n\n".join(filter(None, [table, numbered, "\n".join([LEGEND, *about])])) + "\n"


def draw(rows: Sequence[Complexity], speeds: Speeds | None, path: Path) -> bool:
    """Draws published accuracy over costs, and returns whether there was a network of COMPARED to draw."""
    from t2t_vit.pictures.scatter import Point, Series, accuracy_figure  # matplotlib, where a picture is asked for

    points: dict[str, list[Point]] = {family: [] for family in LOOKS}
    below: list[str] = []
    for row in rows:
        title, top1_percent = row.published.title, row.top1_percent
        if not title or top1_percent is None:
            continue
        if top1_percent < LOWEST_TOP1_PERCENT:
            below.append(f"{title} {top1_percent:.1f} %")
            continue
        costs = {"GMACs": row.macs / 1e9, "million parameters": row.parameters / 1e6}
        if speeds and (speed := speeds.images_per_second.get(row.model)):
            costs["images per second"] = speed
        points[row.published.family].append(Point(title if row.cost else f"{title}*", top1_percent, costs))
    series = [Series(family, points[family], **look) for family, look in LOOKS.items() if points[family]]
    if not series:
        return False
    titles = dict.fromkeys(title for one in series for point in one.points for title in point.costs)
    notes = ["accuracy on ImageNet-1k as published"]
    notes += ["* costs published, not counted"] if any(not row.cost for row in rows) else []
    resized = {row.img_size for row in rows if row.cost and row.img_size != own_size(row.model)}
    notes += [f"costs at {height} x {width} pixels, accuracy at each network's own" for height, width in resized]
    notes += [f"not drawn: {', '.join(below)}"] if below else []
    notes += [f"{speeds.hardware}, float32, batch size {speeds.batch_size}"] if speeds else []
    accuracy_figure(series, list(titles), path, note="; ".join(notes))
    return True


def _timm_size(size: tuple[int, int]) -> int | tuple[int, int]:
    """A side where both are equal, as timm's results files have it."""
    height, width = size
    return height if height == width else size


def _digits(speed: float | None) -> str:
    return "" if speed is None else f"{speed:,.{1 if speed < 100 else 0}f}"


def _text(value: float | None) -> str:
    return "" if value is None else str(value)
