"""Writes a folder of labelled crops of real photographs: which photograph a crop is of.

They are the photographs that scikit-image and scikit-learn ship. Crops of left halves train, of right halves validate.

    pip install scikit-image
    python benchmarks/photographs.py photographs
    t2t-vit train photographs
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

FILES = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png",
    "retina.jpg", "rocket.jpg",
)  # fmt: skip
SAMPLES = ("china", "flower")


def photographs() -> dict[str, Image.Image]:
    """The photographs by their names, in RGB."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    found = {Path(file).stem: Image.open(folder / file).convert("RGB") for file in FILES}
    return found | {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in SAMPLES}


def write_crops(
    output: Path,
    images: Mapping[str, Image.Image],
    *,
    num_train: int,
    num_val: int,
    side: int,
    scale: tuple[float, float] = (0.25, 0.75),
) -> None:
    """Writes output/train and output/val: squares from the left halves and from the right halves of photographs.

    Args:
        images: photographs by the name of their class.
        num_train, num_val: crops of each photograph.
        side: of a crop, in pixels.
        scale: the part of a photograph's height that a crop takes, from and to; never more than half the width.
    """
    for name, image in images.items():
        middle = image.width // 2
        halves = {"train": (0, middle, num_train), "val": (middle, image.width, num_val)}
        for split, (left, right, count) in halves.items():
            rng = np.random.default_rng([sum(map(ord, name)), split == "val"])
            folder = output / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                width = min(int(image.height * rng.uniform(*scale)), right - left)
                x, y = rng.integers(left, right - width + 1), rng.integers(0, image.height - width + 1)
                crop = image.crop((x, y, x + width, y + width)).resize((side, side), Image.Resampling.BICUBIC)
                crop.save(folder / f"{number:03}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=60, help="crops of a photograph to train on")
    parser.add_argument("--val", type=int, default=30, help="crops of a photograph to validate with")
    parser.add_argument("--side", type=int, default=128, help="side of a crop in pixels")
    words = parser.parse_args()
    write_crops(words.output, photographs(), num_train=words.train, num_val=words.val, side=words.side)
    print(f"{words.output}: {len(FILES) + len(SAMPLES)} classes, {words.train} and {words.val} crops each")


if __name__ == "__main__":
    main()
