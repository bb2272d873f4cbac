"""Numbers that are measured on a sample of images."""

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


def typical_shape(source: Source, *, num_images: int = 64) -> tuple[int, int, int]:
    """Median height, width and channels of the training images, of so many of them; without decoding where possible.

    Raises:
        UserError: none of the images can be read.
    """
    shapes = []
    images, failure = source.train, None
    for row in spread(len(images), num_images):
        try:
            shapes.append(images.read_shape(row) if images.read_shape else to_pixels(images.load(row)).shape)
        except UnreadableImage as error:
            failure = error
    if not shapes:
        raise UserError(f"None of {num_images} training images of {source.name} can be read: {failure}.")
    height, width, channels = np.median(shapes, axis=0).round().astype(int).tolist()
    return height, width, channels


def spread(total: int, count: int) -> list[int]:
    """At most so many of the numbers from 0 to total - 1, evenly spaced."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist()
