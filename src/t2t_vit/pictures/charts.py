"""Charts of a run's epochs as SVG, and where an accuracy stands in any of our pictures."""

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.ticker import MaxNLocator

TICKS_PERCENT = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.98, 99.99)


class ErrorScale:
    """Heights by the error's logarithm: 99 % stands as far above 96.7 % as 90 % above 67 %.

    No error at all has no logarithm: it is drawn at half of the smallest error seen.

    Args:
        columns: the accuracies to be drawn, in percent.
    """

    def __init__(self, columns: Iterable[Sequence[float]]) -> None:
        errors = [100 - top1 for column in columns for top1 in column]
        self._perfect = min(errors) <= 0
        self._floor = min((error for error in errors if error > 0), default=1.0) / (2 if self._perfect else 1)
        self._top, self._bottom = self._floor / 1.15, min(max(*errors, self._floor) * 1.1, 100.0)

    def height(self, top1: float) -> float:
        """Of an accuracy in percent: 0 at the bottom, 1 at the top."""
        error = 100 - top1 if top1 < 100 else self._floor
        return math.log(self._bottom / error) / math.log(self._bottom / self._top)

    def ticks(self, gap: float) -> list[tuple[float, str]]:
        """Heights and the accuracies that stand there, from the best down, none nearer than the gap to another."""
        found = [(self.height(100), "100")] if self._perfect else []
        for tick in reversed(TICKS_PERCENT):
            height = self.height(tick)
            if self._top <= 100 - tick <= self._bottom and (not found or found[-1][0] - height > gap):
                found.append((height, f"{tick:g}"))
        return found


def accuracy_chart(columns: Mapping[str, Sequence[float]]) -> str:
    """Lines of accuracies in percent, each with a dot at its best epoch."""
    scale = ErrorScale(columns.values())
    best = {name: max(range(len(column)), key=column.__getitem__) for name, column in columns.items()}
    told = {name: f"{columns[name][epoch]:.2f} % in epoch {epoch + 1}" for name, epoch in best.items()}
    heights = {name: list(map(scale.height, column)) for name, column in columns.items()}
    return _chart("Top-1 on validation images, %", heights, scale.ticks(gap=0.09), told, best)


def loss_chart(columns: Mapping[str, Sequence[float]]) -> str:
    """Lines of losses; those that are not finite are left out."""
    highest = max((loss for column in columns.values() for loss in column if math.isfinite(loss)), default=1.0) or 1.0
    ticks = [
        tick for tick in MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(0, highest) if tick <= 1.02 * highest
    ]
    heights = {name: [loss / highest / 1.02 for loss in column] for name, column in columns.items()}
    told = {name: f"{column[-1]:.4g} at the end" for name, column in columns.items()}
    return _chart("Loss", heights, [(tick / highest / 1.02, f"{tick:g}") for tick in ticks], told, {})


def _chart(
    title: str,
    heights: Mapping[str, Sequence[float]],
    ticks: Iterable[tuple[float, str]],
    told: Mapping[str, str],
    marked: Mapping[str, int],
) -> str:
    """Lines over the epochs, as SVG with a legend.

    Args:
        title: what the heights are.
        heights: for each line its points, 0 at the bottom and 1 at the top; those that are not finite are left out.
        ticks: heights and what to write there.
        told: the line's figures in words.
        marked: the point of a line that gets a dot.
    """
    num_epochs = max(map(len, heights.values()))
    left, right, top, bottom = 42, 452, 12, 224

    def place(epoch: int, height: float) -> str:
        x = left + (right - left) * epoch / max(num_epochs - 1, 1)
        return f"{x:.1f},{bottom - (bottom - top) * height:.1f}"

    drawn = [
        f'<path class="grid" d="M{left} {y:.1f}H{right}"/><text x="{left - 8}" y="{y + 4:.1f}" '
        f'text-anchor="end">{label}</text>\n'
        for y, label in ((bottom - (bottom - top) * height, label) for height, label in ticks)
    ]
    for tick in {1, *map(round, MaxNLocator(nbins=6, integer=True).tick_values(1, max(2, num_epochs)))}:
        if 1 <= tick <= num_epochs:
            x = place(tick - 1, 0).split(",")[0]
            drawn.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{tick}</text>\n')
    legend = ""
    for number, (name, line) in enumerate(heights.items()):
        points = [place(epoch, height) for epoch, height in enumerate(line) if math.isfinite(height)]
        drawn.append(f'<polyline class="line{number}" points="{" ".join(points)}"/>\n')
        dots = [place(marked[name], line[marked[name]])] if name in marked else points if len(points) == 1 else []
        for x, y in (dot.split(",") for dot in dots):
            drawn.append(f'<circle class="line{number}" cx="{x}" cy="{y}" r="4.5"/>\n')
        legend += f'<li class="line{number}"><b>{name}</b> {told[name]}</li>\n'
    alt = f"{title}, over {num_epochs} epochs. " + ". ".join(f"{name}: {text}" for name, text in told.items())
    return (
        f'<figure>\n<figcaption>{title}</figcaption>\n<ul class="legend">\n{legend}</ul>\n'
        f'<svg viewBox="0 0 464 264" role="img" aria-label="{alt}">\n{"".join(drawn)}'
        f'<text x="{right}" y="{bottom + 38}" text-anchor="end">epochs</text>\n</svg>\n</figure>\n'
    )
