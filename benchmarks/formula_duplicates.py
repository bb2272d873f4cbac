"""Looks for images of data sets among the images that are drawn from formulas.

    python benchmarks/small_sets.py sets
    python benchmarks/formula_duplicates.py sets/* --sheet nearest.png

Images are compared as grey copies of 16 x 16 pixels, without their mean and length, by the size of their correlation,
so that black on white is the same as white on black. For each set: the correlation of an image that is reported on with
the nearest of the formulas' images, and with the nearest training image of the set. A copy would have more than 0.99.
The sheet has the nearest pairs, to look at.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from t2t_vit.data.formula_sets import formula_splits
from t2t_vit.data.images import ImageSet
from t2t_vit.data.sources import open_source
from t2t_vit.pictures.sheet import draw_sheet
from t2t_vit.runtime.files import whole_file

COPY_PX, SHOWN_PX, BATCH, PAIRS = 16, 96, 512, 6


def copies(pixels: list[Image.Image]) -> np.ndarray:
    """Tiny grey copies without mean and length, (N, COPY_PX ** 2), float32."""
    tiny = np.stack([np.asarray(one.convert("L").resize((COPY_PX, COPY_PX), Image.Resampling.BOX)) for one in pixels])
    flat = tiny.reshape(len(tiny), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 16)  # 16: images of one colour resemble none


def of_set(images: ImageSet) -> np.ndarray:
    return copies([images.load(row) for row in range(len(images))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="folders with train/ and val/")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of images from formulas to look at")
    parser.add_argument("--sheet", type=Path, help="picture of the nearest pairs to write")
    words = parser.parse_args()
    _, formulas = formula_splits("formulas").train.read()
    sources = {name: open_source(name) for name in words.sets}
    wanted = {name: of_set(source.val) for name, source in sources.items()}
    nearest = {name: np.zeros(len(one)) for name, one in wanted.items()}
    places = {name: np.zeros((len(one), 2), int) for name, one in wanted.items()}
    for epoch in range(words.epochs):
        for first in range(0, len(formulas), BATCH):
            rows = list(range(first, min(first + BATCH, len(formulas))))
            assert formulas.generate is not None
            drawn = copies([Image.fromarray(one) for one in formulas.generate(rows, [epoch] * len(rows), side=64)])
            for name, one in wanted.items():
                likeness = np.abs(one @ drawn.T)
                best = likeness.argmax(axis=1)
                values = likeness[np.arange(len(one)), best]
                better = values > nearest[name]
                nearest[name][better] = values[better]
                places[name][better] = np.stack([np.full(len(best), epoch), first + best], axis=1)[better]
    print(f"{words.epochs * len(formulas):,} images from formulas; correlation with the nearest one")
    print(
        f"{'set':24} {'median':>8} {'highest':>8} {'above 0.99':>11}   {'own training images: median':>28} {'highest':>8}"
    )
    pairs, captions = [], []
    for name, source in sources.items():
        own = np.abs(wanted[name] @ of_set(source.train).T).max(axis=1)
        found = nearest[name]
        print(
            f"{Path(name).name:24} {np.median(found):8.3f} {found.max():8.3f} {(found > 0.99).sum():11d}   "
            f"{np.median(own):28.3f} {own.max():8.3f}"
        )
        for row in np.argsort(-found)[:PAIRS].tolist():
            epoch, place = places[name][row].tolist()
            theirs = Image.fromarray(formulas.generate([place], [epoch], side=64)[0])
            for one, caption in ((source.val.load(row), Path(name).name), (theirs, f"{found[row]:.3f}")):
                pairs.append(np.asarray(one.convert("RGB").resize((SHOWN_PX, SHOWN_PX))))
                captions.append(caption)
    if words.sheet is not None:
        with whole_file(words.sheet) as file:
            draw_sheet(np.stack(pairs), captions, columns=2 * PAIRS).save(file, "png")


if __name__ == "__main__":
    main()
