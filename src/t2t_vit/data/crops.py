"""Random crops, drawn before an image is decoded: a large image is then decoded no larger than its crop needs."""

import random
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from timm.data.transforms import RandomResizedCropAndInterpolation, interp_mode_to_str
from torch.nn.functional import interpolate

from t2t_vit.data.pixels import Picture, to_picture


class Box(NamedTuple):
    """A part of an image, in pixels; right and bottom lie just outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Whole:
    """Takes the whole image, and has a JPEG decoded smaller as long as its shorter side keeps so many pixels."""

    least_px: int

    def choose(self, width: int, height: int) -> Box:
        return Box(0, 0, width, height)

    def reduction(self, box: Box) -> int:
        return max(1, min(box.right, box.bottom) // self.least_px)

    def resize(self, pixels: np.ndarray) -> Picture:
        return to_picture(np.ascontiguousarray(pixels))


class Crop(Protocol):
    """Chooses a part of an image and resizes it."""

    def choose(self, width: int, height: int) -> Box:
        """The part of an image of this size."""

    def reduction(self, box: Box) -> int:
        """How many times smaller the image may be decoded for this part, at least 1."""

    def resize(self, pixels: np.ndarray) -> Picture:
        """The result, from the pixels of the part, (H, W, 3), uint8, or (H, W, C), float32."""


class ScaledCrop:
    """timm's crop at a random scale: the same random numbers give the same box and the same interpolation.

    Decoding and resizing differ. If the box shrinks to a half or less, a JPEG is decoded at a half, a quarter or an
    eighth, and the box lies on whole pixels of that. torch resizes bytes with vector instructions, Pillow, which timm
    calls, does not; their results are a level or two apart.

    Args:
        crop: timm's crop, which sets the scale, the ratio, the size and the interpolation.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation) -> None:
        self.scale, self.ratio = crop.scale, crop.ratio
        self.height, self.width = crop.size
        self.interpolation = [interp_mode_to_str(mode) for mode in crop.interpolation]

    def choose(self, width: int, height: int) -> Box:
        """Draws the part of an image of this size."""
        image = torch.empty(height, width, device="meta")  # only the size is looked at
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        return Box(left, top, left + width, top + height)

    def reduction(self, box: Box) -> int:
        """How many times smaller the image may be decoded without this part having fewer pixels than the crop."""
        return max(1, min((box.right - box.left) // self.width, (box.bottom - box.top) // self.height))

    def resize(self, pixels: np.ndarray) -> Picture:
        """Resizes the part, (H, W, C), to the crop's size, with a randomly drawn interpolation."""
        size, mode = (self.height, self.width), random.choice(self.interpolation)
        if pixels.shape[:2] == size:
            return to_picture(np.ascontiguousarray(pixels))
        images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # (1, C, H, W), channels innermost in memory
        resized = interpolate(images, size, mode=mode, antialias=True)
        return to_picture(resized[0].permute(1, 2, 0).numpy())
