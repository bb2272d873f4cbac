"""Arrays of channels: which files hold them, and how their values are scaled."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from t2t_vit.data.images import UnreadableImage, read_image
from t2t_vit.data.pixels import PixelFormat, as_seen
from t2t_vit.errors import UserError


def saved(array, save=np.save):
    save(file := io.BytesIO(), array)
    return file


def channels(count, dtype, height=3, width=5):
    rng = np.random.default_rng(0)
    return (rng.random((height, width, count)) * (255 if dtype == np.uint8 else 3000)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "scale"), [("u1", 255), ("<u2", 65535), (">u2", 65535), ("f4", 1), ("i4", 1), (">f8", 1)]
)
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_arrays_become_channels(dtype, scale, save):
    array = channels(5, np.dtype(dtype))
    found = read_image(saved(array, save), format=PixelFormat(5))
    assert (found.shape, found.dtype) == ((5, 3, 5), torch.float32)
    np.testing.assert_allclose(found.permute(1, 2, 0), array / scale, rtol=1e-6)


def test_an_array_of_two_axes_or_of_three_channels_is_an_image():
    array = channels(3, np.uint8)
    assert np.array_equal(read_image(saved(array)), array)
    assert np.array_equal(read_image(saved(array[..., 0])), np.repeat(array[..., :1], 3, axis=-1))
    wide = np.array([[0, 32768], [65535, 256]], np.uint16)
    for values in (wide, wide - 100.0):  # by the type's range, or by its own
        assert np.asarray(read_image(saved(values)))[..., 0].tolist() == [[0, 128], [255, 1]]


def test_tiffs_of_many_pages_and_images_of_many_bands():
    pages = [Image.fromarray(channels(1, np.uint16)[..., 0] + np.uint16(page)) for page in range(6)]
    pages[0].save(file := io.BytesIO(), "tiff", save_all=True, append_images=pages[1:])
    found = read_image(file, format=PixelFormat(6))
    np.testing.assert_allclose(found, np.stack([np.asarray(page) for page in pages]) / 65535, rtol=1e-6)
    bands = channels(4, np.uint8)
    Image.fromarray(bands).save(file := io.BytesIO(), "png")
    np.testing.assert_allclose(read_image(file, format=PixelFormat(4)).permute(1, 2, 0), bands / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "in_chans", "reason"),
    [
        (channels(4, np.uint8), 3, r"its shape is \(3, 5, 4\), not \(height, width\) or \(.*, 3\): give --in-chans 4$"),
        (channels(4, np.uint8), 5, r"its shape is \(3, 5, 4\), not \(height, width, 5\): give --in-chans 4$"),
        (channels(640, np.uint8), 5, r"its shape is \(3, 5, 640\), not \(height, width, 5\)$"),
        (np.zeros((2, 3, 4, 5)), 5, r"its shape is \(2, 3, 4, 5\), not \(height, width, 5\)$"),
        (np.full((4, 4, 2), np.inf), 2, "it holds values that are not finite"),
        (np.array([{}]), 2, "allow_pickle=False"),
    ],
)
def test_arrays_that_do_not_fit(array, in_chans, reason):
    with pytest.raises(UnreadableImage, match=reason):
        read_image(saved(array), name="a.npy", format=PixelFormat(in_chans))


def test_zip_files_without_an_array():
    np.savez(empty := io.BytesIO())
    for content in (b"PK\x03\x04 cut off", empty.getvalue()):
        with pytest.raises(UnreadableImage):
            read_image(io.BytesIO(content), name="a.npz")


def test_unknown_colours_are_refused():
    with pytest.raises(UserError, match="--background must be a colour such as white, grey or #ff8800, got whit"):
        PixelFormat(background="whit")


def test_channels_are_seen_by_their_range():
    picture = torch.zeros(4, 2, 2)
    picture[1, 0, 0] = 0.01
    assert as_seen(picture).getpixel((0, 0)) == (0, 255, 0)
    assert as_seen(picture[1:3]).getpixel((0, 0)) == (255, 255, 255)
