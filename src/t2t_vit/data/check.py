"""Looks at data before training: a first look when training starts, and the report of `t2t-vit data`."""

import json
import math
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from t2t_vit.data.agreement import Agreement, check_agreement, tiny_copy
from t2t_vit.data.config import DataConfig
from t2t_vit.data.crops import Box
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.loading import DrawnImages, EvaluationBatches, make_loader
from t2t_vit.data.pixels import Picture, to_picture
from t2t_vit.data.sources import Source, open_configured
from t2t_vit.data.statistics import spread
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.runtime.console import Display

NUM_FIRST = 8  # images of each split that training tries at its start
# The report's images: NUM_SPREAD over each whole split, the others shared among the classes that are compared.
NUM_SPREAD = 200
MAX_CLASSES, NUM_TRAIN, NUM_VAL = 20, 1280, 640
NUM_THREADS = 8
LARGE_PIXELS = 10_000_000
IMBALANCED = 10  # times as many training images of one class as of another


@dataclass(frozen=True)
class DataReport:
    """What a sample of the data is like; `str` makes it the report of `t2t-vit data`.

    Attributes:
        name: the data, as the user wrote it.
        counts: class name to the numbers of its training and validation images.
        num_test: number of images to test on after training.
        notes: a sentence for each thing in the data that is left out.
        num_sampled: number of images tried.
        unreadable: those that cannot be read, and why.
        mean_size: mean height and width of the readable ones in pixels.
        largest: name, height and width of the largest one.
        of_one_colour: names of those whose pixels are all the same.
        agreement: whether the labels of both splits agree; None if there are too few images to tell.
    """

    name: str
    counts: dict[str, tuple[int, int]]
    num_test: int
    notes: tuple[str, ...]
    num_sampled: int
    unreadable: list[UnreadableImage]
    mean_size: tuple[float, float]
    largest: tuple[str, int, int]
    of_one_colour: list[str]
    agreement: Agreement | None

    @property
    def warnings(self) -> list[str]:
        """A sentence for each thing to look at before training."""
        sentences = []
        for place, split in enumerate(("training", "validation")):
            if without := [name for name, counts in self.counts.items() if counts[place] == 0]:
                sentences.append(f"Classes without {split} images, {len(without)} in all: {abbreviate(without)}.")
        trained = {name: train for name, (train, _) in self.counts.items() if train}
        smallest, largest = (choose(trained, key=lambda name: trained[name]) for choose in (min, max))
        if trained[largest] >= IMBALANCED * trained[smallest]:
            times = f"{trained[largest] / trained[smallest]:.0f} times"
            sentences.append(
                f"{largest} has {times} as many training images as {smallest}: "
                "a network may never name the rare classes. Look at the accuracy of each class in the report."
            )
        if self.unreadable:
            sentences.append(_describe_unreadable(self.unreadable, self.num_sampled, "images", self.name))
        if self.of_one_colour:
            sentences.append(
                f"{len(self.of_one_colour)} of {self.num_sampled} sampled images have one colour all over: "
                f"{abbreviate(self.of_one_colour)}."
            )
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
        """How many classes and images there are, how the images are shared among the classes, and what is left out."""
        train, val = (sum(counts) for counts in zip(*self.counts.values(), strict=True))
        smallest, largest = (choose(self.counts, key=lambda name: self.counts[name][0]) for choose in (min, max))
        fewest, most = self.counts[smallest][0], self.counts[largest][0]
        shares = f"each has {most:,} training images"
        if fewest < most:
            shares = f"the smallest is {smallest} with {fewest:,} training images, the largest {largest} with {most:,}"
            shares += f", {most / fewest:.1f} times as many" if fewest else ""
        test = f", {self.num_test:,} to test" if self.num_test else ""
        heading = f"{self.name}: {len(self.counts)} classes, {train:,} images to train on, {val:,} to validate{test}"
        return "\n".join([heading, f"classes: {shares}", *(f"note: {note}" for note in self.notes)])

    def describe_images(self) -> str:
        """What a sample of the images is like, and warnings."""
        (height, width), (largest, *largest_size) = self.mean_size, self.largest
        lines = [
            f"images: {self.num_sampled:,} sampled, {len(self.unreadable)} unreadable, "
            f"{height:.0f} x {width:.0f} pixels on average",
            f"largest: {largest}, {largest_size[0]:,} x {largest_size[1]:,} pixels",
            f"labels: {self.agreement or 'too few images to compare those of training and validation'}",
            *(f"warning: {sentence}" for sentence in self.warnings),
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.describe_classes()}\n{self.describe_images()}"

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {
            "data": self.name,
            "classes": {name: {"train": train, "val": val} for name, (train, val) in self.counts.items()},
            "sampled": self.num_sampled,
            "sampled_unreadable": [str(error) for error in self.unreadable],
            "mean_height_px": self.mean_size[0],
            "mean_width_px": self.mean_size[1],
            "largest": dict(zip(("image", "height_px", "width_px"), self.largest, strict=True)),
            "of_one_colour": self.of_one_colour,
            "test": self.num_test,
            "notes": list(self.notes),
            "labels": None if self.agreement is None else asdict(self.agreement),
            "warnings": self.warnings,
        }


