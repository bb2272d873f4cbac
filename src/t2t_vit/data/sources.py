"""Labelled images by name, folder or file: what to train on, and what to evaluate on."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2t_vit.data.cifar import CIFARS, cifar_parts
from t2t_vit.data.folders import find_parts
from t2t_vit.data.huggingface import hugging_face_parts
from t2t_vit.data.images import ImageSet, Part, Parts, UnreadableImage, array_images, read_image
from t2t_vit.data.shards import shard_parts
from t2t_vit.errors import UserError, abbreviate, closest

DIGITS = "digits"
STREAMS = ("tfds", "hfids")  # what timm has no random access to

__all__ = [
    "Evaluation",
    "ImageSet",
    "Source",
    "UnreadableImage",
    "open_evaluation",
    "open_source",
    "other_classes",
    "read_image",
]


@dataclass(frozen=True)
class Source:
    """What to train on and what to validate on.

    Attributes:
        class_names: label to name; train and val agree on it.
        split: how val came about, as plain JSON values; equal records mean equal images on both sides.
    """

    name: str
    train: ImageSet
    val: ImageSet
    class_names: tuple[str, ...]
    split: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate on.

    Attributes:
        part: which of the data these images are, in words.
    """

    images: ImageSet
    class_names: tuple[str, ...]
    part: str


def open_source(data: str, *, data_dir: str | None = None, val_fraction: float = 0.2, seed: int = 42) -> Source:
    """The training and validation images of some data.

    Data is one of these; a name comes first: write ./digits for a folder of that name.

    - a folder with train/ and val/ (or validation/), each with a folder for each class, or train.tar and val.tar;
    - a folder with class folders alone, of which a part is split off;
    - a .tar file with either of these inside;
    - digits, cifar10, cifar100;
    - wds/FOLDER, webdataset shards;
    - hfds/NAME, a data set of the Hugging Face Hub or a folder in its formats.

    Args:
        data_dir: where cifar10 and cifar100 are, or are put, by default data/; the cache of hfds/NAME.
        val_fraction: share of each class to split off, where val does not exist.
        seed: seed of that split.

    Raises:
        UserError: there is no such data, or its classes do not fit; every misfit of one kind is named at once.
    """
    parts = _parts_of(data, data_dir)
    if parts.whole is not None:
        class_names, images = parts.whole.read()
        _refuse_single_images(images, class_names, parts.title)
        return _split_source(data, images, class_names, val_fraction, seed)
    train, val = parts.train, parts.val
    if val is None:
        assert train is not None
        raise UserError(
            f"{parts.title} has train/ but neither val/ nor validation/. "
            f"Add one, or give {train.title} to have a part of it split off for validation."
        )
    if train is None:
        raise UserError(
            f"{parts.title} has images to validate on but none to train on. "
            f"Add train/, or give {val.title} to train on a part of that."
        )
    class_names, train_images = train.read()
    val_names, val_images = val.read()
    _refuse_other_classes(class_names, val_names, train.title, val.title)
    split = {"kind": "given", **_fingerprint(train_images, val_images)}
    return Source(data, train_images, val_images, class_names, split)


def open_evaluation(
    data: str, *, data_dir: str | None = None, trained_split: Mapping[str, Any] | None = None
) -> Evaluation:
    """The images of some data to measure a trained model on.

    They are those to validate on where the data tells them. Data that is one whole counts whole, unless it is the one
    that the model's training split: then its validation part. Of digits only the validation part ever counts.

    Args:
        data_dir: as for `open_source`.
        trained_split: `Source.split` as the model's checkpoint recorded it, if it did.

    Raises:
        UserError: as `open_source`.
    """
    parts = _parts_of(data, data_dir)
    if parts.val is not None:
        class_names, images = parts.val.read()
        return Evaluation(images, class_names, parts.val.title)
    if parts.whole is None:
        raise UserError(f"{parts.title} has train/ but neither val/ nor validation/. Give the folder to evaluate on.")
    class_names, images = parts.whole.read()
    known = trained_split or {}
    settings = {key: known[key] for key in ("val_fraction", "seed") if key in known}
    if settings:
        source = _split_source(data, images, class_names, **settings)
        if source.split == trained_split:
            return Evaluation(source.val, class_names, f"validation part of {parts.title}, as split for training")
    if parts.always_split:
        return Evaluation(open_source(data).val, class_names, f"validation part of {parts.title}")
    other = ", which holds other images than training split" if settings else ""
    return Evaluation(images, class_names, f"all of {parts.title}{other}")


