"""Labelled images, each decoded when it is needed."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from t2t_vit.data.crops import Box, Crop
from t2t_vit.errors import UserError

# Pillow warns of corrupt EXIF, odd palettes and many pixels. The pixels are as good as any others.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(UserError):
    """An image that is missing, cut off or no image at all; `reason` is the decoder's, without a full stop."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error travels between processes
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} is not a readable image: {self.reason}"


class Load(Protocol):
    """Maps an index to an RGB image, whole or cropped. Raises UnreadableImage."""

    def __call__(self, index: int, crop: Crop | None = None) -> Image.Image: ...


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, each decoded when it is needed.

    Attributes:
        names: a name for each image, such as its path below the data folder, with "/".
        labels: the class of each image.
        load: gives an image by its index. It must pickle and survive a fork, for worker processes.
        in_memory: whether the images are in memory, decoded.
    """

    names: Sequence[str]
    labels: Sequence[int]
    load: Load
    in_memory: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Sequence[int]) -> "ImageSet":
        """The images of these rows, in their order."""
        names, labels = [self.names[row] for row in rows], [self.labels[row] for row in rows]
        return ImageSet(names, labels, partial(_load_row, self.load, rows), self.in_memory)


def _load_row(load: Load, rows: Sequence[int], index: int, crop: Crop | None = None) -> Image.Image:
    return load(rows[index], crop)


def array_images(arrays: np.ndarray, names: Sequence[str], labels: Sequence[int]) -> ImageSet:
    """Images in memory: (N, H, W) in grey or (N, H, W, 3) in RGB, uint8."""
    return ImageSet(names, labels, partial(_load_array, arrays), in_memory=True)


def _load_array(arrays: np.ndarray, index: int, crop: Crop | None = None) -> Image.Image:
    return crop_pixels([arrays[index]], crop)


def file_images(read: Callable[[int], bytes], names: Sequence[str], labels: Sequence[int]) -> ImageSet:
    """Images in files: `read` gives the content of a file by its index. It must pickle and survive a fork."""
    return ImageSet(names, labels, partial(_load_file, read, names))


def _load_file(read: Callable[[int], bytes], names: Sequence[str], index: int, crop: Crop | None = None) -> Image.Image:
    return _decode(lambda: BytesIO(read(index)), crop, names[index])


def read_image(file: str | Path | BinaryIO, crop: Crop | None = None, *, name: str | None = None) -> Image.Image:
    """The image in a file, in RGB, whole or cropped.

    Args:
        file: a path or an open binary file.
        crop: None gives the whole image.
        name: the image's name in errors, by default the path.

    Raises:
        UnreadableImage: the decoder fails, for whatever reason.
    """
    # All at once is faster than in pieces.
    open_file = (lambda: BytesIO(Path(file).read_bytes())) if isinstance(file, str | Path) else (lambda: file)
    return _decode(open_file, crop, name or str(file))


def _decode(open_file: Callable[[], BinaryIO], crop: Crop | None, name: str) -> Image.Image:
    try:
        with Image.open(open_file()) as image:
            if crop is None:
                return _to_rgb(image)
            pixels = np.array(_to_rgb(_decode_part(image, crop)))
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else None
        reason = reason or getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(name, reason.rstrip(".")) from error
    return crop.resize(pixels)


def _decode_part(image: Image.Image, crop: Crop) -> Image.Image:
    """The part of an opened image that a crop chooses, decoded smaller if the crop shrinks it anyway."""
    width, height = image.size
    box = crop.choose(width, height)
    reduction = crop.reduction(box)
    if reduction > 1:
        image.draft(None, (width // reduction, height // reduction))  # by 2, 4 or 8, and of JPEGs only
        times = round(width / image.width)
        box = Box(*(place // times for place in box))
    return image.crop(box)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16"):
        # Pillow clips these to 255, which turns nearly all of a 16-bit image white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def crop_pixels(levels: Sequence[np.ndarray], crop: Crop | None) -> Image.Image:
    """The image of these pixels, in RGB, whole or cropped.

    Args:
        levels: the pixels, (H, W) or (H, W, 3), uint8; then, if known, those of the same image decoded at a half, a
            quarter and an eighth.
        crop: None gives the whole image.
    """
    whole = levels[0]
    if crop is None:
        return Image.fromarray(whole).convert("RGB")
    box = crop.choose(whole.shape[1], whole.shape[0])
    level = min(crop.reduction(box).bit_length(), len(levels)) - 1
    left, top, right, bottom = (place >> level for place in box)
    part = levels[level][top:bottom, left:right]
    return crop.resize(part if part.ndim == 3 else np.repeat(part[..., None], 3, axis=-1))
