"""Accuracy against the number of labels, a line for each model."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullLocator

from t2t_vit.pictures.colours import LIGHT, LINE_COLOURS
from t2t_vit.pictures.figures import EDGES, scale_by_error
from t2t_vit.pictures.style import styled

Accuracies = Mapping[str, Mapping[int, Sequence[float]]]
"""For each model and number of labels the accuracies of its runs in percent."""
APART = 0.055
"""Heights of the axis by which the names beside the lines stand apart at least."""


class _Line:
    """The runs of one model.

    Attributes:
        counts: numbers of labels, rising.
        errors: for each number the errors of its runs in percent.
        means, spreads: mean and standard deviation of these.
    """

    def __init__(self, of_model: Mapping[int, Sequence[float]]) -> None:
        self.counts = sorted(of_model)
        self.errors = [100 - np.array(of_model[count], float) for count in self.counts]
        self.means = np.array([errors.mean() for errors in self.errors])
        self.spreads = np.array([errors.std(ddof=1) if len(errors) > 1 else 0.0 for errors in self.errors])

    def band(self, least: float) -> tuple[np.ndarray, np.ndarray]:
        """The errors a standard deviation below and above the means, from `least` percent to 100."""
        low, high = (np.clip(self.means + side * self.spreads, least, 100) for side in (-1, 1))
        return low, high


@styled
def labels_figure(
    accuracies: Accuracies, path: str | os.PathLike[str], *, title: str = "Top-1, %", note: str = ""
) -> None:
    """Writes a picture of accuracy against labels, with a bold line above it and a fainter one below that."""
    figure = Figure(figsize=(8, 5), dpi=160, layout=ConstrainedLayoutEngine(rect=EDGES))
    draw_label_curves(figure.add_subplot(), accuracies)
    figure.suptitle(f"{title}\n", x=0.02, ha="left", size=13.5, weight="bold")  # leaves a line for the note
    figure.text(0.02, 0.93, note, va="top", size=10, color=LIGHT["faint"])
    figure.savefig(path)


def draw_label_curves(axes: Axes, accuracies: Accuracies) -> None:
    """Draws a line through the means of each model, one standard deviation around it, and a faint dot for each run."""
    lines = [_Line(of_model) for of_model in accuracies.values()]
    every = np.concatenate([errors for line in lines for errors in line.errors])
    least = min(every[every > 0], default=1.0) / 2
    bands = [line.band(least) for line in lines]
    floor = scale_by_error(axes, np.concatenate([every, *itertools.chain(*bands)]))
    for line, band, colour in zip(lines, bands, itertools.cycle(LINE_COLOURS)):
        axes.fill_between(line.counts, *band, color=colour, alpha=0.14, linewidth=0)
        axes.plot(line.counts, np.maximum(line.means, floor), color=colour, marker="o", clip_on=False)
        for count, errors in zip(line.counts, line.errors, strict=True):
            dots = np.maximum(errors, floor)
            axes.scatter([count] * len(dots), dots, s=16, color=colour, alpha=0.4, linewidths=0, clip_on=False)
    ends = {model: float(max(line.means[-1], floor)) for model, line in zip(accuracies, lines, strict=True)}
    _label_counts(axes, sorted({count for of_model in accuracies.values() for count in of_model}))
    for (model, height), colour in zip(_apart(axes, ends).items(), itertools.cycle(LINE_COLOURS)):
        axes.annotate(
            model, (1, height), xycoords="axes fraction", xytext=(8, 0), textcoords="offset points",
            color=colour, va="center", weight="bold", annotation_clip=False,
        )  # fmt: skip


def _label_counts(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    margin = (counts[-1] / counts[0]) ** 0.02 if len(counts) > 1 else 1.5
    axes.set_xlim(counts[0] / margin, counts[-1] * margin)
    shown: list[int] = []
    for count in reversed(counts):
        if not shown or math.log(shown[-1] / count, counts[-1] / counts[0]) > 0.07:
            shown.append(count)
    axes.set_xticks(shown, [f"{count:,}" for count in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("labels")
    axes.grid(axis="y")


def _apart(axes: Axes, ends: Mapping[str, float]) -> dict[str, float]:
    """Heights of the models' names from 0 to 1, near the ends of their lines, such that none stands on another."""
    to_height = axes.transData + axes.transAxes.inverted()
    heights = {model: float(to_height.transform((1, error))[1]) for model, error in ends.items()}
    for _ in range(50):
        ordered = sorted(heights, key=heights.__getitem__)
        for below, above in itertools.pairwise(ordered):
            if (missing := APART - (heights[above] - heights[below])) > 1e-6:
                heights[above] += missing / 2
                heights[below] -= missing / 2
    return {model: heights[model] for model in ends}
