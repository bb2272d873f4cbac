"""Decoding: what comes out of an image file, and what is said of one that is none."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from t2t_vit.data.images import UnreadableImage, array_images, file_images, read_image
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
    program = """
import sys, warnings
from PIL import Image
from t2t_vit.data.images import read_image
Image.MAX_IMAGE_PIXELS = 300
print(*read_image(sys.argv[1]).getpixel((0, 0)), *read_image(sys.argv[2]).size)
warnings.warn("another's")
"""
    files = [tmp_path / "transparent.png", tmp_path / "large.png"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", program, *files],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "200 100 50 20 20\n"
    assert done.stderr.endswith("UserWarning: another's\n")  # what is no warning of Pillow's is still an error


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
