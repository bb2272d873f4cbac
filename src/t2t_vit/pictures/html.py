"""HTML pages that need no network, no script and no other file; and the thumbnails in them."""

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

import t2t_vit
from t2t_vit.data.crops import Whole
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.pixels import as_seen
from t2t_vit.pictures.colours import DARK, LIGHT

THUMBNAIL_PX = 144


class Thumbnail(NamedTuple):
    """An image in a page: an address that holds the image itself, and whether its pixels are to be enlarged."""

    source: str
    small: bool


class Tile(NamedTuple):
    """An image in a panel of a page: an address that holds the image itself, its caption, and whether it is framed."""

    source: str
    caption: str
    framed: bool


def render(template: str, **content: Any) -> str:
    """The page that one of the templates beside this file makes of its content."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    text = environment.get_template(template).render(light=LIGHT, dark=DARK, version=t2t_vit.__version__, **content)
    return readable(text)


def readable(text: str) -> str:
    """The text, with a question mark for each byte of a file name that UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def thumbnail(images: ImageSet, row: int) -> Thumbnail | None:
    """One of the images, whole and small; None if it cannot be read."""
    try:
        image = as_seen(images.load(row, Whole(THUMBNAIL_PX)))
    except UnreadableImage:
        return None
    small = 2 * max(image.size) < THUMBNAIL_PX
    if max(image.size) > THUMBNAIL_PX:
        image = ImageOps.contain(image, (THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BICUBIC)
    return Thumbnail(data_address(image, "png" if small else "jpeg"), small)


def data_address(image: Image.Image, kind: str) -> str:
    """An address that holds the image itself; `kind` is png or jpeg."""
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
