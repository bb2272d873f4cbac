"""A look at the data before training, for what costs weeks when it is found late."""

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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from t2t_vit.data.agreement import Agreement, check_agreement, tiny_copy
from t2t_vit.data.config import DataConfig
from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.loading import DrawnImages, evaluation_batches, make_loader
from t2t_vit.data.sources import Source, open_source
from t2t_vit.errors import UserError, abbreviate

# Of more classes, so many stand for all when labels are compared; the images are shared among them.
MAX_CLASSES = 20
NUM_TRAIN, NUM_VAL = 1280, 640
NUM_SPREAD = 200  # images over the whole of each part
NUM_THREADS = 8
LIMIT_S = 20.0
MAX_UNREADABLE = 0.5  # of the sample of a part: with more, what is left is hardly the data that was meant


@dataclass(frozen=True)
class Preflight:
    """What a sample of the data is like; as text, it is the report.

    Attributes:
        train_counts: training images of each class.
        val_counts: validation images of each class.
        num_sampled: images that were decoded, or could not be.
        unreadable: a sentence for each of them that could not.
        shares_unreadable: how large a share of the sample they are, in training and in validation.
        mean_size: mean height and width of the others in pixels.
        agreement: whether the labels of both parts agree; None where there are too few images.
    """

    name: str
    class_names: tuple[str, ...]
    train_counts: tuple[int, ...]
    val_counts: tuple[int, ...]
    num_sampled: int
    unreadable: tuple[str, ...]
    shares_unreadable: tuple[float, float]
    mean_size: tuple[float, float]
    agreement: Agreement | None

    @property
    def warnings(self) -> list[str]:
        """A sentence for each thing to look at before training."""
        sentences = []
        for part, counts in (("training", self.train_counts), ("validation", self.val_counts)):
            without = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
            if without:
                sentences.append(f"{len(without)} classes have no {part} images: {abbreviate(without)}.")
        if self.unreadable:
            sentences.append(
                f"{len(self.unreadable)} of {self.num_sampled} sampled images cannot be read: "
                f"{abbreviate(self.unreadable)}. `t2t-vit data {shlex.quote(self.name)} --verify` finds them all."
            )
        if self.agreement and self.agreement.verdict == "unrelated":
            sentences.append(
                "The labels of the validation images look unrelated to those of the training images. "
                "Look at some of each class in both: are they of the same kind?"
            )
        if self.agreement and self.agreement.verdict == "permuted":
            pairs = [f"{self.class_names[old]} like {self.class_names[new]}" for old, new in self.agreement.renamed]
            sentences.append(
                "The labels of the validation images look permuted: validation images of "
                f"{abbreviate(pairs)} in training."
            )
        return sentences

    def refuse_unusable(self) -> None:
        """Refuses to train where most of the images cannot be read.

        Raises:
            UserError: it is so in the training or in the validation part.
        """
        for part, share in zip(("training", "validation"), self.shares_unreadable, strict=True):
            if share > MAX_UNREADABLE:
                raise UserError(
                    f"{share:.0%} of the sampled {part} images of {self.name} cannot be read: "
                    f"{abbreviate(self.unreadable)}. `t2t-vit data {shlex.quote(self.name)} --verify` finds them all."
                )

    def __str__(self) -> str:
        height, width = self.mean_size
        lines = [
            f"{self.name}: {len(self.class_names)} classes, {sum(self.train_counts):,} images to train on, "
            f"{sum(self.val_counts):,} to validate",
            f"classes: {self._describe_counts()}",
            f"images: {self.num_sampled:,} sampled, {len(self.unreadable)} unreadable, "
            f"{height:.0f} x {width:.0f} pixels on average",
            f"labels: {self._describe_agreement()}",
            *(f"warning: {sentence}" for sentence in self.warnings),
        ]
        return "\n".join(lines)

    def _describe_counts(self) -> str:
        counts = list(self.train_counts)
        fewest, most = min(counts), max(counts)
        if fewest == most:
            return f"each has {most:,} training images"
        smallest, largest = self.class_names[counts.index(fewest)], self.class_names[counts.index(most)]
        ratio = f", {most / fewest:.1f} times as many" if fewest else ""
        return f"the smallest is {smallest} with {fewest:,} training images, the largest {largest} with {most:,}{ratio}"

    def _describe_agreement(self) -> str:
        found = self.agreement
        if found is None:
            return "too few images to compare those of training and validation"
        shares = (
            f"a linear classifier of tiny copies finds {found.train_percent:.0f} % of held-out training images, "
            f"{found.val_percent:.0f} % of validation images; guessing finds {found.chance_percent:.0f} %"
        )
        return shares + (", too near to tell" if found.verdict == "unclear" else "")

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with the images of each class."""
        return {
            "data": self.name,
            "classes": {
                name: {"train": train, "val": val}
                for name, train, val in zip(self.class_names, self.train_counts, self.val_counts, strict=True)
            },
            "sampled": self.num_sampled,
            "sampled_unreadable": list(self.unreadable),
            "mean_height_px": self.mean_size[0],
            "mean_width_px": self.mean_size[1],
            "labels": None if self.agreement is None else asdict(self.agreement),
            "warnings": self.warnings,
        }


def preflight(source: Source) -> Preflight:
    """Decodes a sample of the images and looks at it; the same sample each time, unless the disk is so slow that the
    time runs out first.

    Raises:
        UserError: none of the images that were tried can be read.
    """
    num_classes = len(source.class_names)
    train_counts, val_counts = (np.bincount(part.labels, minlength=num_classes) for part in (source.train, source.val))
    compared = np.flatnonzero(np.minimum(train_counts, val_counts))
    compared = compared[_spread(len(compared), MAX_CLASSES)]
    sample = [
        *(_Look(source.train, row) for row in _sample(source.train, compared, NUM_TRAIN)),
        *(_Look(source.val, row) for row in _sample(source.val, compared, NUM_VAL)),
    ]
    _decode(sample)
    unreadable = [str(look.error) for look in sample if look.error]
    readable = [look for look in sample if look.copy is not None]
    if not readable:
        raise UserError(f"None of {len(unreadable)} images of {source.name} can be read: {abbreviate(unreadable)}.")
    sides = []
    for part in (source.train, source.val):
        looks = [look for look in readable if look.part is part and look.label in compared]
        sides += [np.array([look.copy for look in looks]), np.array([look.label for look in looks], dtype=int)]
    return Preflight(
        source.name,
        source.class_names,
        tuple(train_counts.tolist()),
        tuple(val_counts.tolist()),
        len(readable) + len(unreadable),
        tuple(unreadable),
        (_share_unreadable(sample, source.train), _share_unreadable(sample, source.val)),
        tuple(np.mean([look.size for look in readable], axis=0).tolist()),
        check_agreement(*sides),
    )


def _share_unreadable(sample: Sequence["_Look"], part: ImageSet) -> float:
    tried = [look for look in sample if look.part is part and (look.error or look.copy is not None)]
    return sum(look.error is not None for look in tried) / max(len(tried), 1)


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
    report = preflight(source)
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
        workers: processes that decode; None is one for each core.
    """
    unreadable: list[str] = []
    console = Console(stderr=True)  # standard output is for the report
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("decoding", total=len(source.train) + len(source.val))
        for images in (source.train, source.val):
            batches = evaluation_batches(len(images), batch_size=32)
            for batch in make_loader(DrawnImages(images, _decoded), batches, workers=workers):
                unreadable += batch.unreadable
                progress.advance(task, len(batch.images) + len(batch.unreadable))
    return unreadable


