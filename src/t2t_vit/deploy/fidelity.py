"""How near an exported network is to the original, from the bytes of files to labels, and how fast."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike

import torch
from torch import Tensor

from t2t_vit.inference.inputs import ImageOrPath, image_set
from t2t_vit.inference.predictor import Predictor, evaluation_loader

BATCH_SIZE = 16
ROUNDS, ROUND_S = 5, 0.3


@dataclass(frozen=True)
class Fidelity:
    """What a comparison found.

    Attributes:
        num_images: compared; those that cannot be read are left out.
        agreement_percent: images for which both give the same label.
        largest_difference: of a probability.
        images_per_second, original_images_per_second: medians of rounds in turn, from normalised images to logits.
        latency_ms, original_latency_ms: the same for one image at a time.
    """

    num_images: int
    agreement_percent: float
    largest_difference: float
    images_per_second: float
    original_images_per_second: float
    latency_ms: float
    original_latency_ms: float


def compare(original: Predictor, exported: Predictor, images: Sequence[ImageOrPath | PathLike[str]]) -> Fidelity:
    """Predicts images by both, and times both.

    Args:
        original, exported: read the files themselves, each as it says that images are to be prepared.
        images: files.
    """
    before, after = (_probabilities(predictor, images) for predictor in (original, exported))
    batch = _normalised(original, images, BATCH_SIZE)
    networks = (original.network, exported.network)
    original_s, exported_s = _seconds([partial(network, batch) for network in networks])
    original_one_s, exported_one_s = _seconds([partial(network, batch[:1]) for network in networks])
    return Fidelity(
        num_images=len(before),
        agreement_percent=100 * float((before.argmax(1) == after.argmax(1)).double().mean()),
        largest_difference=float((before - after).abs().max()),
        images_per_second=len(batch) / exported_s,
        original_images_per_second=len(batch) / original_s,
        latency_ms=1e3 * exported_one_s,
        original_latency_ms=1e3 * original_one_s,
    )


def normalised_images(predictor: Predictor, images: Sequence[ImageOrPath]) -> Tensor:
    """What the predictor's network would be given, (N, C, H, W), float32."""
    loader = evaluation_loader(
        image_set(images), predictor.data_config, batch_size=BATCH_SIZE, machine=predictor.machine, workers=0
    )
    return torch.cat([predictor.normalize(batch.images) for batch in loader])


def _normalised(predictor: Predictor, images: Sequence[ImageOrPath], count: int) -> Tensor:
    """So many of them, some several times if there are fewer."""
    found = normalised_images(predictor, images[:count])
    return found[torch.arange(count) % len(found)].contiguous()


def _probabilities(predictor: Predictor, images: Sequence[ImageOrPath]) -> Tensor:
    """(N, num_classes), on the CPU."""
    loader = evaluation_loader(
        image_set(images), predictor.data_config, batch_size=BATCH_SIZE, machine=predictor.machine, workers=0
    )
    return torch.cat([predictor.probabilities(logits).cpu() for _, logits, _ in predictor.stream(loader)])


@torch.inference_mode()
def _seconds(steps: Sequence[Callable[[], object]]) -> list[float]:
    """The median seconds of each step, in turns."""
    taken: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(ROUNDS):
        for step, times in zip(steps, taken, strict=True):
            start, count = time.perf_counter(), 0
            while count == 0 or time.perf_counter() - start < ROUND_S:
                step()
                count += 1
            times.append((time.perf_counter() - start) / count)
    return [statistics.median(times) for times in taken]
