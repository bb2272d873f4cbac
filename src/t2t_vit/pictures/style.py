"""How every picture looks: settings of matplotlib, and how a page shows a figure."""

import io
import re
import warnings
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from t2t_vit.pictures.colours import LIGHT, LINE_COLOURS

SETTINGS: dict[Any, Any] = {
    "font.size": 11,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,  # a class may be called $5
    "axes.prop_cycle": f"cycler(color={LINE_COLOURS})",
    "axes.edgecolor": LIGHT["grid"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["faint"],
    "axes.axisbelow": True,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    **{f"{axis}tick.labelcolor": LIGHT["faint"] for axis in "xy"},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **{f"{axis}tick.major.pad": 7 for axis in "xy"},
    "grid.color": LIGHT["grid"],
    "lines.linewidth": 2.4,
    "lines.markersize": 7.5,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "t2t_vit",  # the same figure is the same file
}
styled = matplotlib.rc_context(SETTINGS)  # decorates functions that draw


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Returns a figure as an SVG element for a page that defines our colours as CSS variables.

    Args:
        figure: the label of a patch becomes its tooltip.
        name: the start of every id in the SVG, so that a page can hold several figures.
        alt: the description for people who do not see the figure.
    """
    labelled = figure.findobj(lambda artist: isinstance(artist, Patch) and artist.get_label() != "")
    for number, patch in enumerate(labelled):
        patch.set_gid(f"tip{number}")
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has more fonts
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.04, metadata=no_metadata)
    _, width, height, content = re.split('<svg.* viewBox="0 0 (.*?) (.*?)".*>', file.getvalue())
    variables = {colour: f"var(--{key})" for key, colour in LIGHT.items()}

    def adapt(tag: re.Match[str]) -> str:
        adapted = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag[0].replace("xlink:", ""))
        adapted = re.sub("#[0-9a-f]{6}", lambda colour: variables.get(colour[0], colour[0]), adapted)
        tip = re.search('id="[^"]*-tip([0-9]+)"', adapted)
        return f"{adapted}<title>{escape(labelled[int(tip[1])].get_label())}</title>" if tip else adapted

    opening = Markup('<svg viewBox="0 0 {0} {1}" width="{0}" role="img" aria-label="{2}">')
    return opening.format(width, height, alt) + Markup(re.sub("<[^>]+>", adapt, content))
