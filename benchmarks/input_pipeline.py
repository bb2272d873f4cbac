"""Images per second that one core decodes and augments: our loader beside timm's, and where the time goes.

    python benchmarks/input_pipeline.py --csv benchmarks/results/input-pipeline-MACHINE.csv

JPEGs cut from scikit-learn's two sample photographs, of 500 x 375 pixels and of 1000 to 2000 on the longer side; the
imagenet recipe at 224 pixels. The loaders take turns; a rate is the median over the rounds. It counts the seconds of the
processor, not those of the clock, so that what else runs on the machine matters little. timm's loader ends with
normalised and erased images, as does ours where it says so; in the other rows both are left to a GPU, which is the
default of either.
"""

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ImageDataset, create_loader

from t2t_vit.data.cache import cached
from t2t_vit.data.images import ImageSet
from t2t_vit.data.loading import DrawnImages, EpochBatches, Sample, collate, make_loader
from t2t_vit.data.sources import open_source
from t2t_vit.data.transforms import Normalize, train_transform
from t2t_vit.runtime.files import write_csv
from t2t_vit.training.recipes import RECIPES

BATCH_SIZE = 32
DATA_CONFIG = {
    "input_size": (3, 224, 224), "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "crop_pct": 0.9,
    "interpolation": "bicubic",
}  # fmt: skip
RECIPE = RECIPES["imagenet"].values
AUGMENTATION = {
    "scale": RECIPE["scale"], "ratio": (3 / 4, 4 / 3), "hflip": 0.5, "color_jitter": RECIPE["color_jitter"],
    "auto_augment": RECIPE["aa"],
}  # fmt: skip
ERASING = {"re_prob": RECIPE["reprob"], "re_mode": "pixel"}
STEPS = {"RandomHorizontalFlip": "flip", "RandAugment": "RandAugment", "MaybePILToTensor": "to tensor"}
NORMALIZE = Normalize(DATA_CONFIG, torch.device("cpu"), re_prob=ERASING["re_prob"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="of 500 x 375 pixels; a quarter as many large ones")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--csv", type=Path, help="one row a loader and a step")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker

    rows: list[dict[str, Any]] = []
    for title, count, longer_side in (
        ("500 x 375 pixels", options.images, (500, 500)),
        ("1000 to 2000 pixels", options.images // 4, (1000, 2000)),
    ):
        with tempfile.TemporaryDirectory(prefix="input-pipeline-") as work:
            write_photographs(Path(work), count, longer_side)
            rows += measure(title, work, rounds=options.rounds)
    if options.csv:
        write_csv(options.csv, rows)
    return 0


def measure(title: str, folder: str, *, rounds: int) -> list[dict[str, Any]]:
    """Prints the rates of all loaders on a folder of photographs and the seconds of our steps, and returns them."""
    images = open_source(folder, val_fraction=1e-9).train
    crop, _ = train_transform(DATA_CONFIG, **AUGMENTATION)
    loaders = {
        "t2t_vit": ours(images),
        "t2t_vit --cache": ours(cached(images, crop)),
        "timm": timms(folder, gpu=True),
        "t2t_vit, normalised and erased": ours(images, normalized=True),
        "timm, normalised and erased": timms(folder),
    }
    for loader in loaders.values():
        rate_of(loader)  # files come from memory from here on
    rng = random.Random(0)  # a fixed order made 7 % of difference between two equal loaders
    turns = [rng.sample(list(loaders), len(loaders)) for _ in range(rounds)]
    found = [{name: rate_of(loaders[name]) for name in turn} for turn in turns]
    seconds = [seconds_of_steps(images) for _ in range(rounds)]

    rows: list[dict[str, Any]] = []
    print(f"\nphotographs of {title}")
    for name in loaders:
        rates = [one[name] for one in found]
        reference = "timm, normalised and erased" if "normalised" in name else "timm"
        ratio = statistics.median(one[name] / one[reference] for one in found)
        values = {"images_per_second_per_core": statistics.median(rates), "lowest": min(rates), "highest": max(rates)}
        rows.append(
            {"photographs": title, "what": name}
            | {key: round(value, 1) for key, value in values.items()}
            | {"times_timm": round(ratio, 2)}
        )
        print("{what:32} {images_per_second_per_core:7.1f} images/s a core   {lowest} to {highest}   {times_timm} x timm"
              .format(**rows[-1]))  # fmt: skip
    total = 1000 / rows[0]["images_per_second_per_core"]
    medians = {step: 1000 * statistics.median(one[step] for one in seconds) for step in seconds[0]}
    medians["all else"] = total - sum(medians.values())
    print(f"where {total:.2f} ms an image go:")
    for step, milliseconds in medians.items():
        percent = round(100 * milliseconds / total, 1)
        rows.append({"photographs": title, "what": step, "milliseconds": round(milliseconds, 3), "percent": percent})
        print(f"{step:32} {milliseconds:7.2f} ms  {percent:5.1f} %")
    return rows


def write_photographs(folder: Path, count: int, longer_side: tuple[int, int]) -> None:
    """JPEGs of 4 : 3 with a longer side from and to so many pixels, one in four of them upright, of two classes."""
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(pixels) for pixels in sklearn.datasets.load_sample_images().images]  # 640 x 427
    for i in range(count):
        photograph = photographs[i % 2]
        longer = int(rng.integers(longer_side[0], longer_side[1] + 1))
        width, height = (longer * 3 // 4, longer) if i % 8 < 2 else (longer, longer * 3 // 4)
        scale = rng.uniform(0.6, 1) * min(photograph.width / width, photograph.height / height)
        cut = int(width * scale), int(height * scale)
        left, top = (int(rng.integers(whole - part + 1)) for whole, part in zip(photograph.size, cut, strict=True))
        path = folder / ("china", "flower")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        box = (left, top, left + cut[0], top + cut[1])
        picture = photograph.resize((width, height), Image.Resampling.BICUBIC, box)
        if longer > max(photograph.size):  # enlarged, it has too little detail: a camera's noise makes up for it
            noisy = np.asarray(picture) + rng.normal(0, 3, (height, width, 1))
            picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(path, quality=90)


def ours(images: ImageSet, *, normalized: bool = False) -> Callable[[], Iterable[Any]]:
    """Starts our loader's next epoch: each has other crops and other augmentation."""
    epochs = itertools.count()
    batches = EpochBatches(len(images), batch_size=BATCH_SIZE)
    crop, transform = train_transform(DATA_CONFIG, **AUGMENTATION)
    dataset = DrawnImages(images, transform, crop=crop)

    def start() -> Iterable[Any]:
        first = next(epochs) * batches.batches_per_epoch
        batches.set_steps(first, first + batches.batches_per_epoch)
        loader = make_loader(dataset, batches, workers=0)
        return (batch._replace(images=NORMALIZE(batch.images)) for batch in loader) if normalized else loader

    return start


def timms(folder: str, *, gpu: bool = False) -> Callable[[], Iterable[Any]]:
    """Starts an epoch of timm's loader with the same augmentation."""

    def start() -> Iterable[Any]:
        loader = create_loader(
            ImageDataset(folder), batch_size=BATCH_SIZE, is_training=True, use_prefetcher=gpu, num_workers=0,
            persistent_workers=False, interpolation="random", device=torch.device("cpu"), pin_memory=False,
            **{key: DATA_CONFIG[key] for key in ("input_size", "mean", "std")}, **AUGMENTATION, **ERASING,
        )  # fmt: skip
        return loader.loader if gpu else loader

    return start


def rate_of(start: Callable[[], Iterable[Any]]) -> float:
    """Images in a second of the processor, over one epoch."""
    loader = start()
    began, count = time.process_time(), 0
    for batch in loader:
        count += len(batch[0])
    return count / (time.process_time() - began)


def seconds_of_steps(images: ImageSet) -> dict[str, float]:
    """Seconds of the processor that an image takes in each step of our loader, over one epoch."""
    crop, transform = train_transform(DATA_CONFIG, **AUGMENTATION)
    steps: Any = transform
    names = [STEPS[type(step).__name__] for step in steps.transforms]
    spent = dict.fromkeys(("read, decode, cut", "resize", *names, "collate"), 0.0)

    def timed(name: str, do: Callable[..., Any], *given: Any) -> Any:
        began = time.process_time()
        result = do(*given)
        spent[name] += time.process_time() - began
        return result

    crop.resize = lambda pixels, resize=crop.resize: timed("resize", resize, pixels)  # type: ignore[union-attr]

    def samples() -> Iterator[Sample]:
        for index in range(len(images)):
            image = timed("read, decode, cut", images.load, index, crop)
            for name, step in zip(names, steps.transforms, strict=True):
                image = timed(name, step, image)
            yield Sample(image, images.labels[index], index, None)

    done = list(samples())
    spent["read, decode, cut"] -= spent["resize"]  # which was part of loading
    for first in range(0, len(done), BATCH_SIZE):
        timed("collate", collate, done[first : first + BATCH_SIZE])
    return {name: seconds / len(images) for name, seconds in spent.items()}


if __name__ == "__main__":
    sys.exit(main())
