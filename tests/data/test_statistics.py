"""Means and deviations of channels, and the typical size of an image."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from t2t_vit.data.images import array_images, file_images
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.sources import open_source
from t2t_vit.data.statistics import measure_channels, spread, typical_size
from t2t_vit.errors import UserError


@pytest.fixture
def array_folder(tmp_path):
    """Class folders of arrays of 6 x 4 pixels and 4 channels."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(5):
            pixels = np.random.default_rng(10 * label + i).normal([1, -200, 30, 7], [2, 50, 0.01, 0], (6, 4, 4))
            np.save(tmp_path / name / f"{i}.npy", pixels)
    return tmp_path


def test_channels_of_arrays(array_folder):
    source = open_source(str(array_folder), format=PixelFormat(4))
    found = measure_channels(source.train)
    pixels = np.concatenate([source.train.load(row).double().numpy().reshape(4, -1) for row in range(8)], axis=1)
    np.testing.assert_allclose(found["mean"], pixels.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["std"], [*pixels.std(axis=1)[:3], 1.0], rtol=1e-4)  # the last does not differ


def test_grey_is_measured_as_bytes_divided_by_255():
    arrays = np.random.default_rng(0).integers(0, 256, (700, 5, 5), dtype=np.uint8)
    images = array_images(arrays, [""] * 700, [0] * 700).in_format(PixelFormat(1))
    sample = arrays[spread(700, 500)] / 255
    assert measure_channels(images) == {"mean": (pytest.approx(sample.mean()),), "std": (pytest.approx(sample.std()),)}


def test_unreadable_images_do_not_count(array_folder):
    source = open_source(str(array_folder), format=PixelFormat(5))
    with pytest.raises(UserError, match=r"None of 8 training images can be read: cat/.* is not .*: give --in-chans 4"):
        measure_channels(source.train)


def test_the_typical_size_is_a_median_that_needs_no_decoding(tmp_path, monkeypatch):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(60):
            Image.new("L", (30 + i, 20 + label)).save(tmp_path / name / f"{i}.png")
    source = open_source(str(tmp_path))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    height, width = typical_size(source)
    assert height in (20, 21)
    assert 55 < width < 65
    broken = replace(source, train=file_images(lambda index: b"no image", ["x"], [0]))
    with pytest.raises(UserError, match="can be read: x is not a readable image"):
        typical_size(broken)


def test_the_typical_size_of_images_in_memory():
    assert typical_size(open_source("digits"), num_images=3) == (8, 8)