def _parts_of(data: str, data_dir: str | None) -> Parts:
    prefix, _, rest = data.partition("/")
    if data in CIFARS:
        return cifar_parts(data, data_dir)
    if prefix == "hfds":
        return hugging_face_parts(rest, data_dir)
    if data_dir is not None:
        raise UserError(
            f"--data-dir tells where cifar10, cifar100 and hfds/NAME are, and has no effect on {data}: leave it out."
        )
    if data == DIGITS:
        return Parts(DIGITS, whole=Part(DIGITS, _read_digits), always_split=True)
    if prefix == "wds":
        return shard_parts(rest)
    if prefix in STREAMS:
        raise UserError(
            f"{data} would be read as a stream, which cannot go on in the middle of an epoch with the same images. "
            "Write its images to class folders, or to webdataset shards for wds/FOLDER."
        )
    if not os.path.exists(os.path.expanduser(data)):  # noqa: PTH110, PTH111 - which raise for names that are too long
        raise UserError(f"There is no folder {data!r}. {closest(data, (DIGITS, *CIFARS), 'data set')}")
    return find_parts(data)


def _refuse_other_classes(train: Sequence[str], val: Sequence[str], train_title: str, val_title: str) -> None:
    missing = [name for name in train if name not in set(val)]
    extra = [name for name in val if name not in set(train)]
    differences = [f"lacks {abbreviate(missing)}"] * bool(missing) + [f"has {abbreviate(extra)} besides"] * bool(extra)
    if differences:
        raise UserError(
            f"The classes of {val_title} must be those of {train_title}, but it {' and '.join(differences)}. "
            "Rename, add or remove classes until they agree."
        )
    assert list(train) == list(val)


def other_classes(found: Sequence[str], expected: Sequence[str]) -> str:
    """The classes, of two lists of the same length, whose names differ: "'flat' for 'lying'"; empty if none does."""
    return abbreviate(
        f"{ours!r} for {theirs!r}" for ours, theirs in zip(found, expected, strict=True) if ours != theirs
    )


def _refuse_single_images(images: ImageSet, class_names: Sequence[str], title: str) -> None:
    counts = np.bincount(images.labels, minlength=len(class_names))
    singles = [name for name, count in zip(class_names, counts, strict=True) if count == 1]
    if singles:
        raise UserError(
            f"{title} has no val/, and a split needs two images of each class, one to train on and one to validate; "
            f"these have one: {abbreviate(singles)}. Add images, or remove the folders."
        )


def _split_source(data: str, images: ImageSet, class_names: tuple[str, ...], val_fraction: float, seed: int) -> Source:
    train, val = _split(images, val_fraction, seed)
    split = {"kind": "stratified", "val_fraction": val_fraction, "seed": seed, **_fingerprint(train, val)}
    return Source(data, train, val, class_names, split)


def _split(images: ImageSet, val_fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Train and val parts with the classes in proportion, at least one image of each class on each side.

    An image's rank in its class is a hash of its name, so that neither the order of files on disk nor a library's
    random numbers matter.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"Expected a validation fraction between 0 and 1, got {val_fraction}.")
    counts = np.bincount(images.labels)
    exact = counts * val_fraction
    quota = np.floor(exact).astype(int)
    rest = math.ceil(exact.sum()) - int(quota.sum())
    quota[np.argsort(quota - exact, kind="stable")[:rest]] += 1  # the largest remainders make the total exact
    quota = np.clip(quota, 1, counts - 1)
    train: list[int] = []
    val: list[int] = []
    for row in sorted(range(len(images)), key=lambda row: hashlib.sha1(_bytes(f"{seed} {images.names[row]}")).digest()):
        label = images.labels[row]
        (val if quota[label] > 0 else train).append(row)
        quota[label] -= 1
    return images.subset(sorted(train)), images.subset(sorted(val))


def _fingerprint(train: ImageSet, val: ImageSet) -> dict[str, Any]:
    """Sizes and a hash of the sorted names of both sides: another file, or one that changed sides, changes it."""
    sha1 = hashlib.sha1()
    for images in (train, val):
        for name in sorted(images.names):
            sha1.update(_bytes(name + "\n"))
        sha1.update(b"\n")
    return {"num_train": len(train), "num_val": len(val), "fingerprint": sha1.hexdigest()}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names need not be valid text


def _read_digits() -> tuple[tuple[str, ...], ImageSet]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels with values 0..16; by default 360 of them for val."""
    from sklearn.datasets import load_digits  # here, because it takes a second to import

    digits = load_digits()
    arrays = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    names = [f"digits/{row:04d}" for row in range(len(arrays))]
    return tuple("0123456789"), array_images(arrays, names, digits.target.tolist())
