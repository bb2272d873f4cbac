"""What the content of a file becomes: an RGB image, or an array of as many channels as a network takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageColor, ImageSequence
from torch import Tensor

from t2t_vit.errors import UserError

Picture = Image.Image | Tensor
"""An RGB image, or an array of channels, (C, H, W), float32."""

MANY_CHANNELS = 32
"""Of more than these the last axis of an array is hardly that of its channels."""
ARRAY_FILES = (b"\x93NUMPY", b"PK\x03\x04")
"""How .npy and .npz files begin."""


@dataclass(frozen=True)
class PixelFormat:
    """What images are read as.

    Attributes:
        in_chans: channels that the network takes. Of 3 and of 1 images are read in RGB, in bytes; a transform makes
            them grey. Of any other number they are read as arrays of so many channels, in float32.
        background: the colour behind transparent pixels: a name that Pillow knows, or #rrggbb.

    Raises:
        UserError: there is no such colour.
    """

    in_chans: int = 3
    background: str = "white"

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise UserError(
                f"--background must be a colour such as white, grey or #ff8800, got {self.background}."
            ) from None

    @classmethod
    def of(cls, data_config: Mapping[str, Any]) -> "PixelFormat":
        """What a network's images are read as, by its data configuration."""
        return cls(data_config["input_size"][0], data_config.get("background", cls.background))

    @property
    def is_array(self) -> bool:
        """Whether images are read as arrays, and not in RGB."""
        return self.in_chans not in (1, 3)

    @property
    def blank(self) -> np.ndarray:
        """The pixels of an image of nothing, (H, W, C)."""
        return np.zeros((32, 32, self.in_chans), np.float32) if self.is_array else np.zeros((32, 32, 3), np.uint8)

    def channels(self, array: np.ndarray) -> np.ndarray:
        """The pixels of an array.

        Values of 8 and of 16 bits are scaled by what their type can hold: to 0..1 in an array of channels, to 0..255 in
        RGB. Others stay as they are in an array of channels; in RGB an image's own least and largest value become 0 and
        255.

        Args:
            array: (H, W) or (H, W, C), of any real type.

        Returns:
            (H, W, in_chans), float32, or (H, W, 3), uint8.

        Raises:
            ValueError: the array has other channels, or holds no finite numbers.
        """
        pixels = _native(array[..., None] if array.ndim == 2 else array)
        found = pixels.shape[-1]
        if pixels.ndim != 3 or 0 in pixels.shape or found not in ((self.in_chans,) if self.is_array else (1, 3)):
            expected = f"(height, width, {self.in_chans})" if self.is_array else "(height, width) or (height, width, 3)"
            advice = f": give --in-chans {found}" if pixels.ndim == 3 and found <= MANY_CHANNELS else ""
            raise ValueError(f"its shape is {array.shape}, not {expected}{advice}")
        if not self.is_array:
            return np.repeat(to_bytes(pixels), 3 // found, axis=-1)
        if pixels.dtype in (np.uint8, np.uint16):
            return pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            return _finite(pixels.astype(np.float32))

    def bands(self, image: Image.Image) -> np.ndarray:
        """The pixels of an image whose bands, or whose pages of one band each, are the channels: as `channels`."""
        if getattr(image, "n_frames", 1) == self.in_chans > 1 == len(image.getbands()):
            return self.channels(np.stack([np.array(page) for page in ImageSequence.Iterator(image)], axis=-1))
        return self.channels(np.asarray(image))

    def rgb(self, image: Image.Image) -> Image.Image:
        """A loaded image, of bytes, in RGB: what is transparent shows the background."""
        if image.has_transparency_data:
            behind = Image.new("RGBA", image.size, ImageColor.getrgb(self.background)[:3])
            behind.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
            image = behind
        return image if image.mode == "RGB" else image.convert("RGB")


RGB = PixelFormat()


def read_array(file: BinaryIO) -> np.ndarray | None:
    """The array in a .npy file, or the first one in a .npz file; None for any other file."""
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    if not start.startswith(ARRAY_FILES):
        return None
    found = np.load(file, allow_pickle=False)
    array = found if isinstance(found, np.ndarray) else next(iter(found.values()), None)
    if not isinstance(array, np.ndarray):
        raise ValueError("it holds no array")
    return array


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values in 0..255, uint8: 16 bits by what they can hold, others but bytes by their least and largest value.

    Raises:
        ValueError: a value is not finite, or no real number.
    """
    values = _native(values)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    values = _finite(values.astype(np.float64))
    least, largest = values.min(), values.max()
    return np.rint((values - least) * (255 / (largest - least or 1))).astype(np.uint8)


def grey_to_bytes(image: Image.Image) -> Image.Image:
    """A loaded grey image of more than 8 bits, in 8; any other as it is. Pillow would cut all above 255 off."""
    if image.mode == "I" and image.format == "PPM":  # Pillow widens its 16 bits to 32
        return Image.fromarray(to_bytes(np.asarray(image).astype(np.uint16)))
    return Image.fromarray(to_bytes(np.asarray(image))) if image.mode[0] in "IF" else image


def _native(values: np.ndarray) -> np.ndarray:
    """The same values in this machine's byte order, which is all that torch reads."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not finite")
    return values


def to_picture(pixels: np.ndarray) -> Picture:
    """The picture of these pixels: (H, W) or (H, W, 3), uint8, or (H, W, C), float32."""
    if pixels.dtype == np.float32:
        return torch.from_numpy(pixels).permute(2, 0, 1)
    return Image.fromarray(pixels).convert("RGB")


def to_pixels(picture: Picture) -> np.ndarray:
    """The pixels of a picture, (H, W, 3), uint8, or (H, W, C), float32."""
    return np.array(picture) if isinstance(picture, Image.Image) else picture.permute(1, 2, 0).numpy()


def as_seen(picture: Picture) -> Image.Image:
    """A picture for people to look at: of an array its first three channels, or its first, by their range."""
    if isinstance(picture, Image.Image):
        return picture
    shown = picture[:3] if len(picture) > 2 else picture[:1].expand(3, -1, -1)
    return Image.fromarray(to_bytes(shown.permute(1, 2, 0).numpy()))
