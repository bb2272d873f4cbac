"""Batches of augmented images that depend on the seed, the epoch and the position alone.

Neither the number of workers, nor the number of processes, nor a restart in the middle of an epoch changes an image.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import Compose, Grayscale, RandomCrop, Resize

from t2t_vit.data.crops import Crop, ScaledCrop
from t2t_vit.data.images import array_images
from t2t_vit.data.sources import ImageSet, UnreadableImage
from t2t_vit.errors import UserError

Transform = Callable[[Image.Image], Tensor]


class Draw(NamedTuple):
    """One image of one epoch: the place in the epoch's order, and where the image is in its set."""

    epoch: int
    position: int
    image_index: int


class Batch(NamedTuple):
    """What a loader yields. Unreadable images are left out, so that a batch may hold fewer images, or none.

    Attributes:
        images: (B, C, H, W), uint8, channels innermost in memory; `Normalize` makes of them what a network takes.
        targets: labels, (B,), int64.
        indices: where the images are in their set, (B,), int64.
        unreadable: a sentence for each image left out, with its name and the reason.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    unreadable: list[str]


# In the place of an unreadable image it keeps the shape, so that even a batch of none has one.
BLANK = array_images(np.zeros((1, 32, 32), np.uint8), [""], [0])


class Sample(NamedTuple):
    image: Tensor  # (C, H, W), uint8
    target: int
    image_index: int
    unreadable: str | None


def train_transform(
    data_config: Mapping[str, Any], *, crop_padding: float | None = None, **augmentation: Any
) -> tuple[ScaledCrop | None, Transform]:
    """timm's training augmentation, but for erasing: a crop, and what makes a uint8 tensor of it.

    Args:
        data_config: input_size (C, H, W), mean, std and whatever else timm's data configuration holds.
        crop_padding: resizes to the input size, pads by this share of it and crops that size again, as is usual for
            CIFAR, instead of cropping at random scales.
        augmentation: arguments of timm.data.create_transform, such as hflip, scale, auto_augment, no_aug.

    Returns:
        The crop that an image is loaded with, None where the whole is wanted, and the transform of what was loaded.

    Raises:
        UserError: timm does not take these settings.
    """
    try:
        steps = _steps({**data_config, "interpolation": "random", **augmentation, "is_training": True})
    except AssertionError as error:  # timm's way to refuse what it is asked for
        raise UserError(f"timm refuses these augmentation settings: {augmentation}. {error}") from error
    place = next((i for i, step in enumerate(steps) if isinstance(step, RandomResizedCropAndInterpolation)), None)
    if place is None:  # no_aug
        return None, Compose(steps)
    timms = steps.pop(place)
    if crop_padding is None:
        return ScaledCrop(timms), Compose(steps)
    height, width = timms.size
    padding = [round(width * crop_padding), round(height * crop_padding)]
    resize = Resize((height, width), str_to_interp_mode(data_config["interpolation"]))
    return None, Compose([*steps[:place], resize, RandomCrop((height, width), padding=padding), *steps[place:]])


def eval_transform(data_config: Mapping[str, Any]) -> Transform:
    """timm's resize and centre crop, from RGB image to uint8 tensor.

    Args:
        data_config: input_size (C, H, W), mean, std, crop_pct, interpolation: timm's data configuration.
    """
    return Compose(_steps(data_config))


def _steps(settings: Mapping[str, Any]) -> list[Any]:
    """timm's steps as far as they are done on one image."""
    mean, _ = _statistics(settings)
    steps = create_transform(**{**settings, "mean": mean}, normalize=False).transforms
    return steps if settings["input_size"][0] == 3 else [Grayscale(), *steps]


