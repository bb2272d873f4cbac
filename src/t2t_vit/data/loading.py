"""Batches of augmented images that depend on the seed, the epoch and the position alone.

Neither the number of workers, nor the number of processes, nor a restart in the middle of an epoch changes an image.
"""

import multiprocessing
import os
import random
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from t2t_vit.data.crops import Crop
from t2t_vit.data.images import ImageSet, UnreadableImage, crop_pixels
from t2t_vit.data.transforms import Transform
from t2t_vit.errors import UserError


class Draw(NamedTuple):
    """One image of one epoch: its position in the epoch's order, and its index in the image set."""

    epoch: int
    position: int
    image_index: int


class Batch(NamedTuple):
    """What a loader yields, without unreadable images: a batch may hold fewer images than asked for, or none.

    Attributes:
        images: (B, C, H, W), uint8, or float32 from arrays, channels last in memory; `Normalize` takes them.
        targets: labels, (B,), int64.
        indices: rows of the images in their set, (B,), int64.
        unreadable: a sentence for each image left out, with its name and the reason.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    unreadable: list[str]


class Sample(NamedTuple):
    image: Tensor  # (C, H, W), uint8, or float32 of arrays
    target: int
    image_index: int
    unreadable: str | None


class EpochBatches(Sampler[list[Draw]]):
    """The batch sampler of a training loader: the batches of a run, one epoch after another.

    (seed, epoch) determine an epoch's order. Batch g is positions g B .. (g + 1) B - 1; process r of W takes every W-th
    of them from r on, so that all processes together draw what one alone would. Images that do not fill the last batch
    are left out. If there are fewer than B images, they make one smaller batch, and the processes' shares of it may
    differ by one.

    Args:
        batch_size: B, images in a batch over all processes.
        repeats: times an image is drawn in a row; an epoch then holds that many times fewer images.
        labels: draws all classes equally often: an epoch has images of rare ones several times, and leaves some of
            frequent ones out. None draws each image once.
        rank: this process, r.
        world_size: number of processes, W.

    Raises:
        UserError: a batch or the images cannot be shared among the processes.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        repeats: int = 1,
        labels: Sequence[int] | None = None,
        seed: int = 42,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"Expected a batch size that {world_size} process(es) can share evenly, got {batch_size}. "
                f"Give a multiple of {world_size}."
            )
        if num_images < world_size:
            raise UserError(f"{num_images} training images are too few for {world_size} processes: start fewer.")
        self.num_images, self.batch_size, self.repeats, self.seed = num_images, batch_size, repeats, seed
        self.rank, self.world_size = rank, world_size
        self.rows_of_classes = None
        if labels is not None:
            self.rows_of_classes = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
        self.batches_per_epoch = max(1, num_images // batch_size)
        self.set_steps(0, self.batches_per_epoch)

    def set_steps(self, first: int, end: int) -> None:
        """Makes the next iteration yield the batches of these steps of the run: from `first` up to, not with, `end`."""
        self.first, self.end = first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        order: list[int] = []
        for step in range(self.first, self.end):
            epoch, batch = divmod(step, self.batches_per_epoch)
            if not order or batch == 0:
                order = np.repeat(self._permutation(epoch), self.repeats)[: self.num_images].tolist()
            first, end = batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_images)
            mine = range(first + self.rank, end, self.world_size)
            yield [Draw(epoch, position, order[position]) for position in mine]

    def _permutation(self, epoch: int) -> np.ndarray:
        """The rows that an epoch draws, (num_images,), in their order."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.rows_of_classes is None:
            return rng.permutation(self.num_images)
        share, more = divmod(self.num_images, len(self.rows_of_classes))
        drawn = [
            np.resize(rng.permutation(self.rows_of_classes[label]), share + (place < more))  # again from its beginning
            for place, label in enumerate(rng.permutation(len(self.rows_of_classes)))
        ]
        return rng.permutation(np.concatenate(drawn))


class EvaluationBatches(Sampler[list[Draw]]):
    """This process's batches of an evaluation: all processes together see every image once, in order."""

    def __init__(self, num_images: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.choose(range(num_images))

    def choose(self, rows: Sequence[int]) -> None:
        """Makes the iterations from now on yield these images only."""
        self.mine = rows[self.rank :: self.world_size]

    def __len__(self) -> int:
        return -(-len(self.mine) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for first in range(0, len(self.mine), self.batch_size):
            yield [Draw(0, index, index) for index in self.mine[first : first + self.batch_size]]


class DrawnImages(Dataset[Sample]):
    """Images by `Draw`; (seed, epoch, position) determine the random numbers of their transform.

    Args:
        seed: None for a transform that draws none, which is faster.
    """

    def __init__(
        self, images: ImageSet, transform: Transform, *, crop: Crop | None = None, seed: int | None = 42
    ) -> None:
        self.images, self.transform, self.crop, self.seed = images, transform, crop, seed

    def __getitem__(self, draw: Draw) -> Sample:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of a whole batch, which is how a DataLoader asks for them."""
        generated: Iterable[np.ndarray | None] = [None] * len(draws)
        if self.images.generate is not None:  # faster for a batch than one by one
            epochs, _, rows = zip(*draws, strict=True)
            generated = self.images.generate(rows, epochs)
        # Once a batch, because for a small image it takes a fifth of the time.
        with _random_state_kept() if self.seed is not None else nullcontext():
            return [self._sample(draw, pixels) for draw, pixels in zip(draws, generated, strict=True)]

    def _sample(self, draw: Draw, generated: np.ndarray | None) -> Sample:
        unreadable = None
        if self.seed is not None:
            _seed(self.seed, draw.epoch, draw.position)
        try:
            if generated is None:
                image = self.images.load(draw.image_index, self.crop)
            else:
                image = crop_pixels([generated], self.crop)
        except UnreadableImage as error:
            # A blank stands in, so that even a batch of none has the shape of the others.
            image, unreadable = crop_pixels([self.images.format.blank], self.crop), str(error)
        return Sample(self.transform(image), self.images.labels[draw.image_index], draw.image_index, unreadable)


def _seed(*key: int) -> None:
    """Seeds the generators that transforms draw from: Python's, NumPy's, and torch's of the CPU."""
    random.seed(" ".join(map(str, key)))  # Python hashes text with SHA-512: near keys give unrelated numbers
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed would reseed the GPUs as well


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restores the CPU's random number generators at the end."""
    python, numpy, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks the readable samples."""
    # Channels are innermost in each: stacked so, they are copied in one piece.
    images = torch.stack([sample.image.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
    targets = torch.tensor([sample.target for sample in samples])
    indices = torch.tensor([sample.image_index for sample in samples])
    unreadable = [sample.unreadable for sample in samples if sample.unreadable is not None]
    if unreadable:
        keep = torch.tensor([sample.unreadable is None for sample in samples])
        images, targets, indices = images[keep], targets[keep], indices[keep]
    return Batch(images, targets, indices, unreadable)


def make_loader(
    dataset: DrawnImages,
    batches: EpochBatches | EvaluationBatches,
    *,
    workers: int | None = None,
    pin_memory: bool = False,
) -> "DataLoader[Batch]":
    """A loader of `Batch` whose workers live across epochs.

    Args:
        batches: an `EpochBatches`, which must be told the steps before each iteration, or an `EvaluationBatches`.
        workers: processes that decode and augment; 0 decodes in this process; None takes `default_workers`.
        pin_memory: whether the batches go to a GPU.
    """
    workers = default_workers() if workers is None else workers
    # Without a lock, which a signal's handler might wait for.
    process_ends = multiprocessing.RawValue("b", 0) if workers else None
    loader = DataLoader(
        cast("Dataset[Batch]", dataset),  # torch types a loader by what its samples are, before they are collated
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        collate_fn=collate,
        worker_init_fn=partial(_outlive_signals, process_ends),
        generator=torch.Generator(),  # its own, or each iteration would take a number from the training's
    )
    if workers:  # it comes before Python ends the workers with SIGTERM and waits for them
        Finalize(loader, setattr, args=(process_ends, "value", 1), exitpriority=10)
    return loader


def default_workers() -> int:
    """One worker a core, shared among the machine's training processes: 8 at most, none on one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun sets it
    return min(share, 8) if share > 1 else 0


def _outlive_signals(process_ends: Any, worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, and a scheduler's SIGTERM every process of the job; the main one
    # saves first and then ends its workers. Where an exception keeps it from that, its exit does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if process_ends.value else None)
