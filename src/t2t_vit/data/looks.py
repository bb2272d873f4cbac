"""Looks at images: decodes them quickly, and keeps a small copy of each with what is easily seen on it."""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from t2t_vit.data.crops import Box
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.pixels import Picture, to_picture

COPY_PX = 32
BLANK = 2.0  # standard deviation of bytes
NUM_THREADS = 8
LARGE_PIXELS = 10_000_000
CHUNK = 1000  # images that are handed to the threads at a time: the time limit may end all before the last one


@dataclass(frozen=True, eq=False)
class Look:
    """What one image looks like.

    Attributes:
        name, label: as its set has them.
        height, width: in pixels.
        copy: small copy, (32, 32, C), uint8, or float32 of arrays.
        digest: of the pixels; equal images have equal ones.
        is_blank: whether it has one colour all over, up to the noise of a JPEG.
    """

    name: str
    label: int
    height: int
    width: int
    copy: np.ndarray
    digest: bytes
    is_blank: bool

    @property
    def tiny(self) -> np.ndarray:
        """A copy of half the side, (16 * 16 * C,), float32."""
        half, channels = COPY_PX // 2, self.copy.shape[2]
        return self.copy.reshape(half, 2, half, 2, channels).mean(axis=(1, 3), dtype=np.float32).reshape(-1)


@dataclass(frozen=True)
class Looks:
    """What decoding some images of a set showed.

    Attributes:
        seen: those that can be read, by their row in the set.
        unreadable: the others.
    """

    images: ImageSet
    seen: dict[int, Look] = field(default_factory=dict)
    unreadable: dict[int, UnreadableImage] = field(default_factory=dict)

    @property
    def rows(self) -> set[int]:
        """Those of the images that were looked at."""
        return {*self.seen, *self.unreadable}

    def add(
        self, rows: Sequence[int], *, until_s: float = math.inf, advance: Callable[[], None] = lambda: None
    ) -> None:
        """Looks at more images, in random order; if time runs out, at a fair sample of them.

        Args:
            until_s: when time runs out, on the monotonic clock.
            advance: is called after each.
        """
        images, order = self.images, np.random.default_rng(0).permutation(rows).tolist()
        one_at_a_time = threading.Lock()

        def look(row: int) -> Look | UnreadableImage | None:
            if time.monotonic() > until_s:
                return None
            try:
                # A large one takes up to a gigabyte while it is decoded.
                is_large = images.read_shape is not None and math.prod(images.read_shape(row)[:2]) > LARGE_PIXELS
                with one_at_a_time if is_large else nullcontext():
                    return _look(images, row) if time.monotonic() <= until_s else None
            except UnreadableImage as error:
                return error
            finally:
                advance()

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for first in range(0, len(order), CHUNK):
                chunk = order[first : first + CHUNK]
                for row, found in zip(chunk, pool.map(look, chunk), strict=True):
                    if isinstance(found, Look):
                        self.seen[row] = found
                    elif found is not None:
                        self.unreadable[row] = found
                if time.monotonic() > until_s:
                    break


class _Glance:
    """A crop that takes the whole image, and has a JPEG decoded to little more than a small copy needs."""

    def choose(self, width: int, height: int) -> Box:
        self.height, self.width = height, width
        return Box(0, 0, width, height)

    def reduction(self, box: Box) -> int:
        return max(1, min(box.right, box.bottom) // (2 * COPY_PX))

    def resize(self, pixels: np.ndarray) -> Picture:
        pixels = np.ascontiguousarray(pixels)
        self.digest = hashlib.blake2b(pixels.data, digest_size=16, key=repr(pixels.shape).encode()).digest()
        every = math.ceil((pixels.shape[0] * pixels.shape[1] / LARGE_PIXELS) ** 0.5)
        pixels = np.ascontiguousarray(pixels[::every, ::every])
        noise = BLANK if pixels.dtype == np.uint8 else 0.0
        self.is_blank = float(pixels.std(axis=(0, 1), dtype=np.float32).max()) <= noise
        return to_picture(pixels)


def _look(images: ImageSet, row: int) -> Look:
    glance = _Glance()
    picture = images.load(row, glance)
    if isinstance(picture, Image.Image):
        copy = np.asarray(picture.resize((COPY_PX, COPY_PX), Image.Resampling.BILINEAR))
    else:
        copy = 255 * adaptive_avg_pool2d(picture, COPY_PX).permute(1, 2, 0).numpy()
    return Look(
        images.names[row], images.labels[row], glance.height, glance.width, copy, glance.digest, glance.is_blank
    )
