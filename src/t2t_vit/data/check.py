"""Looks at data before training: a first look when training starts, and the report of `t2t-vit data`."""

import json
import shlex
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2t_vit.data.agreement import Agreement, check_agreement, tiny_copy
from t2t_vit.data.config import DataConfig
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.loading import DrawnImages, EvaluationBatches, make_loader
from t2t_vit.data.sources import Source, open_source
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.runtime.console import Display

NUM_FIRST = 8  # images of each split, at the start of training
# The report's images: over the whole of each split, and shared among classes whose labels are compared.
NUM_SPREAD = 200
MAX_CLASSES, NUM_TRAIN, NUM_VAL = 20, 1280, 640
NUM_THREADS = 8


@dataclass(frozen=True)
class DataReport:
    """What a sample of the data is like; as text, the report of `t2t-vit data`.

    Attributes:
        name: the data, as the user wrote it.
        counts: of each class, the number of training and of validation images.
        num_sampled: images that were decoded, or could not be.
        unreadable: a sentence for each of them that could not.
        mean_size: mean height and width of the others in pixels.
        agreement: whether the labels of both splits agree; None where there are too few images to tell.
    """

    name: str
    counts: dict[str, tuple[int, int]]
    num_sampled: int
    unreadable: list[str]
    mean_size: tuple[float, float]
    agreement: Agreement | None

    @property
    def warnings(self) -> list[str]:
        """A sentence for each thing to look at before training."""
        sentences = []
        for place, split in enumerate(("training", "validation")):
            if without := [name for name, counts in self.counts.items() if counts[place] == 0]:
                sentences.append(f"{len(without)} classes have no {split} images: {abbreviate(without)}.")
        if self.unreadable:
            sentences.append(_describe_unreadable(self.unreadable, self.num_sampled, "images", self.name))
        if self.agreement and self.agreement.verdict == "unrelated":
            sentences.append(
                "The labels of the validation images look unrelated to those of the training images. "
                "Look at some of each class in both: are they of the same kind?"
            )
        if self.agreement and self.agreement.verdict == "permuted":
            names = list(self.counts)
            pairs = abbreviate(f"{names[old]} like {names[new]}" for old, new in self.agreement.renamed)
            sentences.append(
                f"The labels of the validation images look permuted: validation images of {pairs} in training."
            )
        return sentences

    def describe_classes(self) -> str:
        """Two lines: how many classes and images there are, and how the images are shared among the classes."""
        train, val = (sum(counts) for counts in zip(*self.counts.values(), strict=True))
        smallest, largest = (choose(self.counts, key=lambda name: self.counts[name][0]) for choose in (min, max))
        fewest, most = self.counts[smallest][0], self.counts[largest][0]
        shares = f"each has {most:,} training images"
        if fewest < most:
            shares = f"the smallest is {smallest} with {fewest:,} training images, the largest {largest} with {most:,}"
            shares += f", {most / fewest:.1f} times as many" if fewest else ""
        heading = f"{self.name}: {len(self.counts)} classes, {train:,} images to train on, {val:,} to validate"
        return f"{heading}\nclasses: {shares}"

    def __str__(self) -> str:
        height, width = self.mean_size
        lines = [
            self.describe_classes(),
            f"images: {self.num_sampled:,} sampled, {len(self.unreadable)} unreadable, "
            f"{height:.0f} x {width:.0f} pixels on average",
            f"labels: {self.agreement or 'too few images to compare those of training and validation'}",
            *(f"warning: {sentence}" for sentence in self.warnings),
        ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "data": self.name,
            "classes": {name: {"train": train, "val": val} for name, (train, val) in self.counts.items()},
            "sampled": self.num_sampled,
            "sampled_unreadable": self.unreadable,
            "mean_height_px": self.mean_size[0],
            "mean_width_px": self.mean_size[1],
            "labels": None if self.agreement is None else asdict(self.agreement),
            "warnings": self.warnings,
        }


def first_look(source: Source) -> str:
    """What training says of its data before the first step: the counts of classes, and warnings.

    Only a few images of each split are decoded, which takes a moment; `inspect_data` finds more.

    Raises:
        UserError: most of the images tried of a split cannot be read.
    """
    train, val = (_decode(images, _spread(len(images), NUM_FIRST)) for images in (source.train, source.val))
    for split, look in (("training", train), ("validation", val)):
        if len(look.unreadable) > len(look.labels):  # what is left is hardly the data that was meant
            num_tried = len(look.unreadable) + len(look.labels)
            raise UserError(_describe_unreadable(look.unreadable, num_tried, f"{split} images", source.name))
    report = _summarize(source, train, val)
    warnings = [f"warning: {sentence}" for sentence in report.warnings]
    return "\n".join([report.describe_classes(), *warnings, f"`t2t-vit data {shlex.quote(source.name)}` checks more"])


def inspect_data(source: Source, *, limit_s: float = 20.0) -> DataReport:
    """Decodes a sample of the images and compares the labels of the two splits.

    The sample is the same each time, unless the disk is so slow that the time runs out first.

    Args:
        source: the data.
        limit_s: time for decoding.

    Raises:
        UserError: none of the images that were tried can be read.
    """
    compared = np.flatnonzero(np.minimum(*_count_labels(source)))
    compared = compared[_spread(len(compared), MAX_CLASSES)]
    train = _decode(source.train, _sample(source.train, compared, NUM_TRAIN), limit_s / 2)
    val = _decode(source.val, _sample(source.val, compared, NUM_VAL), limit_s / 2)
    if not len(train.labels) + len(val.labels):
        unreadable = train.unreadable + val.unreadable
        raise UserError(f"None of {len(unreadable)} images of {source.name} can be read: {abbreviate(unreadable)}.")
    return _summarize(source, train, val, check_agreement(*train.of_classes(compared), *val.of_classes(compared)))


