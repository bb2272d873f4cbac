"""Looks at data before training: a first look when training starts, and the report of `t2t-vit data`."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2t_vit.data.agreement import Agreement, check_agreement
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.loading import DrawnImages, EvaluationBatches, make_loader
from t2t_vit.data.looks import Looks
from t2t_vit.data.pixels import Picture
from t2t_vit.data.sources import Source
from t2t_vit.data.statistics import spread
from t2t_vit.data.suspects import COLUMNS, Suspects, find_suspects
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.runtime.console import Display

NUM_FIRST = 8  # images of each split that training tries at its start
# Images on which the labels of both splits are compared, shared among so many classes; they are looked at first.
MAX_CLASSES, COMPARED = 20, {"train": 1280, "val": 640}
LOOK_S = 60.0
IMBALANCED = 10  # times as many training images of one class as of another


@dataclass(frozen=True)
class DataReport:
    """What the data is like; `str` makes it the report of `t2t-vit data`.

    Attributes:
        name: the data, as the user wrote it.
        counts: class name to the numbers of its training and validation images.
        num_test: number of images to test on after training.
        notes: a sentence for each thing in the data that is left out.
        num_images: number of images in all parts.
        num_tried: number of those that were looked at: all, if there was time.
        unreadable: those that cannot be read, and why.
        mean_size: mean height and width of the readable ones in pixels.
        largest: name, height and width of the largest one.
        of_one_colour: names of those whose pixels are all the same.
        agreement: whether the labels of both splits agree; None if there are too few images to tell.
        suspects: images that look wrong; None if they were not looked for.
    """

    name: str
    counts: dict[str, tuple[int, int]]
    num_test: int
    notes: tuple[str, ...]
    num_images: int
    num_tried: int
    unreadable: list[UnreadableImage]
    mean_size: tuple[float, float]
    largest: tuple[str, int, int]
    of_one_colour: list[str]
    agreement: Agreement | None
    suspects: Suspects | None

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
                "a network may never name the rare classes. Try train --balance, and look at the accuracy of each."
            )
        if self.unreadable:
            rest = "" if self.num_tried == self.num_images else f" {_advice(self.name)}"
            sentences.append(_describe_unreadable(self.unreadable, self.num_tried, "images", self.name) + rest)
        if self.of_one_colour:
            sentences.append(
                f"{len(self.of_one_colour)} of {self.num_tried:,} images have one colour all over: "
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
        """What the images are like, and warnings."""
        (height, width), (largest, *largest_size) = self.mean_size, self.largest
        all_of_them = "all" if self.num_tried == self.num_images else f"{self.num_tried:,} of"
        in_time = "" if self.num_tried == self.num_images else " (--max-time looks at more)"
        lines = [
            f"images: {all_of_them} {self.num_images:,} looked at{in_time}, {len(self.unreadable)} unreadable, "
            f"{height:.0f} x {width:.0f} pixels on average",
            f"largest: {largest}, {largest_size[0]:,} x {largest_size[1]:,} pixels",
            f"labels: {self.agreement or 'too few images to compare those of training and validation'}",
            *([] if self.suspects is None else [f"suspects: {self.suspects}"]),
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
            "images": self.num_images,
            "looked_at": self.num_tried,
            "looked_at_unreadable": [str(error) for error in self.unreadable],
            "mean_height_px": self.mean_size[0],
            "mean_width_px": self.mean_size[1],
            "largest": dict(zip(("image", "height_px", "width_px"), self.largest, strict=True)),
            "of_one_colour": self.of_one_colour,
            "test": self.num_test,
            "notes": list(self.notes),
            "labels": None if self.agreement is None else asdict(self.agreement),
            "suspects": [dict(zip(COLUMNS, suspect, strict=True)) for suspect in self.suspects.found]
            if self.suspects
            else [],
            "warnings": self.warnings,
        }


def first_look(source: Source) -> str:
    """What training says of its data before the first step: counts of classes, and warnings.

    It decodes only a few images of each split; `inspect_data` finds more.

    Raises:
        UserError: most of these images cannot be read.
    """
    looks = {part: Looks(images) for part, images in source.parts.items() if part != "test"}
    for part, look in looks.items():
        look.add(spread(len(look.images), NUM_FIRST))
        if len(look.unreadable) > len(look.seen):  # what is left is hardly the data that was meant
            unreadable = [error for _, error in sorted(look.unreadable.items())]
            what = {"train": "training", "val": "validation"}[part]
            told = _describe_unreadable(unreadable, len(look.rows), f"sampled {what} images", source.name)
            raise UserError(f"{told} {_advice(source.name)}")
    report = summarize(source, looks)
    warnings = [f"warning: {sentence}" for sentence in report.warnings]
    return "\n".join([report.describe_classes(), *warnings, f"`{_command(source)}` checks more"])


def inspect_data(source: Source, *, limit_s: float = LOOK_S, display: Display | None = None) -> DataReport:
    """Looks at all images, compares the labels of the two splits, and finds the images that look wrong.

    Raises:
        UserError: no image can be read.
    """
    looks = look_at(source, limit_s=limit_s, display=display)
    return summarize(source, looks, _agreement(source, looks), find_suspects(looks, source.class_names))


def compare_labels(source: Source, *, limit_s: float) -> Agreement | None:
    """How well a linear classifier of tiny copies tells a sample of the images.

    None if there are too few images, or so many classes that only a part of them would be told apart.
    """
    if len(source.class_names) > MAX_CLASSES:
        return None
    looks = {"train": Looks(source.train), "val": Looks(source.val)}
    _look_at_compared(source, looks, limit_s)
    return _agreement(source, looks)


def _agreement(source: Source, looks: Mapping[str, Looks]) -> Agreement | None:
    classes = _compared_classes(source)
    train, val = (_tiny_copies(looks[part], classes, count) for part, count in COMPARED.items())
    return check_agreement(*train, *val)


def look_at(source: Source, *, limit_s: float, display: Display | None = None) -> dict[str, Looks]:
    """Looks at the images of each part for so long at most, first at those whose labels are compared.

    Raises:
        UserError: no image can be read.
    """
    parts = {part: Looks(images) for part, images in source.parts.items()}
    began_s = time.monotonic()
    total = sum(len(look.images) for look in parts.values())
    with (display or Display(silent=True)).steps("looking at images", total) as steps:
        _look_at_compared(source, parts, limit_s * 2 / 3, steps.advance)
        rest = {part: sorted({*range(len(look.images))} - look.rows) for part, look in parts.items()}
        still = sum(map(len, rest.values()))
        for part, rows in rest.items():  # a share of the time that is left, by the number of images
            left_s = began_s + limit_s - time.monotonic()
            until_s = time.monotonic() + left_s * len(rows) / max(still, 1)
            parts[part].add(rows, until_s=until_s, advance=steps.advance)
            still -= len(rows)
    if not any(look.seen for look in parts.values()):
        unreadable = [error for look in parts.values() for error in look.unreadable.values()]
        if not unreadable:
            raise UserError("--max-time was over before an image was read: give more.")
        raise UserError(f"None of {len(unreadable)} images of {source.name} can be read: {_with_reasons(unreadable)}.")
    return parts


def _look_at_compared(
    source: Source, looks: Mapping[str, Looks], limit_s: float, advance: Callable[[], None] = lambda: None
) -> None:
    """Looks at the images whose labels are compared; each part has half of the time."""
    began_s, classes = time.monotonic(), _compared_classes(source)
    for place, (part, count) in enumerate(COMPARED.items(), start=1):
        rows = _sample(looks[part].images, classes, count)
        looks[part].add(rows, until_s=began_s + place / len(COMPARED) * limit_s, advance=advance)


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
            loader = make_loader(DrawnImages(images, _to_nothing, seed=None), batches, workers=workers)
            for batch in loader:
                unreadable += batch.unreadable
                steps.advance(by=len(batch.images) + len(batch.unreadable))
    return unreadable


def _to_nothing(image: Picture) -> Tensor:
    return torch.empty(3, 0, 0)  # decoding it was all that is needed


def summarize(
    source: Source,
    looks: Mapping[str, Looks],
    agreement: Agreement | None = None,
    suspects: Suspects | None = None,
) -> DataReport:
    """The report of what is known by now."""
    counts = zip(*(counts.tolist() for counts in _count_labels(source)), strict=True)
    seen = [look for of_part in looks.values() for _, look in sorted(of_part.seen.items())]
    unreadable = [error for of_part in looks.values() for _, error in sorted(of_part.unreadable.items())]
    largest = max(seen, key=lambda one: one.height * one.width, default=None)
    return DataReport(
        name=source.name,
        counts=dict(zip(source.class_names, counts, strict=True)),
        num_test=len(source.test or ()),
        notes=source.notes,
        num_images=sum(len(images) for images in source.parts.values()),
        num_tried=len(seen) + len(unreadable),
        unreadable=unreadable,
        mean_size=(fmean(one.height for one in seen), fmean(one.width for one in seen)) if seen else (0.0, 0.0),
        largest=(largest.name, largest.height, largest.width) if largest else ("", 0, 0),
        of_one_colour=[one.name for one in seen if one.is_blank],
        agreement=agreement,
        suspects=suspects,
    )


def _count_labels(source: Source) -> list[np.ndarray]:
    """The numbers of training and of validation images of each class."""
    return [np.bincount(images.labels, minlength=len(source.class_names)) for images in (source.train, source.val)]


def _compared_classes(source: Source) -> np.ndarray:
    """The classes whose labels are compared between both splits."""
    classes = np.flatnonzero(np.minimum(*_count_labels(source)))
    return classes[spread(len(classes), MAX_CLASSES)]


def _sample(images: ImageSet, classes: np.ndarray, num_images: int) -> list[int]:
    """Rows of these classes, for each its share of `num_images`; in order."""
    labels = np.asarray(images.labels)
    rows = [np.flatnonzero(labels == label) for label in classes]
    return sorted(row for own in rows for row in own[spread(len(own), num_images // len(classes))].tolist())


def _tiny_copies(looks: Looks, classes: np.ndarray, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Tiny copies, (N, D), and labels, (N,), of the images that `_sample` chooses and that can be read."""
    chosen = [looks.seen[row] for row in _sample(looks.images, classes, num_images) if row in looks.seen]
    return np.array([look.tiny for look in chosen]), np.array([look.label for look in chosen], int)


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
    return f"{len(errors)} of {num_tried:,} {what} of {data} cannot be read: {_with_reasons(errors)}."


def _advice(data: str) -> str:
    return f"`t2t-vit data {shlex.quote(data)} --verify` finds them all."