def _statistics(settings: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of each channel of the input."""
    in_chans = settings["input_size"][0]
    if in_chans == 3:
        return settings["mean"], settings["std"]
    if in_chans != 1:
        raise UserError(f"Images have 3 channels, or 1 in grey, got in_chans={in_chans}.")
    # timm's loader averages them too where the image has fewer channels than they have.
    return (fmean(settings["mean"]),), (fmean(settings["std"]),)


class Normalize:
    """Images as bytes to what a network takes: (images / 255 - mean) / std, on its device.

    Args:
        data_config: input_size (C, H, W), mean, std: timm's data configuration.
        device: where the network is.
        re_prob: probability that a rectangle of an image becomes noise, as timm's random erasing in its "pixel" mode;
            Python's random numbers and torch's on the device say where and which.
    """

    def __init__(self, data_config: Mapping[str, Any], device: torch.device, *, re_prob: float = 0.0) -> None:
        self.device = device
        mean, std = (torch.tensor(values, device=device) for values in _statistics(data_config))
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self.erase = RandomErasing(re_prob, mode="pixel", device=device) if re_prob > 0 else None

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8, anywhere, to float32 on the device."""
        images = images.to(self.device, non_blocking=True)
        images = images.to(torch.float32, memory_format=torch.contiguous_format)
        # The steps of torchvision's ToTensor and Normalize, so that the numbers are the same to the last bit.
        images = images.div_(255).sub_(self.mean).div_(self.std)
        return images if self.erase is None else self.erase(images)


class EpochBatches(Sampler[list[Draw]]):
    """The batches of one epoch after another: the batch sampler of a training loader.

    An epoch's order is a permutation drawn from (seed, epoch). Global batch g is positions g B .. (g + 1) B - 1, and
    process r of W takes every W-th of them from r on, so that the processes together draw what one alone would. The
    images that do not fill the last batch are left out, unless they are all there is: then they make one smaller
    batch, and the processes' shares of it may differ by one.

    Args:
        num_images: size of the training set.
        batch_size: B, images in a batch over all processes.
        repeats: times an image is drawn, one after another; an epoch then holds so many times fewer images.
        seed: of the order.
        rank: this process, r.
        world_size: number of processes, W.

    Raises:
        UserError: when a batch or the images cannot be shared among the processes.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        repeats: int = 1,
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
        self.batches_per_epoch = max(1, num_images // batch_size)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, *, start_batch: int = 0) -> None:
        """What the next iteration yields: the batches of this epoch, from start_batch on."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start_batch

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch
        permutation = np.random.default_rng((self.seed, epoch)).permutation(self.num_images)
        order = np.repeat(permutation, self.repeats)[: self.num_images].tolist()
        for batch in range(self.start_batch, self.batches_per_epoch):
            first, end = batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_images)
            mine = range(first + self.rank, end, self.world_size)
            yield [Draw(epoch, position, order[position]) for position in mine]


def evaluation_batches(num_images: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[Draw]]:
    """The batches of an evaluation: every image once over all processes, in order, none added to fill a batch.

    Args:
        batch_size: images in a batch of this process.
    """
    mine = range(rank, num_images, world_size)
    return [
        [Draw(0, index, index) for index in mine[first : first + batch_size]]
        for first in range(0, len(mine), batch_size)
    ]


class DrawnImages(Dataset[Sample]):
    """Images by draw, transformed with random numbers that (seed, epoch, position) determine."""

    def __init__(self, images: ImageSet, transform: Transform, *, crop: Crop | None = None, seed: int = 42) -> None:
        self.images, self.transform, self.crop, self.seed = images, transform, crop, seed

    def __getitem__(self, draw: Draw) -> Sample:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of a whole batch, which is how a DataLoader asks for them."""
        with _random_state_kept():  # once a batch: for a small image it costs a fifth of the time
            return [self._sample(draw) for draw in draws]

    def _sample(self, draw: Draw) -> Sample:
        unreadable = None
        _seed(self.seed, draw.epoch, draw.position)
        try:
            image = self.images.load(draw.image_index, self.crop)
        except UnreadableImage as error:
            image, unreadable = BLANK.load(0, self.crop), str(error)
        return Sample(self.transform(image), self.images.label(draw.image_index), draw.image_index, unreadable)


def _seed(*key: int) -> None:
    """Starts the CPU random numbers that timm's and torchvision's transforms take: Python's, NumPy's and torch's."""
    random.seed(" ".join(map(str, key)))  # Python hashes text with SHA-512: near keys give unrelated numbers
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(63))  # torch.manual_seed would reseed the GPUs as well


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Whatever is seeded or drawn inside, outside the CPU random numbers go on as if it had not been."""
    python, numpy, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_)


def collate(samples: Sequence[Sample]) -> Batch:
    """The readable ones of the samples as one batch."""
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
    batches: EpochBatches | Sequence[list[Draw]],
    *,
    workers: int | None = None,
    pin_memory: bool = False,
) -> "DataLoader[Batch]":
    """A loader of `Batch`; its workers live as long as it does, across epochs.

    Args:
        batches: an `EpochBatches`, to be told the epoch before each iteration, or `evaluation_batches`.
        workers: processes that decode and augment; 0 does it in this one; None is `default_workers`.
        pin_memory: whether the batches go to a GPU.
    """
    workers = default_workers() if workers is None else workers
    return DataLoader(
        cast("Dataset[Batch]", dataset),  # torch types a loader by what its samples are, before they are collated
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        collate_fn=collate,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # its own, or each iteration would take a number from the training's
    )


def default_workers() -> int:
    """One worker for each core this process may use, shared among the node's processes, 8 at most; none on one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun sets it
    return min(share, 8) if share > 1 else 0


def _ignore_signals(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal, and a scheduler's SIGTERM every process of the job; the main one
    # saves first and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
