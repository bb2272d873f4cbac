"""Labelled images, each decoded when it is needed."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from t2t_vit.data.crops import Box, Crop
from t2t_vit.data.pixels import RGB, Picture, PixelFormat, grey_to_bytes, read_array, to_picture
from t2t_vit.errors import UserError

# Pillow warns of corrupt EXIF, odd palettes and many pixels. The pixels are as good as any others.
warnings.filterwarnings("ignore", module=r"PIL\.")

MAX_PIXELS = 150_000_000
"""The largest image that is decoded: half a gigabyte in RGB. Pillow refuses 179 megapixels and more."""
STRIP_PIXELS = 8_000_000
NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow recognises but does not decode by itself."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the orientation that its EXIF data tells. From 5 on, height and width change."""


Shape = tuple[int, int, int]
"""Height, width and channels."""


@cache
def image_extensions() -> frozenset[str]:
    """How the names of files end that can be read as images, such as ".png"."""
    known = Image.registered_extensions()
    return frozenset(
        [".npy", ".npz", *(end for end, kind in known.items() if kind in Image.OPEN and kind not in NO_PIXELS)]
    )


class UnreadableImage(UserError):
    """An image that is missing, cut off or no image at all; `reason` is the decoder's, without a full stop."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error travels between processes
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} is not a readable image: {self.reason}"


class Load(Protocol):
    """Maps an index to a picture, whole or cropped. Raises UnreadableImage.

    Sets of files also take `format: PixelFormat`, what the picture is to be read as.
    """

    def __call__(self, index: int, crop: Crop | None = None) -> Any: ...


class Generate(Protocol):
    """Draws images by their rows and epochs, at a side in pixels that the set has by itself."""

    def __call__(self, rows: Sequence[int], epochs: Sequence[int], *, side: int = ...) -> np.ndarray: ...


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, each decoded when it is needed.

    Attributes:
        names: a name for each image, such as its path below the data folder, with "/".
        labels: the class of each image.
        load: gives an image by its index. It must pickle and survive a fork, for worker processes.
        in_memory: whether the images are in memory, decoded.
        format: the kind of picture that the images are read as.
        read_shape: gives an image's height, width and channels without decoding it, if that can be done; 3 channels
            stand for any image that is no array.
        ignored: the number of files of each kind beside them that are no images.
        generate: draws the images of some rows and epochs, (B, side, side, 3), uint8, for sets whose epochs have other
            images each; None for all other sets.
    """

    names: Sequence[str]
    labels: Sequence[int]
    load: Load
    in_memory: bool = False
    format: PixelFormat = RGB
    read_shape: Callable[[int], Shape] | None = None
    ignored: Mapping[str, int] = dataclasses.field(default_factory=dict)
    generate: Generate | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Sequence[int]) -> "ImageSet":
        """The images of these rows, in their order."""
        return dataclasses.replace(
            self,
            names=[self.names[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            load=partial(_load_row, self.load, rows),
            read_shape=self.read_shape and partial(_shape_of_row, self.read_shape, rows),
            generate=self.generate and partial(_generate_rows, self.generate, rows),
        )

    def in_format(self, format: PixelFormat) -> "ImageSet":
        """The same images, read as something else."""
        if format == self.format:
            return self
        load: Any = self.load  # one of those that take a format
        return dataclasses.replace(self, load=partial(load, format=format), format=format)

    def drawn_at(self, side: int) -> "ImageSet":
        """The same images, generated at this side in pixels; images that are not generated stay as they are."""
        return dataclasses.replace(self, generate=self.generate and partial(self.generate, side=side))


def _load_row(load: Load, rows: Sequence[int], index: int, crop: Crop | None = None, **how: PixelFormat) -> Picture:
    return load(rows[index], crop, **how)


def _shape_of_row(read_shape: Callable[[int], Shape], rows: Sequence[int], index: int) -> Shape:
    return read_shape(rows[index])


def _generate_rows(
    generate: Generate, rows: Sequence[int], indices: Sequence[int], epochs: Sequence[int], **how: int
) -> np.ndarray:
    return generate([rows[index] for index in indices], epochs, **how)


def array_images(arrays: np.ndarray, names: Sequence[str], labels: Sequence[int]) -> ImageSet:
    """Images in memory: (N, H, W) in grey or (N, H, W, 3) in RGB, uint8."""
    return ImageSet(names, labels, partial(_load_array, arrays, names), in_memory=True)


def _load_array(
    arrays: np.ndarray, names: Sequence[str], index: int, crop: Crop | None = None, *, format: PixelFormat = RGB
) -> Picture:
    pixels = arrays[index]
    if format.is_array:
        with _failure_named(names[index]):
            pixels = format.channels(pixels)
    return crop_pixels([pixels], crop)


def file_images(read: Callable[[int], bytes], names: Sequence[str], labels: Sequence[int]) -> ImageSet:
    """Images in files: `read` gives the content of a file by its index. It must pickle and survive a fork."""
    load, read_shape = partial(_load_file, read, names), partial(_shape_of_file, read, names)
    return ImageSet(names, labels, load, read_shape=read_shape)


def _load_file(
    read: Callable[[int], bytes],
    names: Sequence[str],
    index: int,
    crop: Crop | None = None,
    *,
    format: PixelFormat = RGB,
) -> Picture:
    return _decode(lambda: BytesIO(read(index)), crop, names[index], format)


def _shape_of_file(read: Callable[[int], bytes], names: Sequence[str], index: int) -> Shape:
    """Height, width and channels, from the beginning of a file; UnreadableImage if it is no image."""
    with _failure_named(names[index]):
        file = BytesIO(read(index))
        array = read_array(file)
        if array is not None:
            return array.shape[0], array.shape[1], array.shape[2] if array.ndim == 3 else 1
        with _open(file) as image:
            width, height = image.size
            return (width, height, 3) if _orientation(image) >= 5 else (height, width, 3)


def read_image(
    file: str | Path | BinaryIO, crop: Crop | None = None, *, name: str | None = None, format: PixelFormat = RGB
) -> Any:
    """The picture in a file, whole or cropped.

    It is turned upright by its EXIF data. In RGB the background shows through transparent pixels, and grey of more
    than 8 bits is scaled to 8: 16 bits by 65,535, 32 bits and floating point by the image's own least and largest
    value. A JPEG of more than `MAX_PIXELS` is decoded smaller.

    Args:
        file: a path or an open binary file.
        crop: None gives the whole image.
        name: the image's name in errors, by default the path.
        format: the kind of picture to read.

    Returns:
        An RGB image, or (C, H, W), float32, for a format of other channels.

    Raises:
        UnreadableImage: the decoder fails, for whatever reason, or the image has too many pixels or other channels.
    """
    # All at once is faster than in pieces.
    open_file = (lambda: BytesIO(Path(file).read_bytes())) if isinstance(file, str | Path) else (lambda: file)
    return _decode(open_file, crop, name or str(file), format)


def _decode(open_file: Callable[[], BinaryIO], crop: Crop | None, name: str, format: PixelFormat) -> Picture:
    with _failure_named(name):
        file = open_file()
        array = read_array(file)
        if array is not None:
            array = format.channels(array)
        else:
            with _open(file) as image:
                upright, box = _decode_upright(image, None if format.is_array else crop, format)
                if format.is_array:
                    array = format.bands(upright)
                elif crop is None:
                    return format.rgb(upright)
                else:
                    pixels = _rgb_pixels(upright, box, format)
    if array is not None:
        return crop_pixels([array], crop)
    assert crop is not None
    return crop.resize(pixels)


def convert_image(image: Image.Image, *, name: str, format: PixelFormat = RGB) -> Picture:
    """An image that is open already, as `read_image` would have it."""
    with _failure_named(name):
        whole, _ = _decode_upright(image, None, format)
        return to_picture(format.bands(whole)) if format.is_array else format.rgb(whole)


@contextmanager
def _failure_named(name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else None
        reason = reason or getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(name, reason.rstrip(".")) from error


def _open(file: BinaryIO) -> Image.Image:
    """`Image.open` without its limit of pixels; `MAX_PIXELS` is ours."""
    try:
        return Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        file.seek(0)
        start = file.read(16)
        for open_format, accept in Image.OPEN.values():
            if accept is not None and accept(start) is True:
                file.seek(0)
                return open_format(file, "")
        raise


def _rgb_pixels(image: Image.Image, box: Box, format: PixelFormat) -> np.ndarray:
    """The pixels of a part of an image, (H, W, 3); in strips, or a large one would be there three times over."""
    height, width = box.bottom - box.top, box.right - box.left
    if height * width <= STRIP_PIXELS:
        return np.array(format.rgb(image.crop(box)))
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        end = min(top + rows, height)
        strip = image.crop((box.left, box.top + top, box.right, box.top + end))
        pixels[top:end] = np.asarray(format.rgb(strip))
    return pixels


def _decode_upright(image: Image.Image, crop: Crop | None, format: PixelFormat) -> tuple[Image.Image, Box]:
    """An opened image, upright, and what a crop chooses of it; a JPEG is decoded smaller where the crop shrinks it."""
    reduction = 1
    while image.width * image.height > MAX_PIXELS * reduction**2:
        reduction *= 2
    if image.format not in ("JPEG", "MPO"):  # these alone can be decoded smaller
        if reduction > 1:
            raise ValueError(f"{image.width} x {image.height} pixels, and the limit is {MAX_PIXELS // 10**6} million")
        image.load()  # only then are the orientation of a PNG and the size of an icon known
    width, height = image.size
    orientation = _orientation(image)
    box = Box(0, 0, height, width) if orientation >= 5 else Box(0, 0, width, height)
    if crop is not None:
        box = crop.choose(box.right, box.bottom)
        reduction = max(reduction, crop.reduction(box))
    if reduction > 1:
        image.draft(None, (width // reduction, height // reduction))  # by 2, 4 or 8
        times = round(width / image.width)
        box = Box(*(place // times for place in box))
    image.load()
    upright = image if format.is_array else grey_to_bytes(image)
    if orientation in UPRIGHT:
        upright = upright.transpose(UPRIGHT[orientation])
    return upright, box


def _orientation(image: Image.Image) -> int:
    """The orientation of an image, from 1 to 8, as in EXIF."""
    # Parsing costs time, so few images are looked up. Pillow itself turns TIFFs.
    if image.format == "TIFF" or not image.info.keys() & {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}:
        return 1
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # the pixels are as good as any others
        return 1


def crop_pixels(levels: Sequence[np.ndarray], crop: Crop | None) -> Any:
    """The picture of these pixels, whole or cropped.

    Args:
        levels: the pixels, (H, W) or (H, W, 3), uint8, or (H, W, C), float32; then, if known, those of the same image
            decoded at a half, a quarter and an eighth.
        crop: None gives the whole image.
    """
    whole = levels[0]
    if crop is None:
        return to_picture(whole)
    box = crop.choose(whole.shape[1], whole.shape[0])
    level = min(crop.reduction(box).bit_length(), len(levels)) - 1
    left, top, right, bottom = (place >> level for place in box)
    part = levels[level][top:bottom, left:right]
    return crop.resize(part if part.ndim == 3 else np.repeat(part[..., None], 3, axis=-1))
