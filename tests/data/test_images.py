"""Decoding: what comes out of an image file, and what is said of one that is none."""

import io
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from t2t_vit.data.crops import Box
from t2t_vit.data.images import UnreadableImage, array_images, convert_image, file_images, read_image
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.errors import UserError


def test_images_in_memory():
    arrays = np.stack([np.full((2, 3), 7), np.full((2, 3), 9)]).astype(np.uint8)
    images = array_images(arrays, ["a", "b"], [1, 0])
    assert (len(images), images.names[1], images.labels[0]) == (2, "b", 1)
    loaded = pickle.loads(pickle.dumps(images)).load(1)
    assert (loaded.mode, loaded.size, loaded.getpixel((2, 1))) == ("RGB", (3, 2), (9, 9, 9))
    second = images.subset([1])
    assert (list(second.names), list(second.labels), second.load(0).getpixel((0, 0))) == (["b"], [0], (9, 9, 9))


def test_sixteen_bits_keep_their_greys(tmp_path):
    Image.fromarray(np.array([[0, 32768], [65535, 256]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png"))[..., 0].tolist() == [[0, 128], [255, 1]]


@pytest.mark.slow
def test_images_decode_without_a_warning(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "transparent.png", transparency=b"\xff\x80")
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    Image.new("L", (3, 2)).save(tmp_path / "corrupt.jpg", exif=b"Exif\0\0II*\0 no EXIF data")
    program = """
import sys, warnings
from PIL import Image
from t2t_vit.data.images import read_image
Image.MAX_IMAGE_PIXELS = 300
print(*read_image(sys.argv[1]).getpixel((0, 0)), *read_image(sys.argv[2]).size, *read_image(sys.argv[3]).size)
warnings.warn("another's")
"""
    files = [tmp_path / "transparent.png", tmp_path / "large.png", tmp_path / "corrupt.jpg"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program, *files],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "227 177 152 20 20 3 2\n"  # half of the colour, half of white
    assert done.stderr.endswith("UserWarning: another's\n")  # what is no warning of Pillow's is still an error


class Part:
    """A crop of one place, to be reduced so many times."""

    def __init__(self, place, times=1):
        self.place, self.times = place, times

    def choose(self, width, height):
        self.size = width, height
        return Box(*self.place)

    def reduction(self, box):
        return self.times

    def resize(self, pixels):
        return Image.fromarray(pixels)


def same(one, other):
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def encoded(image, kind, **settings):
    image.save(file := io.BytesIO(), kind, **settings)
    return file


def four_corners(width=48, height=32):
    """Four colours, so that each of the eight orientations is another image."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255, 0, 0
    pixels[: height // 2, width // 2 :] = 0, 255, 0
    pixels[height // 2 :, : width // 2] = 0, 0, 255
    return Image.fromarray(pixels)


# Transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
@pytest.mark.parametrize("background", ["white", "#204060"])
def test_what_is_transparent_shows_the_background(mode, background):
    """The left half is transparent, and black below; the right half is white, and opaque."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (4, 0, 8, 4))
    if mode == "P":  # a colour of the palette is transparent
        image = Image.new("P", (8, 4), 0)
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.paste(1, (4, 0, 8, 4))
        file = encoded(image, "png", transparency=b"\0\xff")
    elif mode in ("L", "RGB"):  # one value of all is transparent
        file = encoded(image.convert("RGB").convert(mode), "png", transparency=0 if mode == "L" else (0, 0, 0))
    else:
        file = encoded(image.convert(mode), "png")
    behind = (255, 255, 255) if background == "white" else (0x20, 0x40, 0x60)
    format = PixelFormat(background=background)
    for found in (read_image(file, format=format), read_image(file, Part((0, 0, 8, 4)), format=format)):
        assert (found.mode, found.getpixel((1, 1)), found.getpixel((6, 1))) == ("RGB", behind, (255, 255, 255))


@pytest.mark.parametrize("mode", ["LA", "PA"])
def test_open_images_are_converted_likewise(mode):
    image = Image.new(mode, (2, 1), (255, 255))
    if mode == "PA":
        image.putpalette(list(range(256)) * 3, "RGB;L")
    image.putpixel((0, 0), (0, 0))
    found = convert_image(image, name="a", format=PixelFormat(background="red"))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_half_transparent_pixels_are_mixed_and_opaque_ones_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    pixels[:10, :, 3], pixels[10:, :, 3] = 255, 51
    found = np.asarray(read_image(encoded(Image.fromarray(pixels), "png"))).astype(int)
    assert np.array_equal(found[:10], pixels[:10, :, :3])
    assert np.abs(found[10:] - (pixels[10:, :, :3] * 0.2 + 255 * 0.8)).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_without_an_orientation_are_timms_to_the_last_bit(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    file = encoded(Image.fromarray(pixels).convert(mode), "jpeg")
    expected = Image.open(file).convert("RGB")  # as timm.data.ImageDataset
    assert same(read_image(file), expected)
    assert same(read_image(file, Part((3, 5, 40, 30))), expected.crop((3, 5, 40, 30)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_images_stand_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"lossless": True} if kind == "webp" else {"quality": 95} if kind == "jpeg" else {}
    file = encoded(four_corners(), kind, exif=exif, **quality)
    expected = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    assert same(read_image(file), expected)
    # The crop is drawn for the size of what is seen.
    crop = Part((4, 6, 20, 28))
    assert same(read_image(file, crop), expected.crop(crop.place))
    assert crop.size == expected.size
    assert file_images(lambda index: file.getvalue(), ["a"], [0]).read_shape(0) == (*expected.size[::-1], 3)
    if kind == "jpeg":  # decoded at a half
        found, whole = read_image(file, Part((0, 0, *expected.size), times=2)), expected.reduce(2)
        assert found.size == whole.size
        assert np.abs(np.asarray(found, int) - np.asarray(whole)).mean() < 4


def test_wide_greys_are_scaled_by_their_range(tmp_path):
    values = np.array([[-50, 0], [50, 205]])
    for name, dtype in (("i.tif", np.int32), ("f.tif", np.float32)):
        Image.fromarray(values.astype(dtype)).save(tmp_path / name)
        assert np.asarray(read_image(tmp_path / name))[..., 0].tolist() == [[0, 50], [100, 255]]
        assert np.asarray(read_image(tmp_path / name, Part((1, 0, 2, 2))))[..., 0].tolist() == [[50], [255]]
    (tmp_path / "16.pgm").write_bytes(b"P5 2 1 65535 " + np.array([32768, 256], ">u2").tobytes())
    assert np.asarray(read_image(tmp_path / "16.pgm"))[..., 0].tolist() == [[128, 1]]
    Image.fromarray(np.array([[np.nan, 1]], np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(UnreadableImage, match="it holds values that are not finite"):
        read_image(tmp_path / "nan.tif")


def png_that_claims(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("size", [(12_300, 12_300), (28_800, 21_600)])  # below Pillow's limit, and above
def test_what_has_too_many_pixels_is_unreadable(size):
    for crop in (None, Part((0, 0, 8, 8), times=8)):
        with pytest.raises(UnreadableImage) as error:
            read_image(png_that_claims(*size), crop, name="a.png")
        assert error.value.reason == f"{size[0]} x {size[1]} pixels, and the limit is 150 million"
    assert file_images(lambda index: png_that_claims(*size).getvalue(), ["a"], [0]).read_shape(0) == (*size[::-1], 3)


def test_large_parts_are_converted_in_strips(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (33, 40, 4), dtype=np.uint8)
    file, crop = encoded(Image.fromarray(pixels), "png"), Part((3, 2, 33, 31))
    whole = read_image(file, crop)
    monkeypatch.setattr("t2t_vit.data.images.STRIP_PIXELS", 100)
    assert same(read_image(file, crop), whole)


def test_a_jpeg_of_too_many_pixels_is_decoded_smaller(monkeypatch):
    monkeypatch.setattr("t2t_vit.data.images.MAX_PIXELS", 48 * 32 // 5)  # a half is too large as well
    file = encoded(four_corners(), "jpeg")
    assert read_image(file).size == (12, 8)
    assert read_image(file, Part((24, 0, 48, 32))).size == (6, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow's limit has no say
    assert read_image(file).size == (12, 8)


def test_unreadable_images_are_named(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "photo.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:1000])
    (tmp_path / "text.png").write_text("not an image")
    problems = []
    for name in ("cut.jpg", "text.png", "gone.png"):
        with pytest.raises(UnreadableImage) as error:
            read_image(tmp_path / name, name=f"cat/{name}")
        problems.append(str(error.value))
    assert problems[0].startswith("cat/cut.jpg is not a readable image: image file is truncated (")
    assert problems[1:] == [
        "cat/text.png is not a readable image: no image format that Pillow knows",
        "cat/gone.png is not a readable image: No such file or directory",
    ]
    with pytest.raises(UserError, match="upload is not a readable image"), (tmp_path / "text.png").open("rb") as file:
        read_image(file, name="upload")


def test_a_full_stop_after_the_reason_is_left_out():
    def refuse(index):
        raise OSError("The decoder gave up.")

    with pytest.raises(UnreadableImage, match=r"^a.png is not a readable image: The decoder gave up$"):
        file_images(refuse, ["a.png"], [0]).load(0)


def test_the_error_travels_between_processes():
    error = pickle.loads(pickle.dumps(UnreadableImage("cat/0.png", "cut off")))
    assert (error.name, error.reason) == ("cat/0.png", "cut off")