def first_look(source: Source) -> str:
    """What training says of its data before the first step: counts of classes, and warnings.

    It decodes only a few images of each split; `inspect_data` finds more.

    Raises:
        UserError: most of these images cannot be read.
    """
    train, val = (_decode(images, spread(len(images), NUM_FIRST)) for images in (source.train, source.val))
    for split, look in (("training", train), ("validation", val)):
        if len(look.unreadable) > len(look.seen):  # what is left is hardly the data that was meant
            num_tried = len(look.unreadable) + len(look.seen)
            raise UserError(_describe_unreadable(look.unreadable, num_tried, f"{split} images", source.name))
    report = _summarize(source, train, val)
    warnings = [f"warning: {sentence}" for sentence in report.warnings]
    return "\n".join([report.describe_classes(), *warnings, f"`{_command(source)}` checks more"])


def inspect_data(source: Source, *, limit_s: float = 20.0, display: Display | None = None) -> DataReport:
    """Decodes a sample of the images and compares the labels of the two splits.

    The sample is the same each time, unless decoding takes longer than `limit_s`.

    Raises:
        UserError: no image of the sample can be read.
    """
    compared = np.flatnonzero(np.minimum(*_count_labels(source)))
    compared = compared[spread(len(compared), MAX_CLASSES)]
    rows = _sample(source.train, compared, NUM_TRAIN), _sample(source.val, compared, NUM_VAL)
    with (display or Display(silent=True)).steps("decoding a sample", len(rows[0]) + len(rows[1])) as steps:
        train = _decode(source.train, rows[0], limit_s / 2, steps.advance)
        val = _decode(source.val, rows[1], limit_s / 2, steps.advance)
    if not train.seen and not val.seen:
        unreadable = train.unreadable + val.unreadable
        raise UserError(f"None of {len(unreadable)} images of {source.name} can be read: {_with_reasons(unreadable)}.")
    return _summarize(source, train, val, check_agreement(*train.of_classes(compared), *val.of_classes(compared)))


def data_command(config: DataConfig) -> int:
    """`t2t-vit data`: prints the report or, with --verify, every unreadable image.

    Returns:
        The exit code: 2 if --verify finds unreadable images, else 0.
    """
    if config.workers is not None and not config.verify:
        raise UserError("--workers decodes for --verify, and has no effect without it: leave it out.")
    source = open_configured(config)
    if not config.json:
        nothing = _Look([], [])
        print(_summarize(source, nothing, nothing).describe_classes(), flush=True)  # decoding may take long
    report = inspect_data(source, display=Display(stderr=True))
    if not config.json:
        print(report.describe_images(), flush=True)
    unreadable = verify(source, workers=config.workers) if config.verify else []
    if config.json:
        content = report.to_json() | ({"unreadable": unreadable} if config.verify else {})
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif config.verify:
        total = len(source.train) + len(source.val)
        print(*unreadable, f"{len(unreadable):,} of {total:,} images cannot be read.", sep="\n")
    return 2 if unreadable else 0


def verify(source: Source, *, workers: int | None = None) -> list[str]:
    """Decodes all images and returns a sentence for each that cannot be read.

    Args:
        workers: processes that decode; None takes one for each core.
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


def _to_nothing(image: Picture) -> Tensor:
    return torch.empty(3, 0, 0)  # decoding it was all that is needed


class _Seen(NamedTuple):
    """What one image looks like: `tiny_copy` of it, (D,), its size, and whether its pixels are all the same."""

    name: str
    label: int
    height: int
    width: int
    copy: np.ndarray
    is_of_one_colour: bool


@dataclass(frozen=True)
class _Look:
    """What decoding some images of a split showed.

    Attributes:
        seen: those that can be read.
        unreadable: the others, and why they are.
    """

    seen: list[_Seen]
    unreadable: list[UnreadableImage]

    def of_classes(self, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copies, (N, D), and labels, (N,), of the images of these classes."""
        chosen = [one for one in self.seen if one.label in classes]
        copies = np.array([one.copy for one in chosen])
        return copies, np.array([one.label for one in chosen], int)


