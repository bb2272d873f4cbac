"""Every figure: learning curves, confusion matrix, predicted images, speeds. None touches pyplot's global state."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from t2t_vit.inference.calibration import Reliability
from t2t_vit.pictures.colours import LIGHT, LINE_COLOURS
from t2t_vit.pictures.style import inline_svg, styled

TICKS_PERCENT = (99.99, 99.98, 99.95, 99.9, 99.8, 99.5, 99, 98, 95, 90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
MAX_COUNTED_CLASSES, MAX_NAMED_CLASSES = 20, 50  # of a matrix whose cells show numbers, whose rows show names
MATRIX_NAME_CHARACTERS = 18  # of a class name that fit beside the confusion matrix
CAPTION_CHARACTERS = 13  # of a class name that fit below a wide thumbnail
THUMBNAIL_PX = 128
EDGES = (0.01, 0.02, 0.98, 0.96)  # what a picture fills of its paper: left, bottom, width, height

Curves = Mapping[str, Mapping[int, float]]  # name -> step -> value


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


def draw_accuracies(axes: Axes, curves: Curves) -> None:
    """Draws accuracies in percent over the steps, a line for each name, with a dot at its best."""
    errors = [100 - np.array([*curve.values()], float) for curve in curves.values()]
    floor = scale_by_error(axes, np.concatenate(errors))
    for (name, curve), line in zip(curves.items(), errors, strict=True):
        best = int(line.argmin())
        step, top1 = [*curve.items()][best]
        _draw_line(axes, [*curve], np.maximum(line, floor), f"{name}: {top1:.2f} % at step {step:,}", dots=[best])
    _finish_curves(axes, curves)


def scale_by_error(axes: Axes, together: np.ndarray) -> float:
    """Makes the vertical axis one of accuracies that is logarithmic in the error.

    99 % stands as far above 96.7 % as 90 % above 67 %.

    Args:
        together: all errors to be drawn, in percent.

    Returns:
        The error at which an error of zero is drawn, half of the smallest other one; where none is zero, the smallest.
    """
    floor = min(together[together > 0], default=1.0)
    ticks: dict[float, str] = {}
    if min(together) <= 0:
        floor /= 2
        ticks[floor] = "100"
    bottom, top = min(max(1.1 * max(together), 2.5 * floor), 100), floor / 1.15  # two ticks are at most 2.5 apart
    for tick in TICKS_PERCENT:
        error = 100 - tick
        if top <= error <= bottom and all(math.log(error / other, bottom / top) > 0.07 for other in ticks):
            ticks[error] = f"{tick:g}"
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.set_yticks([*ticks], [*ticks.values()])
    axes.set_yticks([], minor=True)
    return float(floor)


def draw_losses(axes: Axes, curves: Curves) -> None:
    """Draws losses over the steps, a line for each name; those that are not finite are left out."""
    for name, curve in curves.items():
        values = np.array([*curve.values()], float)
        line = np.where(np.isfinite(values), values, np.nan)
        _draw_line(axes, [*curve], line, f"{name}: {values[-1]:.4g} at the end", dots=[0] if len(line) == 1 else [])
    axes.set_ylim(0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    _finish_curves(axes, curves)


def _draw_line(axes: Axes, steps: list[int], line: np.ndarray, label: str, *, dots: list[int]) -> None:
    marker = "o" if dots else None
    axes.plot(steps, line, label=label, marker=marker, markevery=dots, clip_on=False)


def _finish_curves(axes: Axes, curves: Curves) -> None:
    """Adds the axis of the steps, and a legend above, where no line is."""
    steps = [step for curve in curves.values() for step in curve]
    axes.set_xlim(min(steps), max(*steps, min(steps) + 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("steps")
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), borderpad=0, borderaxespad=0, frameon=False)


@styled
def curves_svg(title: str, draw: Callable[[Axes, Curves], None], curves: Curves) -> Markup:
    """Returns learning curves for half of a page's width; `draw` is one of the functions above."""
    figure = Figure(figsize=(5.6, 3.5), layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    draw(axes, curves)
    legend = ". ".join(axes.get_legend_handles_labels()[1])
    last_step = max(map(max, curves.values()))
    return inline_svg(figure, draw.__name__, f"{title}, over {last_step:,} steps. {legend}")


def sheet_shape(labels: Iterable[str]) -> tuple[int, int]:
    """The number of thumbnails on a sheet, (columns, rows): fewer and wider ones if labels are long."""
    return (5, 3) if any(len(label) > 3 for label in labels) else (8, 5)


def draw_sheet(figure: SubFigure, samples: Sequence[Sample]) -> None:
    """Draws thumbnails in rows with their predictions below; wrong ones are framed and followed by their label."""
    columns, rows = sheet_shape([text for sample in samples for text in (sample.predicted, sample.label)])
    wide = columns == 5
    grid = figure.subplots(rows, columns)
    for axes in grid.flat[len(samples) :]:
        axes.axis("off")
    for axes, sample in zip(grid.flat, samples, strict=False):
        axes.imshow(ImageOps.fit(sample.image.convert("RGB"), (THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC))
        wrong = sample.predicted != sample.label
        captions = [sample.predicted, f"is {sample.label}"] if wrong else [sample.predicted]
        colour, weight = ("wrong", "bold") if wrong else ("ink", "normal")
        caption = ("\n" if wide else ", ").join(_cut(text, CAPTION_CHARACTERS) for text in captions)
        axes.set_xlabel(caption, size=9 if wide else 11, color=LIGHT[colour], weight=weight)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=wrong, color=LIGHT["wrong"], linewidth=3)


def _cut(name: str, num_characters: int) -> str:
    """A long name without its middle, since names often differ at the end."""
    half = num_characters // 2
    return name if len(name) <= num_characters else f"{name[: num_characters - half - 1]}…{name[-half:]}"


@styled
def comparison_figure(
    curves: Curves,
    samples: Sequence[Sample],
    path: str | os.PathLike[str],
    *,
    sheet_title: str = "Predictions",
    sheet_note: str = "",
) -> None:
    """Writes a picture: learning curves on the left, a sheet of predicted images on the right.

    Args:
        curves: for each model's name, its top-1 in percent by the step of the evaluation.
        samples: the images of the sheet, in reading order.
        sheet_title: the line above the sheet.
        sheet_note: a fainter line below that.
    """
    figure = Figure(figsize=(11, 5.2), dpi=160, layout=ConstrainedLayoutEngine(rect=EDGES))
    left, right = figure.subfigures(1, 2, wspace=0.04, squeeze=False)[0]
    draw_accuracies(left.add_subplot(), curves)
    draw_sheet(right, samples)
    notes = (
        (left, "Top-1 on validation images, %", "a dot marks the best; the scale is the error's logarithm"),
        (right, sheet_title, sheet_note),
    )
    for part, title, note in notes:
        part.suptitle(f"{title}\n", x=0.02, ha="left", size=13.5, weight="bold")  # leaves a line for the note
        part.text(0.02, 0.935, note, va="top", size=10, color=LIGHT["faint"])
    figure.savefig(path)


@styled
def confusion_svg(labels: Sequence[int], predicted: Sequence[int], names: Sequence[str]) -> Markup:
    """Returns the confusion matrix: a row for each class, a column for each predicted class.

    Args:
        labels: the class of each image.
        predicted: its predicted class.
        names: the name of each class.
    """
    from sklearn.metrics import confusion_matrix  # as slow to import as all the rest

    size = len(names)
    counts = confusion_matrix(labels, predicted, labels=range(size))
    counted, named = size <= MAX_COUNTED_CLASSES, size <= MAX_NAMED_CLASSES
    side_inches = size * (34 if counted else 14 if named else max(3, 600 // size)) / 72
    figure = Figure(figsize=(side_inches, side_inches), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), facecolor=LIGHT["card"])
    rows, columns = counts.nonzero()
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[rows, columns]
    cells = list(zip(rows.tolist(), columns.tolist(), 0.12 + 0.88 * np.sqrt(shares), strict=True))  # few is not none
    colours = [to_rgba(LIGHT["line0" if row == column else "wrong"], strength) for row, column, strength in cells]
    tips = [f"{names[row]} taken for {names[column]}: {counts[row, column]:,}" for row, column, _ in cells]
    axes.bar(columns, 0.94, width=0.94, bottom=rows - 0.47, color=colours, label=tips, clip_on=False)
    for row, column, strength in cells if counted else ():
        colour, weight = ("paper", "bold") if strength > 0.55 else ("ink", "normal")
        axes.text(column, row, str(counts[row, column]), color=LIGHT[colour], weight=weight, ha="center", va="center")
    shown = [_cut(name, MATRIX_NAME_CHARACTERS) for name in names] if named else []
    upright = counted and max(map(len, shown)) <= 3
    turned: dict[str, Any] = (
        {} if upright else {"rotation": 90, "rotation_mode": "anchor", "ha": "left", "va": "center"}
    )
    axes.set_xticks(range(len(shown)), shown, **turned)
    axes.set_yticks(range(len(shown)), shown)
    axes.tick_params(labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    return inline_svg(figure, "confusions", f"Confusion matrix of {size} classes")


@styled
def reliability_svg(before: Reliability, after: Reliability) -> Markup:
    """Returns how often answers are right over how sure they are, for half of a page's width."""
    figure = Figure(figsize=(5.6, 3.5), layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color=LIGHT["faint"], linewidth=1, linestyle="--")
    labels = []
    for name, found in {"without temperature": before, "with temperature": after}.items():
        filled = found.counts > 0
        sure = 100 * found.confidences[filled] / found.counts[filled]
        right = 100 * found.right[filled] / found.counts[filled]
        labels.append(f"{name}: calibration error {found.error_percent:.2f} %")
        axes.plot(sure, right, marker="o", markersize=5, label=labels[-1])
    axes.set(xlim=(0, 102), ylim=(0, 102), xlabel="confidence, %", ylabel="right, %")
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), borderpad=0, borderaxespad=0, frameon=False)
    return inline_svg(figure, "reliability", f"Right answers over confidence. {'. '.join(labels)}")


@styled
def embedding_svg(points: np.ndarray, labels: Sequence[int], is_right: Sequence[bool], names: Sequence[str]) -> Markup:
    """Returns a map of images: a point for each, in the colour of its class, and the name of a class amid its points.

    Args:
        points: places, (N, 2).
        labels: the class of each image.
        is_right: whether its prediction is right; mistakes are crosses.
        names: the name of each class; of many classes none is written.
    """
    figure = Figure(figsize=(7.4, 5.6), facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1))
    classes, right = np.asarray(labels), np.asarray(is_right)
    for place, label in enumerate(np.unique(classes).tolist()):
        own, colour = classes == label, LINE_COLOURS[place % len(LINE_COLOURS)]
        axes.scatter(points[own & right, 0], points[own & right, 1], s=14, color=colour, alpha=0.55, linewidths=0)
    axes.scatter(points[~right, 0], points[~right, 1], s=34, color=LIGHT["wrong"], marker="x", linewidths=1.4)
    if len(names) <= MAX_COUNTED_CLASSES:
        for label in np.unique(classes).tolist():
            x, y = np.median(points[classes == label], axis=0)
            name = _cut(names[label], MATRIX_NAME_CHARACTERS)
            axes.text(x, y, name, weight="bold", ha="center", va="center", size=12, color=LIGHT["ink"])
    axes.axis("off")
    about = f"Map of {len(points):,} images of {len(names):,} classes, {int((~right).sum()):,} of them mistakes"
    return inline_svg(figure, "embeddings", about)


