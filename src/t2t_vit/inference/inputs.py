"""Images from anywhere: open ones, files, folders of files, addresses."""

import os
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image

from t2t_vit.data.crops import Crop
from t2t_vit.data.images import ImageSet, UnreadableImage, convert_image, image_extensions, read_image
from t2t_vit.data.pixels import RGB, Picture, PixelFormat
from t2t_vit.errors import UserError
from t2t_vit.runtime.downloads import is_url, read_url

ImageOrPath = Image.Image | str | os.PathLike[str]


def find_images(words: Sequence[str]) -> list[Path | str]:
    """The files and URLs that are named, and the images in the folders that are, at any depth.

    Raises:
        UserError: for a folder without images.
    """
    found: list[Path | str] = []
    for word in words:
        path = Path(word).expanduser()
        images = [word] if is_url(word) else _images_below(path) if path.is_dir() else [path]
        if not images:
            raise UserError(f"The folder {path} holds no image (.jpg, .png, .webp, .tif, .npy or others).")
        found += images
    return found


def _images_below(folder: Path) -> list[Path]:
    """The image files in a folder, sorted, without hidden files and folders. Links are followed."""
    found, seen = [], set[str]()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # links may lead round in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
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
