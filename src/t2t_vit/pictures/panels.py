"""What `visualize` shows: rows of tiles with captions, of one image in one network or of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2t_vit.insight.components import ColouredTokens
from t2t_vit.insight.examination import Examination, evenly_spaced
from t2t_vit.insight.features import OUTLIER_TIMES, LayerStatistics
from t2t_vit.insight.geometry import Grid
from t2t_vit.insight.relevance import METHODS
from t2t_vit.pictures.html import Tile, data_address
from t2t_vit.pictures.maps import (
    TOP_PERCENT,
    channel_tile,
    coloured_tile,
    field_tile,
    heat_tile,
    mark_pixel,
    overlay_tile,
    patches_tile,
    picture_tile,
    tile_size,
)
from t2t_vit.pictures.sheet import draw_sheet
from t2t_vit.runtime.files import whole_file

SMALL_PX, LARGE_PX = 112, 224
MAX_HEADS = 8
STAGES = {
    "tokens_to_token.attention1": "after soft split 1",
    "tokens_to_token.attention2": "after soft split 2",
    "tokens_to_token": "after the T2T module",
}


@dataclass(frozen=True)
class Panel:
    """Tiles of one size.

    Attributes:
        name: of its PNG file, without the ending.
        title: what it shows.
        about: what to look for, and what it does not prove.
        tiles: (H, W, 3), uint8, each.
        captions: a line for each.
        columns: tiles in a row.
        framed: numbers of the tiles that are marked.
    """

    name: str
    title: str
    about: str
    tiles: Sequence[np.ndarray]
    captions: Sequence[str]
    columns: int = 8
    framed: frozenset[int] = frozenset()

    def save(self, folder: Path) -> None:
        """Writes the tiles as one PNG file."""
        sheet = draw_sheet(np.stack(self.tiles), self.captions, columns=self.columns, framed=self.framed)
        with whole_file(folder / f"{self.name}.png") as file:
            sheet.save(file, "png")

    def for_page(self) -> list[Tile]:
        """The tiles for a page."""
        return [
            Tile(data_address(Image.fromarray(tile), "png"), caption, number in self.framed)
            for number, (tile, caption) in enumerate(zip(self.tiles, self.captions, strict=True))
        ]


def overview_panel(found: Examination, name: str) -> Panel:
    """What stands out to a network from its first layers to its last, and where the class score comes from."""
    size = tile_size(found.image, LARGE_PX)
    layers = [*found.statistics]
    early = [layer for layer in layers if layer.startswith("tokens_to_token")] or layers[:1]
    tiles, captions = [picture_tile(found.image, size)], [f"{found.answer[0]}, {100 * found.answer[1]:.0f} %"]
    for layer in dict.fromkeys([*early, layers[-1]]):
        standout = found.statistics[layer].standout[0].cpu()
        high = float(np.percentile(standout, TOP_PERCENT))
        tiles.append(heat_tile(standout, found.statistics[layer].grid, size, low=float(standout.min()), high=high))
        captions.append(STAGES.get(layer, f"after {layer}"))
    for method in [method for method in ("gradcam", *found.relevance) if method in found.relevance][:1]:
        tiles.append(overlay_tile(found.image, found.relevance[method], size))
        captions.append(method)
    about = (
        "Bright is a token that differs from the image's others: how far it is from the mean token, in standard "
        "deviations of each channel. Follow edges and lines from layer to layer: what is dark all over is lost. Last, "
        "if a method fits the network, where the class score comes from. What stands out need not matter to the answer."
    )
    return Panel(name, "What stands out", about, tiles, captions, columns=len(tiles))


def feature_panel(found: Examination, channels: int, name: str) -> Panel:
    """Channels of the chosen layers, as in figure 2 of the paper."""
    size = tile_size(found.image, SMALL_PX)
    tiles: list[np.ndarray] = []
    captions, framed = [], set()
    for layer, features in found.features.items():
        invalid = LayerStatistics.of(features).invalid[0]
        for channel in evenly_spaced(features.maps.shape[1], channels):
            if invalid[channel]:
                framed.add(len(tiles))
            tiles.append(channel_tile(features.maps[0, channel], features.grid, size))
            captions.append(f"{_short(layer)} · {channel}")
    about = (
        "Look for edges and lines of the image in the first layers, and for framed channels: these are near zero or "
        "near constant over the image, and say nothing of where something is. A channel is grey from its own least to "
        "its own largest value, so that brightness cannot be compared between tiles."
    )
    return Panel(name, "Feature maps", about, tiles, captions, framed=frozenset(framed))


def token_panel(found: Examination, name: str) -> Panel:
    """The soft splits on the image, and what one token is made of."""
    size = tile_size(found.image, LARGE_PX)
    splits = [patches_tile(found.image, field, size) for field in found.fields]
    energies = [field_tile(field, size) for field in found.fields]
    captions, shares = [], []
    for field in found.fields:
        captions.append(f"{field.grid.height} x {field.grid.width}, patch {100 * field.share_of_area:.2g} %")
        shares.append(f"{100 * field.share_in_patch:.0f} % in the patch")
    about = (
        "Above: the patch of one token after each soft split (blue), the patches of its neighbours, which overlap it "
        "(orange), and the centres of all tokens where they fit. Below: how strongly each pixel moves that token, "
        "measured by the squared gradient of this network on this image; brightness is its logarithm, "
        "down to a millionth of the largest. The share inside the patch says how far a token still is its patch, since "
        "token transformers look at the whole image. It says nothing of the blocks that follow."
    )
    return Panel(name, "Tokens", about, [*splits, *energies], [*captions, *shares], columns=max(1, len(found.fields)))


def attention_panel(found: Examination, name: str) -> Panel:
    """The attention of each head in some layers."""
    size = tile_size(found.image, SMALL_PX)
    tiles, captions = [], []
    image_size = (found.image.shape[0], found.image.shape[1])
    for layer, row in found.attention.items():
        for head in evenly_spaced(len(row.heads), MAX_HEADS):
            tile = overlay_tile(found.image, row.grid.to_pixels(row.heads[head]), size)
            tiles.append(mark_pixel(tile, found.pixel, image_size) if row.of_pixel else tile)
            captions.append(f"{_short(layer)} · {head}")
    about = (
        "Bright is where a query looks: the patch at the cross, or without a cross the class token. Each tile is "
        "bright from its own least to its own largest weight. Attention shows what is mixed, not what the answer "
        "depends on."
    )
    return Panel(name, "Attention", about, tiles, captions)


def relevance_panel(found: Examination, name: str) -> Panel:
    """The image, and where its class score comes from by each method."""
    size = tile_size(found.image, LARGE_PX)
    tiles = [picture_tile(found.image, size)]
    captions = [f"{found.answer[0]}, {100 * found.answer[1]:.0f} %"]
    for method, relevance in found.relevance.items():
        tiles.append(overlay_tile(found.image, relevance, size))
        captions.append(f"{method} · {float(relevance.max() / relevance.mean().clamp(min=1e-12)):.1f} x")
    kinds = " ".join(f"{method}: {METHODS[method].about}" for method in found.relevance)
    about = (
        f"Where the score of {found.asked} comes from. {kinds} A tile is bright from its own least to its own largest "
        "value; below it stands the largest over the mean, and below 1.5 x there is hardly a difference to see. The "
        "methods differ in what they measure, and none is a proof: --faithfulness measures how far to believe each."
    )
    return Panel(name, f"Relevance for {found.asked}", about, tiles, captions, columns=min(5, len(tiles)))


def norm_panel(found: Examination, name: str) -> Panel:
    """The norms of the tokens, layer by layer."""
    size = tile_size(found.image, SMALL_PX)
    tiles: list[np.ndarray] = []
    captions, framed = [], set()
    for layer, measured in found.statistics.items():
        norms = measured.norms[0].cpu()
        median = float(norms.median())
        if float(norms.max()) > OUTLIER_TIMES * median:
            framed.add(len(tiles))
        tiles.append(heat_tile(norms, measured.grid, size, low=0, high=max(2 * median, float(norms.max()))))
        captions.append(f"{_short(layer)} · {float(norms.max()) / max(median, 1e-12):.1f} x")
    about = (
        "The norm of each token, or of each cell of a map, dark from zero. Below a tile: the largest over the median. "
        f"Framed are layers with a token above {OUTLIER_TIMES:g} times the median: in vision transformers such tokens "
        "mostly lie where nothing is, and spoil attention maps (Darcet et al., 2024)."
    )
    return Panel(name, "Norms of the tokens", about, tiles, captions, framed=frozenset(framed))


def component_panel(
    images: Mapping[str, np.ndarray],
    coloured: Sequence[ColouredTokens],
    shares: Sequence[float],
    grid: Grid,
    name: str,
) -> Panel:
    """Each image beside its tokens in colours."""
    size = tile_size(next(iter(images.values())), LARGE_PX if len(images) < 4 else SMALL_PX)
    tiles, captions = [], []
    for (image_name, image), tokens in zip(images.items(), coloured, strict=True):
        tiles += [picture_tile(image, size), coloured_tile(image, tokens, grid, size)]
        captions += [image_name, f"{100 * tokens.foreground.mean():.0f} % front"]
    explained = " ".join(f"{100 * share:.0f} %" for share in shares)
    about = (
        "The tokens of the last layer by their three largest principal components as red, green and blue, which "
        f"explain {explained} of the foreground's variance. They are fitted over all images here: the same colour "
        "means the same thing in each. Below, the share of tokens that are foreground. The darkened background is the "
        "side of the first component of all tokens that is more common at the edges: a guess, not a segmentation."
    )
    return Panel(name, "Tokens as colours", about, tiles, captions, columns=8 if len(images) > 3 else 4)


def save_numbers(found: Examination, path: Path) -> None:
    """Writes the numbers behind the pictures as .npz: relevance/METHOD, attention/LAYER, energy/LAYER, norms/LAYER."""
    arrays: dict[str, Any] = {
        **{f"relevance/{method}": values.float().numpy() for method, values in found.relevance.items()},
        **{f"attention/{layer}": row.heads.float().numpy() for layer, row in found.attention.items()},
        **{f"energy/{field.name}": field.energy.cpu().numpy() for field in found.fields},
        **{f"norms/{layer}": measured.norms[0].cpu().numpy() for layer, measured in found.statistics.items()},
    }
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def _short(layer: str) -> str:
    """The name of a layer that fits below a tile."""
    return "T2T" if layer == "tokens_to_token" else layer.removeprefix("tokens_to_token.").removesuffix(".attn")
