"""Train and validation splits: the data's own, or one that is split off by class, in groups where there are some."""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2t_vit.data.images import ImageSet
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.runtime.files import as_bytes

NUM_TRIED = 50
"""Orders of the groups that are tried for a split whose sizes are near to what is wanted."""
NEAR = 0.01
"""Deviation from the wanted share of the classes at which no other order is tried."""


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


def split_by_class(
    images: ImageSet, *, class_names: Sequence[str], val_fraction: float, seed: int, group_by: str | None = None
) -> tuple[ImageSet, ImageSet, dict[str, Any]]:
    """Splits images for training and validation, in the same proportion for each class and with each class in both.

    A hash of its name ranks an image in its class, so that neither the order of files on disk nor a library's random
    numbers matter. With groups, the proportion is as near as groups allow that are not divided.

    Args:
        images: at least two of each class.
        class_names: label to name.
        val_fraction: the share for validation.
        group_by: what `groups_of` takes; None for images that are a group each.

    Returns:
        The images for training, those for validation, and a record of the split like `given_split`'s.

    Raises:
        UserError: the fraction is not between 0 and 1, or the groups cannot be shared among both sides.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"Expected a validation fraction between 0 and 1, got {val_fraction}.")
    record = {"kind": "stratified", "val_fraction": val_fraction, "seed": seed}
    if group_by is None:
        is_val = _choose_images(images, val_fraction, seed)
    else:
        record["group_by"] = group_by
        is_val = _choose_groups(images, groups_of(images.names, group_by), class_names, val_fraction, seed)
    train, val = (images.subset(np.flatnonzero(side).tolist()) for side in (~is_val, is_val))
    return train, val, {**record, **fingerprint(train=train, val=val)}


def groups_of(names: Sequence[str], group_by: str) -> list[str]:
    """The group of each image: what the first parenthesis of a regular expression finds in its name, or all it finds.

    An image in whose name nothing is found is a group of its own.

    Raises:
        UserError: it is no regular expression, or it finds nothing, or the same in all names.
    """
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UserError(f"--group-by must be a regular expression, got {group_by!r}: {error}.") from None
    found = [pattern.search(name) for name in names]
    if not any(found):
        raise UserError(
            f"--group-by {group_by!r} finds nothing in the names of the images, such as {abbreviate(names, limit=2)}. "
            "Give a regular expression that finds the group in them, such as 'patient[0-9]+'."
        )
    groups = [
        name if match is None else match[0 if match.re.groups == 0 or match[1] is None else 1]
        for name, match in zip(names, found, strict=True)
    ]
    if len(set(groups)) == 1:
        raise UserError(
            f"--group-by {group_by!r} puts all images into one group, {groups[0]!r}, which cannot be divided. "
            "Give a regular expression that finds what differs between groups."
        )
    return groups


def divided_groups(train: Iterable[str], val: Iterable[str], group_by: str) -> list[str]:
    """The groups that have images on both sides of a split, by the names of the images on each."""
    train, val = list(train), list(val)
    groups = groups_of([*train, *val], group_by)
    return sorted(set(groups[: len(train)]) & set(groups[len(train) :]))


def _choose_images(images: ImageSet, val_fraction: float, seed: int) -> np.ndarray:
    """Whether each image is for validation."""
    counts = np.bincount(images.labels)
    exact = counts * val_fraction
    quota = np.floor(exact).astype(int)
    rest = math.ceil(exact.sum()) - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:rest]] += 1  # the largest remainders make the total exact
    quota = np.clip(quota, 1, counts - 1)
    is_val = np.zeros(len(images), bool)
    for row in sorted(range(len(images)), key=lambda row: hash_rank(f"{seed} {images.names[row]}")):
        label = images.labels[row]
        is_val[row] = quota[label] > 0
        quota[label] -= 1
    return is_val


def _choose_groups(
    images: ImageSet, groups: Sequence[str], class_names: Sequence[str], val_fraction: float, seed: int
) -> np.ndarray:
    """Whether each image is for validation, where a group is on one side.

    Each order of the groups gives a split: a group is for validation if that brings the shares of its classes nearer to
    what is wanted, or a class first gets there. The best of some orders is taken.
    """

    def deviation(val: np.ndarray) -> float:
        return float(np.square(val - val_fraction).sum() + (val == 0).sum())

    names = sorted(set(groups))
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.array([number_of[group] for group in groups])
    # Groups and their classes: a table of all with all would be large.
    pairs, counts = np.unique(np.stack([numbers, np.asarray(images.labels)]), axis=1, return_counts=True)
    of_classes = np.bincount(images.labels, minlength=len(class_names))
    in_one = [class_names[label] for label in np.flatnonzero(np.bincount(pairs[1]) == 1).tolist()]
    if in_one:
        raise UserError(
            f"--group-by finds one group only in these classes, which cannot be on both sides of the split: "
            f"{abbreviate(in_one)}. Add images of other groups, remove the classes, or make val/ yourself."
        )
    bounds = np.searchsorted(pairs[0], np.arange(1, len(names)))
    classes = np.split(pairs[1], bounds)
    shares = np.split(counts / of_classes[pairs[1]], bounds)
    best, least = np.zeros(len(names), bool), math.inf
    for attempt in range(NUM_TRIED):
        chosen, val = np.zeros(len(names), bool), np.zeros(len(class_names))
        for group in sorted(range(len(names)), key=lambda group: hash_rank(f"{seed} {attempt} {names[group]}")):
            before = val[classes[group]]
            after = before + shares[group]
            # Each class keeps a group to train on.
            if deviation(after) < deviation(before) and (after < 1 - 1e-9).all():
                chosen[group], val[classes[group]] = True, after
        found = deviation(val) / len(class_names)
        if found < least:
            best, least = chosen, found
        if least < NEAR**2:
            break
    if not set(pairs[1].tolist()) <= set(pairs[1][best[pairs[0]]].tolist()):
        raise UserError(
            f"The {len(names)} groups of --group-by allow no split with each class on both sides: "
            "give another --val-fraction, add images of other groups, or make val/ yourself."
        )
    return best[numbers]


def hash_rank(text: str) -> bytes:
    """A number that ranks a text among others, at random and everywhere the same."""
    return hashlib.sha1(as_bytes(text)).digest()


def without(images: ImageSet, excluded: Collection[str]) -> ImageSet:
    """The images but those of these names."""
    if not excluded:
        return images
    return images.subset([row for row, name in enumerate(images.names) if name not in excluded])


def given_split(train: ImageSet, val: ImageSet) -> dict[str, Any]:
    """The record of the data's own split, as plain JSON values; equal records mean equal splits."""
    return {"kind": "given", **fingerprint(train=train, val=val)}


def fingerprint(**parts: ImageSet) -> dict[str, Any]:
    """Sizes and a hash of the sorted names of each part: it changes if a file is new, or in another part."""
    sha1 = hashlib.sha1()
    for images in parts.values():
        for name in sorted(images.names):
            sha1.update(as_bytes(name + "\n"))
        sha1.update(b"\n")
    return {**{f"num_{part}": len(images) for part, images in parts.items()}, "fingerprint": sha1.hexdigest()}