def _decoded(image: Image.Image) -> Tensor:
    return torch.empty(3, 0, 0)  # to have been decoded is all that is asked of it


@dataclass
class _Look:
    """One image of the sample: what came of decoding it, nothing where there was no time."""

    part: ImageSet
    row: int
    size: tuple[int, int] = (0, 0)  # height, width
    copy: np.ndarray | None = None
    error: UnreadableImage | None = None

    @property
    def label(self) -> int:
        return self.part.labels[self.row]


def _spread(total: int, count: int) -> np.ndarray:
    """At most so many of the numbers from 0 to total - 1, evenly spaced."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(int)


def _sample(part: ImageSet, classes: np.ndarray, num_images: int) -> list[int]:
    """Rows over the whole part, and of each of these classes as many as make up the number; in order."""
    labels = np.asarray(part.labels)
    rows = [_spread(len(labels), NUM_SPREAD)]
    for label in classes:
        of_class = np.flatnonzero(labels == label)
        rows.append(of_class[_spread(len(of_class), num_images // len(classes))])
    return np.unique(np.concatenate(rows)).tolist()


def _decode(sample: Sequence[_Look]) -> None:
    """Fills in the looks, in an order in which any beginning is a fair sample too, until the time is up."""
    deadline = time.monotonic() + LIMIT_S

    def decode(look: _Look) -> None:
        if time.monotonic() < deadline:
            try:
                image = look.part.load(look.row)
                look.size, look.copy = (image.height, image.width), tiny_copy(image)
            except UnreadableImage as error:
                look.error = error

    order = np.random.default_rng(0).permutation(len(sample))
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for _ in pool.map(decode, [sample[index] for index in order]):
            pass  # so that what is raised in a thread is raised here
