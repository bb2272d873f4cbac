"""The training crop: timm's boxes and nearly timm's pixels, whatever the size in which a JPEG is decoded."""

import io
import random

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode

from t2t_vit.data.crops import Box, ScaledCrop
from t2t_vit.data.images import array_images, crop_pixels, read_image

SIZE = (32, 48)


def scene(width, height):
    """Smooth waves and edges: what a photograph has, and noise has not."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(9 * x + 5 * y), np.cos(14 * x * y), np.where((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.05, 1, -1)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def encoded(image, file_format="jpeg", **settings):
    file = io.BytesIO()
    image.save(file, file_format, **settings)
    return file


def timms(scale=(0.08, 1.0), size=SIZE):
    return RandomResizedCropAndInterpolation(size, scale=scale, ratio=(3 / 4, 4 / 3), interpolation="random")


def difference(one, other):
    return np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))


@pytest.mark.parametrize("size", [(50, 40), (40, 300), (90, 20)])
def test_boxes_are_timms(size):
    whole, crop = Image.new("RGB", size), timms()
    random.seed(0)
    expected = [crop.get_params(whole, crop.scale, crop.ratio) for _ in range(50)]
    random.seed(0)
    boxes = [ScaledCrop(crop).choose(*size) for _ in range(50)]
    assert [(box.top, box.left, box.bottom - box.top, box.right - box.left) for box in boxes] == expected


def test_pixels_are_timms_up_to_rounding():
    """Of images that are not decoded smaller, with the same random numbers, those for the interpolation too."""
    whole, crop = scene(70, 60), timms()
    for seed in range(20):
        random.seed(seed)
        expected = crop(whole)
        random.seed(seed)
        found = read_image(encoded(whole, "png"), ScaledCrop(crop))
        assert (found.mode, found.size) == ("RGB", SIZE[::-1])
        assert difference(found, expected).max() <= 2
        assert difference(found, expected).mean() < 0.1
        random.seed(seed)
        assert array_images(np.asarray(whole)[None].copy(), ["0"], [0]).load(0, ScaledCrop(crop)) == found


@pytest.mark.parametrize(("times", "decoded"), [(1, 1), (2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (20, 8)])
def test_large_jpegs_are_decoded_smaller(times, decoded, monkeypatch):
    sizes = []
    resize = ScaledCrop.resize
    monkeypatch.setattr(ScaledCrop, "resize", lambda self, pixels: sizes.append(pixels.shape) or resize(self, pixels))
    height, width = SIZE[0] * times, SIZE[1] * times
    crop = ScaledCrop(timms())
    monkeypatch.setattr(crop, "choose", lambda *size: Box(3, 5, 3 + width, 5 + height))
    whole = scene(width + 9, height + 8)
    for file_format, by in (("jpeg", decoded), ("png", 1)):
        read_image(encoded(whole, file_format), crop)
        assert sizes.pop() == pytest.approx((height / by, width / by, 3), abs=1)


def test_a_smaller_decoding_shows_the_same_within_a_level(monkeypatch):
    whole, crop = encoded(scene(300, 260), quality=95), ScaledCrop(timms())
    for box in (Box(16, 8, 216, 152), Box(0, 0, 296, 256), Box(104, 56, 200, 120)):  # on whole pixels of a quarter
        monkeypatch.setattr(crop, "choose", lambda *size, box=box: box)
        assert crop.reduction(box) > 1
        full = np.array(read_image(whole).crop(box))
        found = read_image(whole, crop)
        exact, moved = ([crop.resize(pixels) for _ in range(10)] for pixels in (full, np.roll(full, 2, axis=1)))
        assert min(difference(found, one).mean() for one in exact) < 1
        assert min(difference(found, one).mean() for one in moved) > 1.5, "else this test could not tell"


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "CMYK", "I;16", "LA"])
def test_odd_images_are_cropped_as_they_are_read(mode, tmp_path):
    whole = scene(100, 90)
    odd = Image.fromarray(np.asarray(whole.convert("L"), np.uint16) * 257) if mode == "I;16" else whole.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    odd.save(path)
    random.seed(1)
    found = read_image(path, ScaledCrop(timms()))
    random.seed(1)
    assert found == crop_pixels([np.array(read_image(path))], ScaledCrop(timms()))


def test_interpolation_is_drawn():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    expected = [Image.fromarray(pixels).resize(SIZE[::-1], mode) for mode in (2, 3)]  # bilinear, bicubic
    found = [ScaledCrop(timms()).resize(pixels) for _ in range(60)]
    counts = [sum(difference(one, image).max() <= 2 for one in found) for image in expected]
    assert sum(counts) == 60
    assert min(counts) > 10
    assert {mode.value for mode in timms().interpolation} == {
        InterpolationMode.BILINEAR.value,
        InterpolationMode.BICUBIC.value,
    }
