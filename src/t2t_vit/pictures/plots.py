"""Pictures of finished runs, drawn without touching matplotlib's global state."""

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from t2t_vit.pictures.charts import ErrorScale

# Paul Tol's vibrant palette: told apart with every common kind of colour blindness. Magenta is kept for mistakes.
LINE_COLOURS = ("#0077BB", "#EE7733", "#009988", "#33BBEE", "#CC3311", "#555555")
WRONG_COLOUR = "#EE3377"
INK, FAINT_INK, GRID_COLOUR = "#222222", "#767676", "#E4E4E4"
NAME_CHARACTERS = 16  # of a model's name that fit beside the curves at full size
LABEL_CHARACTERS = 13  # of a class name that fit below a wide thumbnail
THUMBNAIL_PX = 128


@dataclass(frozen=True)
class Sample:
    """An image with the class the network gave it and the class it has."""

    image: Image.Image
    predicted: str
    label: str


@dataclass(frozen=True)
class Bar:
    """A network's speed in one setting, which `about` names; None where it failed, and `error` says why."""

    name: str
    about: str
    images_per_second: float | None
    lowest: float | None
    highest: float | None
    ratio: float | None
    error: str


def comparison_figure(
    curves: Mapping[str, Sequence[float]],
    samples: Sequence[Sample],
    path: str | os.PathLike[str],
    *,
    sheet_title: str = "Predictions",
    sheet_note: str = "",
) -> None:
    """Write a picture: learning curves on the left, a sheet of predicted images on the right.

    Args:
        curves: for each model's name, its top-1 in percent after each epoch.
        samples: the images of the sheet, in reading order.
        path: the PNG to write.
        sheet_title: the line above the sheet.
        sheet_note: a fainter line below that.
    """
    figure = Figure(figsize=(11, 5.2), dpi=160, facecolor="white")
    sheet_left = 0.532
    draw_curves(figure.add_axes((0.052, 0.105, 0.345, 0.745)), curves)
    draw_sheet(figure.add_axes((sheet_left, 0.02, 0.985 - sheet_left, 0.83)), samples)
    headings = (
        (0.013, "Top-1 on validation images, %", "a dot marks the best epoch; the scale is the error's logarithm"),
        (sheet_left, sheet_title, sheet_note),
    )
    for x, title, note in headings:
        figure.text(x, 0.945, title, size=13.5, weight="bold", color=INK)
        figure.text(x, 0.9, note, size=10, color=FAINT_INK)
    figure.savefig(path, format="png")


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    """One line per model, named at its end with its best accuracy; the height is the error's logarithm."""
    scale = ErrorScale(curves.values())
    ticks = scale.ticks(gap=0.055)
    axes.set_ylim(0, 1)
    axes.set_yticks([height for height, _ in ticks], [text for _, text in ticks])
    axes.set_xlim(1, max(2, *map(len, curves.values())))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("epochs", size=11, color=FAINT_INK)
    axes.grid(axis="y", color=GRID_COLOUR, linewidth=0.8)
    axes.tick_params(length=0, labelsize=11, labelcolor=FAINT_INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOUR)

    for index, top1 in enumerate(curves.values()):
        line = [scale.height(value) for value in top1]
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        axes.plot(range(1, len(line) + 1), line, color=colour, linewidth=2.4, solid_capstyle="round", clip_on=False)
        axes.plot(1 + line.index(max(line)), max(line), "o", color=colour, markersize=7.5, clip_on=False)
    ends = spread([scale.height(max(top1)) for top1 in curves.values()], gap=0.13)
    for index, ((name, top1), height) in enumerate(zip(curves.items(), ends, strict=True)):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        name_size = 11 * min(1, NAME_CHARACTERS / len(name))
        for text, text_height, size, weight in (
            (f"{max(top1):.1f} %", height + 0.028, 14, "bold"),
            (name, height - 0.03, name_size, "normal"),
        ):
            axes.text(
                1.035, text_height, text, size=size, weight=weight, color=colour, va="center", transform=axes.transAxes
            )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved as little as keeps neighbours `gap` apart, none pushed below 0; in the order given."""
    order = sorted(range(len(heights)), key=lambda index: -heights[index])
    placed = list(heights)
    for above, below in itertools.pairwise(order):
        placed[below] = min(placed[below], placed[above] - gap)
    lowest = 0.0
    for index in reversed(order):
        placed[index] = max(placed[index], lowest)
        lowest = placed[index] + gap
    return placed


def sheet_shape(labels: Iterable[str]) -> tuple[int, int]:
    """How many thumbnails fill a sheet, (columns, rows): fewer and wider ones where the labels are long."""
    return (5, 3) if any(len(label) > 3 for label in labels) else (8, 5)


def draw_sheet(axes: Axes, samples: Sequence[Sample]) -> None:
    """Thumbnails in rows, below each what was predicted; the wrong ones framed and followed by what they are."""
    num_columns, _ = sheet_shape([text for sample in samples for text in (sample.predicted, sample.label)])
    wide = num_columns == 5
    row_height = 1.42 if wide else 1.3
    for index, sample in enumerate(samples):
        row, column = divmod(index, num_columns)
        left, top, side = column + 0.04, row * row_height + 0.04, 0.92
        thumbnail = ImageOps.fit(sample.image.convert("RGB"), (THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC)
        axes.imshow(np.asarray(thumbnail), extent=(left, left + side, top + side, top))
        wrong = sample.predicted != sample.label
        if wrong:
            axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=WRONG_COLOUR, linewidth=3))
        caption = _cut(sample.predicted)
        if wrong:
            caption += "\n" + _cut(f"is {sample.label}") if wide else f", is {sample.label}"
        axes.text(
            column + 0.5,
            top + side + 0.06,
            caption,
            ha="center",
            va="top",
            linespacing=1.05,
            size=9 if wide else 11,
            weight="bold" if wrong else "normal",
            color=WRONG_COLOUR if wrong else INK,
        )
    axes.set_xlim(0, num_columns)
    axes.set_ylim(max(1, -(-len(samples) // num_columns)) * row_height, 0)
    axes.set_aspect("equal", anchor="NW")
    axes.axis("off")


def speed_figure(panels: Mapping[str, Sequence[Bar]], path: str | os.PathLike[str], *, note: str = "") -> None:
    """Write a picture: below each other, for each title a panel of bars.

    Args:
        panels: title -> its bars, from the top.
        path: the PNG or SVG to write.
        note: a faint line below all.
    """
    heights = [0.42 * len(bars) + 0.9 for bars in panels.values()]
    total = sum(heights) + 0.4
    figure = Figure(figsize=(11, total), dpi=160, facecolor="white")
    names = dict.fromkeys(bar.name for bars in panels.values() for bar in bars)
    colours = dict(zip(names, itertools.cycle(LINE_COLOURS)))
    top = total
    for (title, bars), height in zip(panels.items(), heights, strict=True):
        figure.text(0.013, (top - 0.35) / total, f"{title}, images per second", size=13.5, weight="bold", color=INK)
        draw_bars(figure.add_axes((0.36, (top - height) / total, 0.5, (height - 0.6) / total)), bars, colours)
        top -= height
    figure.text(
        0.013, 0.15 / total, f"{note}; bars: medians, lines: lowest and highest round", size=10, color=FAINT_INK
    )
    figure.savefig(path)


def draw_bars(axes: Axes, bars: Sequence[Bar], colours: Mapping[str, str]) -> None:
    """A bar for each network and setting, with its spread; at its end the speed, and the ratio to the baseline."""
    longest = max((bar.highest or 0.0 for bar in bars), default=0.0) or 1.0
    for row, bar in enumerate(bars):
        about = f"{bar.name}   {bar.about}".rstrip()
        axes.text(-0.02 * longest, row, about, ha="right", va="center", size=9.5, color=colours[bar.name])
        if bar.images_per_second is None or bar.lowest is None or bar.highest is None:
            axes.text(0.01 * longest, row, bar.error, va="center", size=9, color=WRONG_COLOUR)
            continue
        axes.barh(row, bar.images_per_second, height=0.62, color=colours[bar.name])
        axes.plot((bar.lowest, bar.highest), (row, row), color=INK, linewidth=1.2)
        ratio = "" if bar.ratio is None else f"   x {bar.ratio:.2f}"
        axes.text(
            bar.highest + 0.015 * longest, row, f"{bar.images_per_second:,.4g}{ratio}", va="center", size=10, color=INK
        )
    axes.set_xlim(0, longest)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.axis("off")


def _cut(label: str) -> str:
    """The label, cut to what fits below a thumbnail."""
    return label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"
