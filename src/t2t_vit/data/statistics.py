"""Numbers that are measured on a sample of images."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.pixels import to_pixels
from t2t_vit.data.sources import Source
from t2t_vit.errors import UserError

NUM_MEASURED = 500
NUM_THREADS = 4


def measure_channels(images: ImageSet) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels of 500 images, spread evenly over the set.

    Returns:
        `mean` and `std`, of values as `Normalize` takes them: bytes divided by 255. The deviation of a channel whose
        pixels are all the same is 1.

    Raises:
        UserError: none of the images can be read.
    """

    def measure(row: int) -> np.ndarray | UnreadableImage:
        try:
            picture = images.load(row)
        except UnreadableImage as error:
            return error
        if images.format.in_chans == 1:
            picture = picture.convert("L")
        pixels = to_pixels(picture).astype(np.float64) / (1 if images.format.is_array else 255)
        pixels = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
        return np.stack([np.full(pixels.shape[-1], len(pixels)), pixels.sum(axis=0), np.square(pixels).sum(axis=0)])

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = list(pool.map(measure, spread(len(images), NUM_MEASURED)))
    moments = [one for one in found if not isinstance(one, UnreadableImage)]
    if not moments:
        raise UserError(f"None of {len(found)} training images can be read: {found[0]}.")
    count, total, squares = np.sum(moments, axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return {"mean": tuple(mean.tolist()), "std": tuple(np.where(std > 0, std, 1.0).tolist())}


def typical_size(source: Source, *, num_images: int = 64) -> tuple[int, int]:
    """Median height and width of the training images, of so many of them; without decoding where that can be done.

    Raises:
        UserError: none of the images can be read.
    """
    sizes = []
    images, failure = source.train, None
    for row in spread(len(images), num_images):
        try:
            shape = images.read_shape(row) if images.read_shape else to_pixels(images.load(row)).shape
            sizes.append(shape[:2])
        except UnreadableImage as error:
            failure = error
    if not sizes:
        raise UserError(f"None of {num_images} training images of {source.name} can be read: {failure}.")
    height, width = np.median(sizes, axis=0)
    return round(height), round(width)


def common_channels(images: ImageSet, *, num_images: int = 8) -> int | None:
    """The channels of so many images, as `ImageSet.read_shape` counts them; None if they differ or are unknown."""
    read_shape, found = images.read_shape, set()
    if read_shape is not None:
        for row in spread(len(images), num_images):
            with contextlib.suppress(UnreadableImage):  # which the first look at the data tells
                found.add(read_shape(row)[2])
    return found.pop() if len(found) == 1 else None


def spread(total: int, count: int) -> list[int]:
    """At most so many of the numbers from 0 to total - 1, evenly spaced."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist()
