"""Sheets of images with captions. Drawn without matplotlib, which a run would wait for."""

import importlib.util
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from t2t_vit.pictures.colours import LIGHT

COLUMNS, LEAST_PX, MOST_PX, GAP_PX, LINE_PX, FONT_PX = 8, 96, 192, 12, 18, 13


def draw_sheet(
    images: np.ndarray, captions: Sequence[str], *, columns: int = COLUMNS, framed: Collection[int] = ()
) -> Image.Image:
    """A sheet of images in rows, with a caption below each.

    Args:
        images: (N, H, W, 3), uint8. Small ones are enlarged pixel by pixel.
        captions: a line for each; what does not fit is cut.
        columns: images in a row.
        framed: numbers of the images that have a frame, in the colour of mistakes.
    """
    height, width = images.shape[1:3]
    times = max(1, round(LEAST_PX / max(height, width)))
    share = min(1.0, MOST_PX / max(height, width))
    size = max(1, round(width * times * share)), max(1, round(height * times * share))
    columns = min(columns, len(images))
    cell = size[0] + GAP_PX, size[1] + LINE_PX + GAP_PX
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP_PX, rows * cell[1] + GAP_PX), LIGHT["paper"])
    draw, font = ImageDraw.Draw(sheet), _font()
    resampling = Image.Resampling.NEAREST if share == 1 else Image.Resampling.BICUBIC
    for place, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP_PX + place % columns * cell[0], GAP_PX + place // columns * cell[1]
        sheet.paste(Image.fromarray(pixels).resize(size, resampling), (left, top))
        if place in framed:
            draw.rectangle((left - 3, top - 3, left + size[0] + 2, top + size[1] + 2), outline=LIGHT["wrong"], width=3)
        text = readable = caption.encode("utf-8", "replace").decode()
        while draw.textlength(text, font) > size[0] and len(readable) > 1:
            readable = readable[:-1]
            text = f"{readable}…"
        draw.text((left, top + size[1] + 2), text, LIGHT["ink"], font)
    return sheet


@cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """matplotlib's, which knows more alphabets than Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    folders = (found and found.submodule_search_locations) or []
    for folder in folders:
        file = Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if file.exists():
            return ImageFont.truetype(str(file), FONT_PX)
    return ImageFont.load_default(FONT_PX)
