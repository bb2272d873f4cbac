"""How maps look: channels, norms and relevance as tiles of one size."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from t2t_vit.insight.components import ColouredTokens
from t2t_vit.insight.geometry import Grid
from t2t_vit.insight.receptive import ReceptiveField
from t2t_vit.pictures.colours import LIGHT

HEAT = "inferno"
"""From dark to bright as values rise, for every kind of colour vision."""
TOP_PERCENT = 99.5
"""The percentile that becomes the brightest colour: a few extreme values would darken all the rest."""
FAINTEST = 1e-6
"""The share of the largest energy of a gradient at which it is black."""
LEAST_GAP_PX = 5
"""Between the centres of tokens that are drawn: more of them would hide the image."""
PATCH, NEIGHBOUR = LIGHT["line3"], LIGHT["line1"]


def tile_size(image: np.ndarray, side: int) -> tuple[int, int]:
    """(width, height) of a tile whose longer side is `side`, in the shape of the image (H, W, 3)."""
    height, width = image.shape[:2]
    longer = max(height, width)
    return max(1, round(side * width / longer)), max(1, round(side * height / longer))


def picture_tile(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image, (H, W, 3), at the size of a tile: pixel by pixel if it is enlarged."""
    resampling = Image.Resampling.NEAREST if size[0] > image.shape[1] else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize(size, resampling))


def channel_tile(values: Tensor, grid: Grid, size: tuple[int, int]) -> np.ndarray:
    """A channel, (h, w), in grey, from its least to its largest value."""
    low, high = float(values.min()), float(values.max())
    grey = ((values - low) / max(high - low, 1e-12) * 255).round().byte().numpy()
    return np.repeat(_placed(grey, grid, size)[..., None], 3, axis=2)


def heat_tile(values: Tensor, grid: Grid, size: tuple[int, int], *, low: float, high: float) -> np.ndarray:
    """Values, (h, w), as colours, from `low` to `high`."""
    return _placed(_heat(values, low=low, high=high), grid, size)


def _heat(values: Tensor, *, low: float, high: float) -> np.ndarray:
    shares = ((values.numpy() - low) / max(high - low, 1e-12)).clip(0, 1)
    return (colormaps[HEAT](shares)[..., :3] * 255).round().astype(np.uint8)


def overlay_tile(image: np.ndarray, relevance: Tensor, size: tuple[int, int]) -> np.ndarray:
    """An image, (H, W, 3), in grey, and over it the relevance of its pixels, (H, W): the more, the brighter."""
    heat = _heat(relevance, low=float(relevance.min()), high=float(np.percentile(relevance, TOP_PERCENT)))
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    return picture_tile((0.45 * grey + 0.55 * heat).round().astype(np.uint8), size)


def patches_tile(image: np.ndarray, field: ReceptiveField, size: tuple[int, int]) -> np.ndarray:
    """An image with the patch of a token, those of its neighbours, which overlap it, and all centres if they fit."""
    tile, draw, scale = _canvas(image, size)
    grid, (row, column) = field.grid, divmod(field.token, field.grid.width)
    if grid.stride[0] * scale >= LEAST_GAP_PX:
        for y in range(grid.height):
            for x in range(grid.width):
                right, down = grid.first[1] + x * grid.stride[1], grid.first[0] + y * grid.stride[0]
                draw.point((_place(right, scale), _place(down, scale)), PATCH)
    for y, x in ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column)):
        if 0 <= y < grid.height and 0 <= x < grid.width:
            _frame(draw, grid.patch_of(y * grid.width + x), scale, NEIGHBOUR, 1)
    _frame(draw, field.patch, scale, PATCH, 3)
    return np.asarray(tile)


def field_tile(field: ReceptiveField, size: tuple[int, int]) -> np.ndarray:
    """The energy of a token's gradient, from FAINTEST of the largest on in powers of ten, and the token's patch."""
    energy = field.energy.cpu()
    powers = (energy / energy.max()).clamp(min=FAINTEST).log10()
    heat = _heat(powers, low=math.log10(FAINTEST), high=0)
    tile, draw, scale = _canvas(heat, size)
    _frame(draw, field.patch, scale, PATCH, 2)
    return np.asarray(tile)


def coloured_tile(image: np.ndarray, tokens: ColouredTokens, grid: Grid, size: tuple[int, int]) -> np.ndarray:
    """Tokens in their colours, and the image in dark grey where they are background."""
    colours = _placed((tokens.colours * 255).round().astype(np.uint8), grid, size).astype(np.float32)
    foreground = _placed(tokens.foreground.astype(np.uint8), grid, size)[..., None]
    grey = picture_tile(image, size).astype(np.float32).mean(axis=2, keepdims=True).repeat(3, axis=2)
    return np.where(foreground, colours, 0.35 * grey).round().astype(np.uint8)


def mark_pixel(tile: np.ndarray, pixel: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """A tile of an image of (H, W) with a cross at a pixel, (x, y)."""
    marked = Image.fromarray(tile)
    draw = ImageDraw.Draw(marked)
    x = _place(pixel[0], tile.shape[1] / image_size[1])
    y = _place(pixel[1], tile.shape[0] / image_size[0])
    arm = max(4, tile.shape[0] // 24)
    for width, colour in ((4, "#ffffff"), (2, PATCH)):
        draw.line((x - arm, y, x + arm, y), colour, width)
        draw.line((x, y - arm, x, y + arm), colour, width)
    return np.asarray(marked)


def _placed(values: np.ndarray, grid: Grid, size: tuple[int, int]) -> np.ndarray:
    """Values of a grid's cells, (h, w) or (h, w, 3), as a tile: each pixel has the cell whose centre is the nearest."""
    rows, columns = grid.nearest(size[1], size[0])
    return values[rows.numpy()[:, None], columns.numpy()]


def _canvas(image: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    tile = Image.fromarray(picture_tile(image, size))
    return tile, ImageDraw.Draw(tile), size[0] / image.shape[1]


def _place(pixel: float, scale: float) -> int:
    """Where the centre of a pixel of the image is in a tile."""
    return round((pixel + 0.5) * scale)


def _frame(draw: ImageDraw.ImageDraw, box: Sequence[int], scale: float, colour: str, width: int) -> None:
    left, top, right, bottom = (round(value * scale) for value in box)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=ImageColor.getrgb(colour), width=width)