@styled
def speed_figure(panels: Mapping[str, Sequence[Bar]], path: str | os.PathLike[str], *, note: str = "") -> None:
    """Writes a PNG or SVG with a panel of bars for each title, and a faint note below."""
    heights = [places_of(bars)[-1] + 1 for bars in panels.values()]
    figure = Figure(
        figsize=(11, 0.42 * sum(heights) + 0.9 * len(panels) + 0.4),
        dpi=160,
        layout=ConstrainedLayoutEngine(rect=EDGES),
    )
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
    for axes, (title, bars) in zip(grid.flat, panels.items(), strict=True):
        axes.set_title(f"{title}, images per second", loc="left", size=13.5, weight="bold")
        draw_bars(axes, bars)
    compared = any(bar.ratio not in (None, 1.0) for bars in panels.values() for bar in bars)
    about = "bars: medians, lines: lowest and highest round" + "; x: times the blue bar above" * compared
    figure.supxlabel(f"{note}; {about}", x=0.01, ha="left", size=10, color=LIGHT["faint"])
    figure.savefig(path, metadata={"Date": None})


def places_of(bars: Sequence[Bar]) -> list[float]:
    """Where each bar stands. A network of ratio 1 begins a group of those that are compared with it, below a gap."""
    places: list[float] = []
    for bar in bars:
        gap = 1.6 if bar.ratio == 1.0 else 1.0
        places.append(places[-1] + gap if places else 0.0)
    return places


def draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    """Draws a bar for each network and setting, with its spread and speed, blue where others are compared with it."""
    places = places_of(bars)
    columns = ("lowest", "images_per_second", "highest")
    lowest, speeds, highest = (np.array([getattr(bar, column) or 0.0 for bar in bars]) for column in columns)
    drawn = axes.barh(
        places, speeds, 0.62, xerr=(speeds - lowest, highest - speeds),
        color=[LIGHT["line0" if bar.ratio == 1.0 else "line5"] for bar in bars], ecolor=LIGHT["ink"],
        error_kw={"linewidth": 1.2},
    )  # fmt: skip
    ratios = ["" if bar.ratio in (None, 1.0) else f"   {bar.ratio:.2f} x" for bar in bars]
    texts = [bar.error or f"{speed:,.4g}{ratio}" for bar, speed, ratio in zip(bars, speeds, ratios, strict=True)]
    axes.set_yticks(places, [f"{bar.name}   {bar.about}".rstrip() for bar in bars])
    labels = zip(bars, axes.get_yticklabels(), axes.bar_label(drawn, texts, padding=8), strict=True)
    for bar, name, text in labels:
        name.set_color(LIGHT["line0" if bar.ratio == 1.0 else "ink"])
        text.set_color(LIGHT["wrong" if bar.error else "ink"])
    axes.set(xticks=[], ylim=(places[-1] + 0.5, -0.5))
    axes.spines[:].set_visible(False)
