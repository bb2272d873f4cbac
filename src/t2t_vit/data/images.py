"""Labelled images, each decoded when it is asked for."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from t2t_vit.errors import UserError


class UnreadableImage(UserError):
    """An image that is missing, cut off or no image at all.

    Attributes:
        name: the image, as its set names it.
        reason: what the decoder says.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it travels between processes
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} is not a readable image: {self.reason}"


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, each decoded when asked for.

    Attributes:
        names: what to call each image, such as its path below the data folder, with "/".
        labels: the class of each image.
        load: index to RGB image; raises UnreadableImage. It must pickle and survive a fork, for worker processes.
    """

    names: Sequence[str]
    labels: Sequence[int]
    load: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.names[index]

    def label(self, index: int) -> int:
        return self.labels[index]

    def subset(self, rows: Sequence[int]) -> "ImageSet":
        """The images of these rows, in their order."""
        names, labels = [self.names[row] for row in rows], [self.labels[row] for row in rows]
        return ImageSet(names, labels, partial(_load_row, self.load, rows))


@dataclass(frozen=True)
class Part:
    """Labelled images that are not listed yet.

    Attributes:
        title: what a message calls them, such as the folder they lie in.
        read: returns the class names, label by label, and the images.
    """

    title: str
    read: Callable[[], tuple[tuple[str, ...], ImageSet]]


@dataclass(frozen=True)
class Parts:
    """What some data consists of: images to train on and to validate on, or a whole that is yet to be split.

    Attributes:
        title: what a message calls the data.
        always_split: whether the whole is never evaluated on, only the part of it that training leaves out.
    """

    title: str
    train: Part | None = None
    val: Part | None = None
    whole: Part | None = None
    always_split: bool = False


def array_images(arrays: np.ndarray, names: Sequence[str], labels: Sequence[int]) -> ImageSet:
    """Images that lie in memory.

    Args:
        arrays: (N, H, W) in grey or (N, H, W, 3) in RGB, uint8.
        names: of each image.
        labels: of each image.
    """
    return ImageSet(names, labels, partial(_load_array, arrays))


def read_image(file: str | Path | BinaryIO, *, name: str | None = None) -> Image.Image:
    """The image in a file, in RGB.

    Args:
        file: a path or an open binary file.
        name: what an error calls it, the path if not given.

    Raises:
        UnreadableImage: whatever the decoder chokes on.
    """
    try:
        # Corrupt EXIF, odd palettes, many pixels: the pixels are as good as anyone's.
        with _NO_WARNINGS, Image.open(file) as image:
            return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else None
        reason = reason or getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(name or str(file), reason) from error


class _NoWarnings:
    """`warnings.catch_warnings` that ignores, for several threads at a time.

    Python's own would be left with another thread's filters: the first one in sets them, the last one out restores.
    """

    def __init__(self) -> None:
        self._lock, self._num_inside, self._caught = Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._num_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._caught.__exit__(None, None, None)


_NO_WARNINGS = _NoWarnings()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow clips these to 255, which turns nearly all of a 16-bit image white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _load_row(load: Callable[[int], Image.Image], rows: Sequence[int], index: int) -> Image.Image:
    return load(rows[index])


def _load_array(arrays: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(arrays[index]).convert("RGB")
