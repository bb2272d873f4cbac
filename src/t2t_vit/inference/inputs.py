"""Images from anywhere: open ones, files, folders of files, patterns, lists, addresses."""

import csv
import glob
import os
import sys
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from t2t_vit.data.crops import Crop
from t2t_vit.data.images import ImageSet, UnreadableImage, convert_image, image_extensions, read_image
from t2t_vit.data.pixels import RGB, Picture, PixelFormat
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.runtime.downloads import is_url, read_url

COLUMNS = ("path", "file", "filename", "image", "image_path", "name")
"""How the column of a CSV is called that has the paths; without any of these, the first column has them."""

ImageOrPath = Image.Image | str | os.PathLike[str]


def find_images(words: Sequence[str]) -> list[Path | str]:
    """The files that some words stand for.

    Args:
        words: paths of files; folders, for the images in them at any depth; patterns such as photos/**/*.jpg; http(s)
            URLs; .csv files, for the paths in a column of them; and -, for the paths on standard input, a line each.

    Raises:
        UserError: for a folder without images, a pattern that nothing fits, or a list that cannot be read.
    """
    return [image for word in words for image in _find(word)]


def _find(word: str) -> Sequence[Path | str]:
    if is_url(word):
        return [word]
    if word == "-":
        return _read_paths()
    path = Path(word).expanduser()
    if path.is_dir():
        if images := _images_below(path):
            return images
        raise UserError(f"The folder {path} holds no image (.jpg, .png, .webp, .tif, .npy or others).")
    if path.exists():
        return _listed(path) if path.suffix.lower() == ".csv" else [path]
    if not glob.has_magic(word):
        return [path]
    fitting = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if images := [one for one in fitting if one.suffix.lower() in image_extensions()]:
        return images
    raise UserError(f"No image fits the pattern {word}.")


def _read_paths() -> Sequence[Path | str]:
    """The paths on standard input."""
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()
    lines = [os.fsdecode(line) for line in content.replace(b"\r\n", b"\n").split(b"\n") if line.strip()]
    if not lines:
        raise UserError("Standard input names no image: it must have a path on each line.")
    return [_as_path(line) for line in lines]


def _as_path(text: str) -> Path | str:
    return text if is_url(text) else Path(text)


def _listed(file: Path) -> Sequence[Path | str]:
    """The paths in a column of a CSV. They are looked for beside it, then from here.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            rows = [row for row in csv.reader(opened) if row]
    except (OSError, csv.Error) as error:
        raise UserError(f"The list {file} cannot be read: {error}.") from error
    header = rows[0] if rows else []
    column = next((place for place, name in enumerate(header) if name.strip().lower() in COLUMNS), None)
    texts = [row[column or 0] for row in rows[column is not None :] if len(row) > (column or 0)]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(
            f"The list {file} names no image: it needs a column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]}."
        )
    beside = [os.path.join(file.parent, text) for text in texts]  # noqa: PTH118 (it may be too long for a Path)
    return [
        Path(there) if not is_url(text) and os.path.exists(there) else _as_path(text)  # noqa: PTH110
        for text, there in zip(texts, beside, strict=True)
    ]


def _images_below(folder: Path) -> list[Path]:
    """The image files in a folder, sorted, without hidden files and folders. Links are followed.

    Folders below it that cannot be read are told on standard error, and left out.
    """
    found, seen = [], set[str]()
    closed: list[str] = []

    def note(error: OSError) -> None:
        if str(error.filename) == str(folder):
            raise UserError(f"The folder {folder} cannot be read: {error.strerror}.") from error
        closed.append(f"{error.filename} ({error.strerror})" if error.filename else str(error))

    for parent, folders, files in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # links may lead round in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    if closed:
        print(f"warning: folders that could not be read: {abbreviate(closed)}", file=sys.stderr)
    return sorted(path for path in found if path.suffix.lower() in image_extensions())


def image_set(images: Sequence[ImageOrPath]) -> ImageSet:
    """Images without labels; an open image without a file is named by its number."""
    names = [
        getattr(image, "filename", "") or f"image {row}" if isinstance(image, Image.Image) else os.fspath(image)
        for row, image in enumerate(images)
    ]
    return ImageSet(names, [0] * len(names), partial(_load, images, names))


def _load(
    images: Sequence[ImageOrPath],
    names: Sequence[str],
    row: int,
    crop: Crop | None = None,
    *,
    format: PixelFormat = RGB,
) -> Picture:
    image = images[row]
    if isinstance(image, Image.Image):
        return convert_image(image, name=names[row], format=format)
    path = os.fspath(image)
    if not is_url(path):
        return read_image(path, crop, format=format)
    try:
        content = read_url(path)
    except UserError as error:
        raise UnreadableImage(path, str(error)) from error
    return read_image(BytesIO(content), crop, name=path, format=format)
