"""Images drawn from formulas as data to train on: `t2t-vit pretrain`, or `train formulas`."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from t2t_vit.data.crops import Crop
from t2t_vit.data.formulas import FAMILIES, draw
from t2t_vit.data.images import ImageSet, crop_pixels
from t2t_vit.data.pixels import RGB, Picture, PixelFormat
from t2t_vit.data.splitting import Split, Splits

CLASSES = {"strokes": 1024, "contours": 256, "fractals": 256, "motifs": 256, "waves": 256, "leaves": 512}
"""How many classes there are of each family. Strokes have most, since signs are told apart by little."""
CLASS_NAMES = tuple(f"{family}/{number:04d}" for family, count in CLASSES.items() for number in range(count))
TRAIN_PER_CLASS, VAL_PER_CLASS = 25, 1
"""Images of a class in an epoch, each epoch having others, and those to validate on."""
SIDE_PX = 64
"""Side of an image that is asked for without a size."""


def formula_splits(name: str) -> Splits:
    """Images of 2,560 classes drawn from formulas; each epoch has other training images."""
    return Splits(
        name,
        Split("images to train on", partial(_read, "train", VAL_PER_CLASS, TRAIN_PER_CLASS)),
        Split("images to validate on", partial(_read, "val", 0, VAL_PER_CLASS)),
    )


def _read(part: str, first: int, per_class: int) -> tuple[tuple[str, ...], ImageSet]:
    labels = np.repeat(np.arange(len(CLASS_NAMES)), per_class).tolist()
    names = [f"{part}/{CLASS_NAMES[label]}/{row % per_class:03d}" for row, label in enumerate(labels)]
    load, generate = partial(_load, first, per_class), partial(_generate, first, per_class)
    return CLASS_NAMES, ImageSet(names, labels, load, generate=generate)


def _load(first: int, per_class: int, index: int, crop: Crop | None = None, *, format: PixelFormat = RGB) -> Picture:
    pixels = _generate(first, per_class, [index], [0])[0]
    return crop_pixels([format.channels(pixels) if format.is_array else pixels], crop)


def _generate(
    first: int, per_class: int, rows: Sequence[int], epochs: Sequence[int], *, side: int = SIDE_PX
) -> np.ndarray:
    """Images, (B, side, side, 3), uint8: `first` is the number of a class's first image in epoch 0."""
    labels, places = np.divmod(np.asarray(rows), per_class)
    instances = first + np.asarray(epochs) * per_class + places
    pixels = np.empty((len(rows), side, side, 3), np.uint8)
    begin = 0
    for family in FAMILIES:
        end = begin + CLASSES[family]
        chosen = np.flatnonzero((labels >= begin) & (labels < end))
        if len(chosen):
            classes, numbers = (torch.from_numpy(values[chosen]) for values in (labels - begin, instances))
            pixels[chosen] = draw(family, classes, numbers, side=side).permute(0, 2, 3, 1).numpy()
        begin = end
    return pixels