class _Glance:
    """A crop that takes the whole image, and has a JPEG decoded to little more than a tiny copy needs."""

    def choose(self, width: int, height: int) -> Box:
        self.height, self.width = height, width
        return Box(0, 0, width, height)

    def reduction(self, box: Box) -> int:
        return max(1, min(box.right, box.bottom) // 64)

    def resize(self, pixels: np.ndarray) -> Picture:
        self.is_of_one_colour = bool((pixels.min(axis=(0, 1)) == pixels.max(axis=(0, 1))).all())
        every = math.ceil((pixels.shape[0] * pixels.shape[1] / LARGE_PIXELS) ** 0.5)
        return to_picture(np.ascontiguousarray(pixels[::every, ::every]))


def _decode(
    images: ImageSet, rows: Sequence[int], limit_s: float = float("inf"), advance: Callable[[], None] = lambda: None
) -> _Look:
    """Looks at these images, in order; if time runs out, at a fair sample of them."""
    deadline = time.monotonic() + limit_s
    one_at_a_time = threading.Lock()

    def decode(row: int) -> _Seen | UnreadableImage | None:
        if time.monotonic() > deadline:
            return None
        glance = _Glance()
        try:
            # Each takes up to a gigabyte while it is decoded.
            is_large = images.read_shape is not None and math.prod(images.read_shape(row)[:2]) > LARGE_PIXELS
            with one_at_a_time if is_large else nullcontext():
                if time.monotonic() > deadline:
                    return None
                copy = tiny_copy(images.load(row, glance))
        except UnreadableImage as error:
            return error
        finally:
            advance()
        name, label = images.names[row], images.labels[row]
        return _Seen(name, label, glance.height, glance.width, copy, glance.is_of_one_colour)

    order = np.random.default_rng(0).permutation(rows).tolist()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = [one for _, one in sorted(zip(order, pool.map(decode, order), strict=True), key=lambda pair: pair[0])]
    unreadable = [one for one in found if isinstance(one, UnreadableImage)]
    return _Look([one for one in found if isinstance(one, _Seen)], unreadable)


def _summarize(source: Source, train: _Look, val: _Look, agreement: Agreement | None = None) -> DataReport:
    counts = zip(*(counts.tolist() for counts in _count_labels(source)), strict=True)
    seen, unreadable = train.seen + val.seen, train.unreadable + val.unreadable
    largest = max(seen, key=lambda one: one.height * one.width, default=None)
    return DataReport(
        name=source.name,
        counts=dict(zip(source.class_names, counts, strict=True)),
        num_test=len(source.test or ()),
        notes=source.notes,
        num_sampled=len(seen) + len(unreadable),
        unreadable=unreadable,
        mean_size=(fmean(one.height for one in seen), fmean(one.width for one in seen)) if seen else (0.0, 0.0),
        largest=(largest.name, largest.height, largest.width) if largest else ("", 0, 0),
        of_one_colour=[one.name for one in seen if one.is_of_one_colour],
        agreement=agreement,
    )


def _count_labels(source: Source) -> list[np.ndarray]:
    """The numbers of training and of validation images of each class."""
    return [np.bincount(images.labels, minlength=len(source.class_names)) for images in (source.train, source.val)]


def _sample(images: ImageSet, classes: np.ndarray, num_images: int) -> list[int]:
    """Rows spread over the whole split, and for each of these classes its share of `num_images`; in order."""
    labels = np.asarray(images.labels)
    rows = set(spread(len(labels), NUM_SPREAD))
    for label in classes:
        of_class = np.flatnonzero(labels == label)
        rows |= set(of_class[spread(len(of_class), num_images // len(classes))].tolist())
    return sorted(rows)


def _command(source: Source) -> str:
    """The command that reports on this data."""
    format = source.train.format
    return f"t2t-vit data {shlex.quote(source.name)}" + (f" --in-chans {format.in_chans}" if format.is_array else "")


def _with_reasons(errors: Sequence[UnreadableImage]) -> str:
    """The names of images that cannot be read; a reason that all have in common is told once."""
    if len({error.reason for error in errors}) == 1:
        return f"{abbreviate(error.name for error in errors)}: {errors[0].reason}"
    return abbreviate(map(str, errors), separator="; ")


def _describe_unreadable(errors: Sequence[UnreadableImage], num_tried: int, what: str, data: str) -> str:
    return (
        f"{len(errors)} of {num_tried} sampled {what} of {data} cannot be read: {_with_reasons(errors)}. "
        f"`t2t-vit data {shlex.quote(data)} --verify` finds them all."
    )
