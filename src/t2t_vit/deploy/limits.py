"""What a server takes from strangers: the limits in one place, and the decoding that keeps to them."""

from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from t2t_vit.data.images import UnreadableImage, convert_image, read_image
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.transforms import Transform

Image.init()
FORMATS = tuple(
    name for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if name in Image.OPEN
)
"""The image formats that are decoded, as far as Pillow was built with them. Others would give strangers more to try."""
ARRAY = b"\x93NUMPY"
KEY_VARIABLE = "T2T_VIT_API_KEY"
"""The environment variable with the key that requests must have; without it all are answered."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_bytes: of the body of a request.
        max_pixels: of an image, before it is decoded.
        max_images: of a request.
        max_pending_bytes: of all requests that are being read or answered.
        timeout_s: from the end of a request's headers to its answer.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 32
    max_pending_bytes: int = 400_000_000
    timeout_s: float = 30.0


class Rejected(Exception):
    """A request that cannot be answered; `status` is the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def decode(
    content: bytes, *, name: str, format: PixelFormat, transform: Transform, shorter_px: float, limits: Limits
) -> Tensor:
    """An image as a network's loader would give it, (C, H, W).

    Args:
        content: the bytes of a file.
        name: of the image, for the reason of a refusal.
        format: what it is read as.
        transform: resizes and crops.
        shorter_px: to which it resizes the shorter side.
        limits: its pixels are counted before they are decoded.

    Raises:
        Rejected: 413 for too many pixels, 415 for what is no image, 422 for one that is damaged.
    """
    if not content:
        raise Rejected(422, f"{name} is empty")
    try:
        if format.is_array and content.startswith(ARRAY):
            array = read_image(BytesIO(content), name=name, format=format)
            _refuse_large(array.shape[-1], array.shape[-2], shorter_px, name, limits)
            return transform(array)
        with _open(content, name, limits) as image:
            _refuse_large(*image.size, shorter_px, name, limits)
            return transform(convert_image(image, name=name, format=format))
    except UnreadableImage as error:
        raise Rejected(422, str(error)) from error
    except MemoryError as error:
        raise Rejected(413, f"{name} takes more memory than there is") from error


def _open(content: bytes, name: str, limits: Limits) -> Image.Image:
    """An image of which no pixel is decoded yet."""
    try:
        return Image.open(BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Rejected(413, f"{name} has more than {limits.max_pixels:,} pixels") from error
    except Exception as error:  # a stranger's bytes make Pillow raise nearly anything
        raise Rejected(415, f"{name} is no image of a format that is read: {', '.join(FORMATS)}") from error


def _refuse_large(width: int, height: int, shorter_px: float, name: str, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise Rejected(413, f"{name} has {width} x {height} pixels, more than {limits.max_pixels:,}")
    enlarged = max(1.0, shorter_px / max(1, min(width, height)))
    if width * height * enlarged**2 > limits.max_pixels:  # a line of pixels becomes a large image
        raise Rejected(413, f"{name} is too narrow: {width} x {height} pixels")
