"""Small data sets on disk, and what a user reads of those that do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError


def _draw(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", (4, 4), grey)
    image.putpixel((3, 3), 255)  # an image of one colour is warned of
    image.save(path)


def _class_folders(root: Path, **counts: int) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            _draw(root / name / f"{i}.png", 10 * i + label)
    return root


def _grey(image: Image.Image) -> int:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))[0]


def _refusal(data: str | Path, opener: Callable = open_source, **settings: object) -> str:
    with pytest.raises(UserError) as error:
        opener(str(data), **settings)
    return str(error.value)


@pytest.fixture
def draw():
    """Writes a 4 x 4 image of one grey, so that a test can tell which one it got."""
    return _draw


@pytest.fixture
def class_folders():
    """Makes root/cat/0.png, 1.png ...: image i has grey 10 i + the label."""
    return _class_folders


@pytest.fixture
def grey():
    """The grey of an image that `draw` made."""
    return _grey


@pytest.fixture
def refusal():
    """The sentence with which `open_source`, or another opener, refuses some data."""
    return _refusal