def data_command(config: DataConfig) -> int:
    """`t2t-vit data`: prints the report, and with --verify what cannot be read of all images.

    Returns:
        The exit code: 2 when --verify finds unreadable images, else 0.

    Raises:
        UserError: for data that cannot be used, or a setting without effect.
    """
    if config.workers is not None and not config.verify:
        raise UserError("--workers decodes for --verify, and has no effect without it: leave it out.")
    source = open_source(config.data, data_dir=config.data_dir, val_fraction=config.val_fraction)
    report = inspect_data(source)
    if not config.json:
        print(report, flush=True)
    unreadable = verify(source, workers=config.workers) if config.verify else []
    if config.json:
        print(json.dumps(report.to_json() | ({"unreadable": unreadable} if config.verify else {}), indent=2))
    elif config.verify:
        total = len(source.train) + len(source.val)
        print(*unreadable, f"{len(unreadable):,} of {total:,} images cannot be read.", sep="\n")
    return 2 if unreadable else 0


def verify(source: Source, *, workers: int | None = None) -> list[str]:
    """A sentence for each image that cannot be read. Decodes them all, with a progress bar on a terminal.

    Args:
        source: the data.
        workers: processes that decode; None is one for each core.
    """
    unreadable: list[str] = []
    display = Display(stderr=True)  # standard output is for the report
    with display.steps("decoding", len(source.train) + len(source.val)) as steps:
        for images in (source.train, source.val):
            batches = EvaluationBatches(len(images), batch_size=32)
            for batch in make_loader(DrawnImages(images, _to_nothing), batches, workers=workers):
                unreadable += batch.unreadable
                steps.advance(by=len(batch.images) + len(batch.unreadable))
    return unreadable


def _to_nothing(image: Image.Image) -> Tensor:
    return torch.empty(3, 0, 0)  # the image has been decoded, and nothing else is asked of it


@dataclass(frozen=True)
class _Look:
    """What decoding some images of a split showed.

    Attributes:
        labels: of those that can be read, (N,).
        sizes: their heights and widths, (N, 2).
        copies: what `tiny_copy` makes of them, (N, 768).
        unreadable: a sentence for each of the others.
    """

    labels: np.ndarray
    sizes: np.ndarray
    copies: np.ndarray
    unreadable: list[str]

    def of_classes(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies and labels of the images of these classes."""
        chosen = np.isin(self.labels, classes)
        return self.copies[chosen], self.labels[chosen]


def _decode(images: ImageSet, rows: Sequence[int], limit_s: float = float("inf")) -> _Look:
    """Looks at these images, in order; where time runs out, at a fair sample of them."""
    deadline = time.monotonic() + limit_s

    def decode(row: int) -> tuple[tuple[int, int], np.ndarray] | UnreadableImage | None:
        if time.monotonic() > deadline:
            return None
        try:
            image = images.load(row)
        except UnreadableImage as error:
            return error
        return (image.height, image.width), tiny_copy(image)

    order = np.random.default_rng(0).permutation(rows).tolist()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = sorted(zip(order, pool.map(decode, order), strict=True), key=lambda pair: pair[0])
    readable = [(images.labels[row], *one) for row, one in found if isinstance(one, tuple)]
    labels, sizes, copies = zip(*readable, strict=True) if readable else ((), (), ())
    unreadable = [str(one) for _, one in found if isinstance(one, UnreadableImage)]
    return _Look(np.array(labels, int), np.array(sizes).reshape(-1, 2), np.array(copies).reshape(-1, 768), unreadable)


def _summarize(source: Source, train: _Look, val: _Look, agreement: Agreement | None = None) -> DataReport:
    counts = zip(*(counts.tolist() for counts in _count_labels(source)), strict=True)
    sizes, unreadable = np.concatenate([train.sizes, val.sizes]), train.unreadable + val.unreadable
    return DataReport(
        name=source.name,
        counts=dict(zip(source.class_names, counts, strict=True)),
        num_sampled=len(sizes) + len(unreadable),
        unreadable=unreadable,
        mean_size=tuple(sizes.mean(axis=0).tolist()),
        agreement=agreement,
    )


def _count_labels(source: Source) -> list[np.ndarray]:
    """The number of training and of validation images of each class."""
    return [np.bincount(images.labels, minlength=len(source.class_names)) for images in (source.train, source.val)]


def _spread(total: int, count: int) -> list[int]:
    """At most so many of the numbers from 0 to total - 1, evenly spaced."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist()


def _sample(images: ImageSet, classes: np.ndarray, num_images: int) -> list[int]:
    """Rows over the whole split, and of each of these classes as many as make up the number; in order."""
    labels = np.asarray(images.labels)
    rows = set(_spread(len(labels), NUM_SPREAD))
    for label in classes:
        of_class = np.flatnonzero(labels == label)
        rows |= set(of_class[_spread(len(of_class), num_images // len(classes))].tolist())
    return sorted(rows)


def _describe_unreadable(sentences: Sequence[str], num_tried: int, what: str, data: str) -> str:
    return (
        f"{len(sentences)} of {num_tried} sampled {what} of {data} cannot be read: {abbreviate(sentences)}. "
        f"`t2t-vit data {shlex.quote(data)} --verify` finds them all."
    )
