"""What happens along the layers of networks, as charts: a line for each network."""

import os
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from t2t_vit.insight.features import LayerHealth
from t2t_vit.pictures.style import inline_svg, styled

Layers = Mapping[str, Sequence[LayerHealth]]
"""The layers of each network, in order."""


def draw_invalid(axes: Axes, layers: Layers) -> None:
    """Draws the share of channels that are near zero or near constant, the mean over the images."""
    for name, rows in layers.items():
        shares = [100 * row.invalid_an_image / row.channels for row in rows]
        total, channels = sum(row.invalid_an_image for row in rows), sum(row.channels for row in rows)
        always = sum(row.invalid for row in rows)
        _draw_line(axes, shares, f"{name}: {100 * total / channels:.1f} % of {channels:,}, {always:,} in every image")
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    _finish(axes)


def draw_norms(axes: Axes, layers: Layers) -> None:
    """Draws the largest norm of a token over the median."""
    for name, rows in layers.items():
        largest = [row.largest_norm for row in rows]
        _draw_line(axes, largest, f"{name}: {max(largest):.1f} at most")
    axes.set_ylim(1)
    _finish(axes)


CHARTS: dict[str, Callable[[Axes, Layers], None]] = {
    "Invalid channels, % of a layer's": draw_invalid,
    "Largest norm of a token, times the median": draw_norms,
}


def _draw_line(axes: Axes, values: Sequence[float], label: str) -> None:
    depth = [100 * place / max(len(values) - 1, 1) for place in range(len(values))]
    axes.plot(depth, values, label=label, marker="o", markersize=4, clip_on=False)


def _finish(axes: Axes) -> None:
    axes.set(xlim=(0, 100), xlabel="depth, % of the layers")
    axes.grid(axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), borderpad=0, borderaxespad=0, frameon=False)


@styled
def layers_svg(title: str, layers: Layers) -> Markup:
    """Returns one of CHARTS for half of a page's width."""
    figure = Figure(figsize=(5.6, 3.5), layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    CHARTS[title](axes, layers)
    legend = ". ".join(axes.get_legend_handles_labels()[1])
    return inline_svg(figure, CHARTS[title].__name__, f"{title}, along the layers. {legend}")


@styled
def layers_figure(layers: Layers, path: str | os.PathLike[str]) -> None:
    """Writes all CHARTS side by side as a picture."""
    figure = Figure(figsize=(11, 4.2), dpi=160, layout="constrained")
    for axes, (title, draw) in zip(figure.subplots(1, len(CHARTS)), CHARTS.items(), strict=True):
        draw(axes, layers)
        axes.set_title(f"{title}\n", loc="left", weight="bold", pad=14 * len(layers))
    figure.savefig(path)
