"""Train and validation splits: the data's own, or one that is split off by class."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2t_vit.data.images import ImageSet
from t2t_vit.errors import UserError


@dataclass(frozen=True)
class Split:
    """The train or the validation split of some data, not listed yet, since listing can take long.

    Attributes:
        title: the split's name in messages, such as its folder.
        read: lists the split and returns the class names, label by label, and the images.
    """

    title: str
    read: Callable[[], tuple[tuple[str, ...], ImageSet]]


@dataclass(frozen=True)
class Splits:
    """The splits that some data has, or else all of its images as one whole.

    Attributes:
        title: the data's name in messages.
        test: the split for a last look after training.
        always_split: whether evaluation, too, sees only the validation part of a whole.
        notes: a sentence for each thing in the data that is no part of these.
    """

    title: str
    train: Split | None = None
    val: Split | None = None
    whole: Split | None = None
    test: Split | None = None
    always_split: bool = False
    notes: tuple[str, ...] = ()


def split_by_class(images: ImageSet, *, val_fraction: float, seed: int) -> tuple[ImageSet, ImageSet, dict[str, Any]]:
    """Splits images for training and validation, in the same proportion for each class and with each class in both.

    A hash of its name ranks an image in its class, so that neither the order of files on disk nor a library's random
    numbers matter.

    Args:
        images: at least two of each class.
        val_fraction: the share for validation.

    Returns:
        The images for training, those for validation, and a record of the split like `given_split`'s.

    Raises:
        UserError: the fraction is not between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"Expected a validation fraction between 0 and 1, got {val_fraction}.")
    counts = np.bincount(images.labels)
    exact = counts * val_fraction
    quota = np.floor(exact).astype(int)
    rest = math.ceil(exact.sum()) - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:rest]] += 1  # the largest remainders make the total exact
    quota = np.clip(quota, 1, counts - 1)
    rows: dict[bool, list[int]] = {False: [], True: []}  # whether they are for validation
    for row in sorted(range(len(images)), key=lambda row: hashlib.sha1(_bytes(f"{seed} {images.names[row]}")).digest()):
        label = images.labels[row]
        rows[bool(quota[label] > 0)].append(row)
        quota[label] -= 1
    train, val = (images.subset(sorted(side)) for side in rows.values())
    return train, val, {"kind": "stratified", "val_fraction": val_fraction, "seed": seed, **_fingerprint(train, val)}


def given_split(train: ImageSet, val: ImageSet) -> dict[str, Any]:
    """The record of the data's own split, as plain JSON values; equal records mean equal splits."""
    return {"kind": "given", **_fingerprint(train, val)}


def _fingerprint(train: ImageSet, val: ImageSet) -> dict[str, Any]:
    """Sizes and a hash of the sorted names of both sides: it changes if a file is new, or changes sides."""
    sha1 = hashlib.sha1()
    for images in (train, val):
        for name in sorted(images.names):
            sha1.update(_bytes(name + "\n"))
        sha1.update(b"\n")
    return {"num_train": len(train), "num_val": len(val), "fingerprint": sha1.hexdigest()}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names need not be valid text
