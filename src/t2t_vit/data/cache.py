"""Images decoded once and kept in memory, if they fit."""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from t2t_vit.data.crops import Box, Crop, ScaledCrop
from t2t_vit.data.images import ImageSet, Load, UnreadableImage, crop_pixels
from t2t_vit.data.pixels import Picture, to_picture, to_pixels
from t2t_vit.errors import UserError

NUM_SAMPLED = 64
NUM_THREADS = 8
MAX_SHARE = 0.8  # of the free memory: the training wants some too

Decoded = list[np.ndarray] | UnreadableImage
"""The pixels of an image in full, then at the half, quarter and eighth size that a crop would decode it at."""


def refuse_large_cache(*parts: tuple[ImageSet, ScaledCrop | None]) -> None:
    """Refuses images that would not fit in memory once for each training process here; a sample tells their size.

    Args:
        parts: images, each set with the crop that it is loaded with.

    Raises:
        UserError: they would not fit, or are in memory already.
    """
    if any(images.in_memory for images, _ in parts):
        raise UserError("--cache keeps decoded images in memory, where these are already: leave it out.")
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun sets it
    needed = copies * sum(_estimate_bytes(images, crop) for images, crop in parts)
    free = free_memory()
    if needed > MAX_SHARE * free:
        count = sum(len(images) for images, _ in parts)
        raise UserError(
            f"--cache would keep {count:,} decoded images in memory, about {needed / 2**30:.2g} GB in {copies} "
            f"process(es), and takes at most {MAX_SHARE:.0%} of the {free / 2**30:.2g} GB that are free: leave it out."
        )


def cached(images: ImageSet, crop: ScaledCrop | None = None) -> ImageSet:
    """The same images, decoded now; loading them gives the same pixels to the last bit.

    Forked worker processes share the memory.

    Args:
        crop: the crop that they will be loaded with.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        decoded = list(pool.map(partial(_decode, images.load, crop), range(len(images))))
    return dataclasses.replace(images, load=partial(_load_decoded, decoded), in_memory=True)


def _load_decoded(decoded: Sequence[Decoded], index: int, crop: Crop | None = None) -> Picture:
    levels = decoded[index]
    if isinstance(levels, UnreadableImage):
        raise levels
    return crop_pixels(levels, crop)


def _decode(load: Load, crop: ScaledCrop | None, index: int) -> Decoded:
    try:
        levels = [to_pixels(load(index))]  # (H, W, C)
        height, width, _ = levels[0].shape
        reduction = 1 if crop is None else min(crop.reduction(Box(0, 0, width, height)), 8)
        while 2 ** len(levels) <= reduction:
            level = to_pixels(load(index, _Reduced(2 ** len(levels))))
            if level.shape == levels[0].shape:
                break  # only JPEGs are decoded smaller
            levels.append(level)
    except UnreadableImage as error:
        return error
    return levels


@dataclass(frozen=True)
class _Reduced:
    """A whole image, decoded `times` smaller."""

    times: int

    def choose(self, width: int, height: int) -> Box:
        return Box(0, 0, width, height)

    def reduction(self, box: Box) -> int:
        return self.times

    def resize(self, pixels: np.ndarray) -> Picture:
        return to_picture(pixels)


def _estimate_bytes(images: ImageSet, crop: ScaledCrop | None) -> float:
    rows = np.linspace(0, len(images) - 1, min(NUM_SAMPLED, len(images))).round().astype(int)
    sample = [_decode(images.load, crop, row) for row in rows.tolist()]
    sizes = [0 if isinstance(levels, UnreadableImage) else sum(level.nbytes for level in levels) for levels in sample]
    return len(images) * float(np.mean(sizes))


def free_memory(root: Path = Path("/")) -> float:
    """Bytes that this process may still take, of the machine or of its container.

    Args:
        root: the folder that holds proc/meminfo and sys/fs/cgroup.
    """
    try:
        lines = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
    except OSError:  # not a Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    free = 1024 * float(lines["MemAvailable"].split()[0])
    group = root / "sys/fs/cgroup"
    try:
        used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, float((group / "memory.max").read_text()) - float(used["anon"]))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return free
