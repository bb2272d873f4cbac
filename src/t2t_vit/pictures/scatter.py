"""Accuracy over what networks cost, a panel for each kind of cost, as in figure 1 of the paper."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import NullLocator

from t2t_vit.pictures.colours import LIGHT, LINE_COLOURS
from t2t_vit.pictures.figures import EDGES
from t2t_vit.pictures.style import styled

MARKERS = "osD^vP"
MARKER_SIZE_PT = 6.5
NEAR_PT, FAR_PT = (7, 11), (18, 26, 36, 48, 60)  # of a label from its point, without and with a line
LABEL_DIRECTIONS = (90, 270, 0, 180, 45, 135, 315, 225, 20, 160, 200, 340)  # degrees, in the order of preference
HORIZONTAL: dict[int, Literal["left", "center", "right"]] = {-1: "right", 0: "center", 1: "left"}
VERTICAL: dict[int, Literal["bottom", "center", "top"]] = {-1: "top", 0: "center", 1: "bottom"}
TICKS = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]


@dataclass(frozen=True)
class Point:
    """A network with its accuracy, and its costs by the titles of their panels; it is not drawn where one is missing.

    Attributes:
        label: what stands beside the point if there is room.
    """

    label: str
    top1_percent: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Series:
    """Networks that are drawn alike.

    Attributes:
        look: number of the colour and the marker; a hollow series may share it with another.
        connected: whether a line joins the points, in their order.
    """

    name: str
    points: Sequence[Point]
    look: int
    hollow: bool = False
    connected: bool = False


@styled
def accuracy_figure(
    series: Sequence[Series], titles: Sequence[str], path: str | os.PathLike[str], *, note: str = ""
) -> None:
    """Writes a picture with a panel for each title, the legend beside or below, and a faint note at the bottom."""
    columns = 2
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(11, 5.6 * rows + 0.9), dpi=160, layout=ConstrainedLayoutEngine(rect=EDGES, hspace=0.06))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(titles) :]:
        axes.axis("off")
    drawn = list(zip(grid.flat, titles, strict=False))
    for axes, title in drawn:
        axes.set_title("Top-1, %", loc="left", size=11, color=LIGHT["faint"])
        draw_series(axes, series, title)
        axes.tick_params(labelleft=True)
    handles = [_legend_entry(one) for one in series]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, columnspacing=1.4)
    figure.supxlabel(note, x=0.01, ha="left", size=10, color=LIGHT["faint"])
    figure.draw_without_rendering()  # settles the layout, on which the places of labels depend
    figure.set_layout_engine("none")
    for axes, title in drawn:
        label_points(axes, series, title)
    figure.savefig(path)


def draw_series(axes: Axes, series: Sequence[Series], title: str) -> None:
    """Draws accuracies over one kind of cost, on a logarithmic axis with round numbers."""
    axes.set_xscale("log")
    for one in series:
        x, y = _costs(one, title)
        axes.plot(x, y, **_style(one), linestyle="-" if one.connected else "none", linewidth=2, clip_on=False)
    costs = [cost for one in series for cost in _costs(one, title)[0]]
    low, high = min(costs) / 1.9, max(costs) * 1.6
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.08)
    axes.set_xlabel(title)
    axes.grid(axis="y")


def label_points(axes: Axes, series: Sequence[Series], title: str) -> None:
    """Writes labels beside points where nothing is covered; those without room are left out.

    Connected series come first, hollow ones last. Of a series come first the labels that have room beside their points,
    then those that stand further off with a line to the point, which hollow series lack. The figure's layout must be
    settled.
    """
    dots = np.concatenate([_places(axes, one, title) for one in series])  # (N, 2), in pixels
    lines = [_along(_places(axes, one, title)) for one in series if one.connected]
    air = 0.7 * MARKER_SIZE_PT * _pixels_per_point(axes)
    taken = np.concatenate([_boxes_around(dots, air), *(_boxes_around(line, 2) for line in lines)])
    lined = [each for each in series if each.connected]
    solid = [each for each in series if not each.connected and not each.hollow]
    hollow = [each for each in series if not each.connected and each.hollow]
    labelled: set[str] = set()
    for some, distances in itertools.chain(itertools.product((lined, solid), (NEAR_PT, FAR_PT)), [(hollow, NEAR_PT)]):
        for one, point in [(each, point) for each in some for point in each.points]:
            if title not in point.costs or point.label in labelled:
                continue
            text = axes.annotate(
                point.label, (point.costs[title], point.top1_percent), (0, 0), textcoords="offset points", size=9,
                color=_colour(one), va="bottom",
            )  # fmt: skip
            found = _free_place(axes, text, taken, dots, distances)
            if found is None:
                text.remove()
                continue
            offset, covered = found
            taken = np.concatenate([taken, covered])
            labelled.add(point.label)
            text.set_position(offset)
            text.set_horizontalalignment(HORIZONTAL[_side(offset[0])])
            text.set_verticalalignment(VERTICAL[_side(offset[1])])
            if distances == FAR_PT:
                look = {"arrowstyle": "-", "color": _colour(one), "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4}
                axes.annotate("", text.xy, offset, textcoords="offset points", arrowprops=look)


def _free_place(
    axes: Axes, text: Annotation, taken: np.ndarray, dots: np.ndarray, distances: tuple[int, ...]
) -> tuple[tuple[float, float], np.ndarray] | None:
    """The nearest free place of a label, in points from its dot, with the boxes that label and line cover there.

    Args:
        text: the label, whose place is that of its dot.
        taken: boxes that must not be covered, (N, 4), in pixels.
        dots: places of all dots, (N, 2), in pixels.
        distances: NEAR_PT, or FAR_PT with a line.
    """
    frame, extent, scale = axes.get_window_extent().padded(4), text.get_window_extent(), _pixels_per_point(axes)
    size, place = np.array([extent.width, extent.height]) + 2, axes.transData.transform(text.xy)
    around = _boxes_around(place[None], 0.7 * MARKER_SIZE_PT * scale)
    strangers = taken[~_overlaps(around, taken)[0]]  # the line may touch what touches its own dot
    for offset in _offsets(distances):
        sides = np.array([_side(offset[0]), _side(offset[1])])
        middle = place + scale * np.array(offset) + sides * size / 2
        box = np.concatenate([middle - size / 2, middle + size / 2])
        if not (frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1):
            continue
        if _overlaps(box[None], taken).any():
            continue
        if distances == FAR_PT:
            start = np.clip(place, box[:2], box[2:])
            line = _boxes_around(_along(np.stack([start + 0.15 * (place - start), place])), 2)
            if not _overlaps(line, strangers).any():
                return offset, np.concatenate([box[None], line])
        else:
            reaches = np.linalg.norm(dots - np.clip(dots, box[:2], box[2:]), axis=1)
            if math.dist(place, np.clip(place, box[:2], box[2:])) <= reaches.min() + 1:  # else it seems another's
                return offset, box[None]
    return None


def _costs(one: Series, title: str) -> tuple[list[float], list[float]]:
    points = [point for point in one.points if title in point.costs]
    return [point.costs[title] for point in points], [point.top1_percent for point in points]


def _places(axes: Axes, one: Series, title: str) -> np.ndarray:
    """Where the points of a series are, (N, 2), in pixels."""
    return axes.transData.transform(np.column_stack(_costs(one, title)))


def _pixels_per_point(axes: Axes) -> float:
    figure = axes.get_figure()
    assert figure is not None
    return figure.dpi / 72


def _along(places: np.ndarray) -> np.ndarray:
    """Places on the line through these, (N, 2), 6 pixels apart."""
    parts = [
        start + np.arange(0, 1, 6 / max(6, math.dist(start, end)))[:, None] * (end - start)
        for start, end in itertools.pairwise(places)
    ]
    return np.concatenate(parts) if parts else places


def _boxes_around(places: np.ndarray, reach: float) -> np.ndarray:
    """Boxes that reach so far around places, (N, 4): left, bottom, right, top."""
    return np.concatenate([places - reach, places + reach], axis=1)


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each of N boxes overlaps each of M others, (N, M)."""
    one, other = boxes[:, None], others[None]
    return np.all((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:]), axis=-1)


def _offsets(distances: Iterable[int]) -> Iterator[tuple[float, float]]:
    """Places of a label, in points from its dot, the nearest first."""
    for distance in distances:
        for degrees in LABEL_DIRECTIONS:
            yield distance * math.cos(math.radians(degrees)), distance * math.sin(math.radians(degrees))


def _side(offset: float) -> int:
    """Where a label stands along an axis: before its dot, at its middle, or behind it."""
    return 0 if abs(offset) < 1 else 1 if offset > 0 else -1


def _colour(one: Series) -> str:
    return LINE_COLOURS[one.look % len(LINE_COLOURS)]


def _style(one: Series) -> dict[str, Any]:
    colour = _colour(one)
    return {
        "color": colour,
        "marker": MARKERS[one.look % len(MARKERS)],
        "markerfacecolor": LIGHT["paper"] if one.hollow else colour,
        "markersize": MARKER_SIZE_PT,
        "zorder": 3,
    }


def _legend_entry(one: Series) -> Line2D:
    return Line2D([], [], **_style(one), linestyle="-" if one.connected else "none", linewidth=2, label=one.name)
