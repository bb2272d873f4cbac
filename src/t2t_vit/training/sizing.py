"""What the recipe `small` leaves open and the images and the machine decide, with a line for each choice."""

import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.models import get_model_input_config
from torch import nn

from t2t_vit.data.images import ImageSet, UnreadableImage
from t2t_vit.data.pixels import MANY_CHANNELS
from t2t_vit.data.sources import Source
from t2t_vit.data.statistics import common_channels, typical_size
from t2t_vit.runtime.machine import Machine
from t2t_vit.training.build import can_be_paired
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.recipes import LEARNING_RATES

FORMULAS_MODEL = "t2t_vit_7_local"
"""The network that `--checkpoint formulas` holds weights of."""
FEW_IMAGES = 5000
BATCH_SIZE = 64
LARGER_BATCHES = (512, 256, 128)
MIN_STEPS_PER_EPOCH = 20
"""Steps of an epoch below which a larger batch saves nothing."""
NUM_COPIES, COPY_PX, NUM_FOLDS = 1000, 16, 4
LIMIT_S = 3.0
"""How long images are decoded to compare them with their mirror images: those of a phone take a tenth of a second."""
CLEARLY = 3.0
"""Standard errors by which mirrored images must be harder to tell than the images themselves."""


def choose(config: TrainConfig, source: Source, *, on_cpu: bool, processes: int = 1) -> tuple[TrainConfig, list[str]]:
    """Fills in the settings that are left open.

    Args:
        config: model, image size, batch size and flips are chosen where they are None.
        source: the images.
        on_cpu: whether the run has no GPU, so that hours are to be avoided.
        processes: among which a batch is shared.

    Returns:
        The settings, and a sentence for each choice.
    """
    images = source.train
    chosen: dict[str, Any] = {}
    reasons: list[str] = []
    if config.model is None:
        height, width = typical_size(source)
        side = min(height, width)
        chosen["model"], size = model_for(side, len(images), on_cpu=on_cpu)
        chosen["img_size"] = config.img_size or size
        where = "a CPU" if on_cpu else "a GPU"
        start = ""
        if chosen["model"] == FORMULAS_MODEL and config.in_chans in (1, 3):
            chosen["checkpoint"] = "formulas"
            start = " from weights learnt of formulas"
        reasons.append(
            f"{chosen['model']} at {_in_words(chosen['img_size'])} pixels{start}, as the images are about "
            f"{height} x {width} and there is {where} (--model, --img-size)"
        )
    # A run that goes on mixes as it did: its checkpoint comes from its file, and is not given.
    by_hand = "checkpoint" in config.given and config.checkpoint == "formulas"
    mixes = ("checkpoint" in chosen or by_hand) and is_for_mixing(config, images)
    if config.batch_size is None:
        unit = 2 * processes if mixes or config.cutmix or config.mixup else processes
        chosen["batch_size"] = max(processes, even_batch_size(len(images)) // unit * unit)
        if chosen["batch_size"] != BATCH_SIZE:
            evenly = "nearly evenly" if len(images) % chosen["batch_size"] else "evenly"
            reasons.append(
                f"batches of {chosen['batch_size']}, which share {len(images)} images {evenly} (--batch-size)"
            )
    batch_size = chosen.get("batch_size", config.batch_size)
    assert batch_size is not None
    if mixes and can_be_paired(batch_size, len(images), processes):
        chosen["cutmix"] = 1.0
        reasons.append(
            "parts of images replaced by others' (CutMix), as the head is fitted anew to whole ones (--cutmix)"
        )
    if config.hflip is None:
        straight, mirrored, num_images = mirror_test(images)
        error = math.sqrt(max(straight * (1 - straight), 0.01) * 2 / max(num_images, 1))
        differs = straight - mirrored > CLEARLY * error
        chosen["hflip"] = 0.0 if differs else 0.5
        if differs:
            reasons.append(
                f"no mirrored images, as a simple classifier knows {straight:.0%} of the images it has not seen, "
                f"mirrored {mirrored:.0%} (--hflip)"
            )
    return dataclasses.replace(config, **chosen), [f"chosen: {reason}" for reason in reasons]


def choose_channels(config: TrainConfig, source: Source) -> tuple[TrainConfig, list[str]]:
    """The settings with the channels of the training images, where these are arrays of others than 1 or 3.

    What the user said of channels, of a checkpoint's network or of colours stays, and is refused later if it is wrong.

    Returns:
        The settings, and a sentence on the choice if there is one.
    """
    if config.in_chans != 3 or config.checkpoint or config.given & {"in_chans", "aa", "color_jitter"}:
        return config, []
    channels = common_channels(source.train)
    if channels in (None, 1, 3) or channels > MANY_CHANNELS:  # so many are no channels
        return config, []
    reason = f"chosen: {channels} channels, as the training images are arrays of so many (--in-chans)"
    return dataclasses.replace(config, in_chans=channels, aa=None, color_jitter=None), [reason]


def model_for(side_px: int, num_images: int, *, on_cpu: bool) -> tuple[str, int]:
    """The network and the size that it takes images at, by the images' shorter side.

    On a CPU the paper's splits at 64 pixels leave 4 x 4 tokens, and train four times as fast as 8 x 8 (docs/log.md). On
    a GPU few small images get the same, as that is what the weights learnt of formulas are for.
    """
    if on_cpu:
        return FORMULAS_MODEL, 64 if side_px <= 96 else 128
    if side_px <= 96 and num_images <= FEW_IMAGES:
        return FORMULAS_MODEL, 64
    if side_px <= 40:
        return "t2t_vit_7_32px_local", 32
    if side_px <= 96:
        return "t2t_vit_7_64px_local", 64
    return (FORMULAS_MODEL, 224) if num_images < 20_000 else ("t2t_vit_14", 224)


def is_for_mixing(config: TrainConfig, images: ImageSet) -> bool:
    """Whether CutMix is what few labels gain from: where weights go back to the start and whole images fit the head.

    From ten letters a class the head that learns from mixed images tells 72 %, a fitted one 88 %, and one fitted to
    weights a quarter of the way back 91 % (docs/log.md).
    """
    if config.given & {"mixup", "cutmix"} or config.freeze_backbone:
        return False
    can_be_fitted = len(images) > len(set(images.labels))  # a class has two images
    return len(images) <= FEW_IMAGES and config.refit_head and config.start_share > 0 and can_be_fitted


def even_batch_size(num_images: int) -> int:
    """Up to `BATCH_SIZE` images, such that an epoch leaves none out where the images are few."""
    batches = math.ceil(num_images / BATCH_SIZE)
    return num_images // batches if batches <= 10 else BATCH_SIZE


def enlarge_batch(
    config: TrainConfig, model: nn.Module, machine: Machine, num_images: int
) -> tuple[TrainConfig, list[str]]:
    """The settings with the largest batch that a GPU has memory for and that leaves an epoch enough steps.

    The learning rate grows with the square root of the batch, as suits AdamW (Malladi et al. 2022); with Muon
    that is not measured.

    Args:
        config: its batch is one that is small enough for the images.
        model: the network, on the GPU.
        machine: the GPU, and the processes that share a batch.
        num_images: training images.

    Returns:
        The settings, and a sentence on the choice if there is one.
    """
    input_size = get_model_input_config(model)["input_size"]
    assert config.batch_size is not None
    size = config.batch_size
    for larger in (batch // (2 * machine.world_size) * 2 * machine.world_size for batch in LARGER_BATCHES):
        share = larger // machine.world_size
        if num_images // larger >= MIN_STEPS_PER_EPOCH and _fits(model, (share, *input_size), machine):
            size = larger
            break
    if size == config.batch_size:
        return config, []
    factor = math.sqrt(size / config.batch_size)
    why = "as the GPU has room (--batch-size, --lr)"
    reason = f"chosen: batches of {size}, with the learning rate times {factor:.2g}, {why}"
    rates = {name: getattr(config, name) * factor for name in LEARNING_RATES if name not in config.given}
    return dataclasses.replace(config, batch_size=size, **rates), [reason]


def _fits(model: nn.Module, shape: tuple[int, ...], machine: Machine) -> bool:
    """Whether a step of such a batch fits into memory, and leaves a fifth of it."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.cuda.reset_peak_memory_stats(machine.device)
    try:
        with machine.autocast():
            loss = model(torch.zeros(shape, device=machine.device)).float().sum()
        loss.backward()
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    used = torch.cuda.max_memory_allocated(machine.device)
    total = torch.cuda.get_device_properties(machine.device).total_memory
    return used < 0.8 * total


def too_few_tokens(name: str, model: nn.Module) -> str | None:
    """The sentence for a grid of fewer than 4 x 4 tokens, which hold too little of an image; None for others."""
    height, width = getattr(model, "grid_size", (4, 4))
    if height * width >= 16:
        return None
    preset = "t2t_vit_7_32px" if max(getattr(model, "img_size", (64, 64))) <= 40 else "t2t_vit_7_64px"
    return f"{name} makes {height} x {width} tokens of such images: --model {preset} makes 8 x 8, or give --img-size"


def mirror_test(images: ImageSet) -> tuple[float, float, int]:
    """How well a linear classifier tells images that it was not fitted on, and the same images mirrored.

    Digits and letters look like others when they are mirrored, or like none; most photographs do not.

    Returns:
        Both accuracies, from 0 to 1, over folds, and the number of images.
    """
    rows = np.random.default_rng(0).permutation(len(images))[: 0 if images.format.is_array else NUM_COPIES]
    copies, labels = [], []
    deadline = time.monotonic() + LIMIT_S
    for row in rows.tolist():
        if time.monotonic() > deadline:
            break
        try:
            small = images.load(row).convert("RGB").resize((COPY_PX, COPY_PX), Image.Resampling.BOX)
        except UnreadableImage:
            continue
        copies.append(np.asarray(small, dtype=np.float32) / 255)
        labels.append(images.labels[row])
    if len(copies) < 2 * NUM_FOLDS:  # or arrays, which no classifier of colours knows
        return 0.0, 0.0, 0
    x, y = np.stack(copies), np.array(labels)
    flat, mirrored = x.reshape(len(x), -1), x[:, :, ::-1].reshape(len(x), -1)
    targets = np.eye(int(y.max()) + 1, dtype=np.float32)[y] * 2 - 1
    right = np.zeros(2)
    for fold in range(NUM_FOLDS):
        held_out = np.arange(len(x)) % NUM_FOLDS == fold
        mean, target_mean = flat[~held_out].mean(axis=0), targets[~held_out].mean(axis=0)
        centred = flat[~held_out] - mean
        # Ridge regression by the images' products, which are fewer than the pixels'.
        products = centred @ centred.T
        products[np.diag_indices_from(products)] += 10.0
        weights = centred.T @ np.linalg.solve(products, targets[~held_out] - target_mean)
        for side, copies_of in enumerate((flat, mirrored)):
            scores = (copies_of[held_out] - mean) @ weights + target_mean
            right[side] += (scores.argmax(axis=1) == y[held_out]).sum()
    straight, turned = (right / len(x)).tolist()
    return straight, turned, len(x)


def _in_words(size: int | tuple[int, int]) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"
