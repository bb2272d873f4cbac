"""`benchmarks/small_sets.py`, with the typefaces of matplotlib alone."""

import string
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sets(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(FOLDER)
    import small_sets

    return small_sets


def test_no_typeface_trains_and_reports(sets):
    groups = [sets.TRAIN_FAMILIES, sets.TUNING_FAMILIES, sets.REPORTING_FAMILIES]
    faces = [{(package, file) for package, files in group.values() for file in files} for group in groups]
    packages = [{package for package, _ in group} - {sets.MATPLOTLIB} for group in faces]
    for one, other in [*combinations(faces, 2), *combinations(packages, 2)]:
        assert not one & other


def test_each_photograph_tunes_or_reports(sets):
    known = [Path(file).stem for file in sets.photographs.FILES] + list(sets.photographs.SAMPLES)
    assert sorted(sets.TUNING_PHOTOGRAPHS + sets.REPORTING_PHOTOGRAPHS) == sorted(known)


@pytest.mark.parametrize(
    ("half", "channel", "middle", "is_first"),
    [("left", 0, 120, True), ("right", 0, 120, False), ("top", 1, 100, True), ("bottom", 1, 100, False)],
)
def test_one_half_of_a_photograph_trains_and_the_other_reports(
    sets, tmp_path, monkeypatch, half, channel, middle, is_first
):
    """Pixels say where they are: red from left to right, green from top to bottom."""
    across, down = np.meshgrid(np.arange(240, dtype=np.uint8), np.arange(200, dtype=np.uint8))
    picture = Image.fromarray(np.stack([across, down, np.zeros_like(across)], axis=2))
    monkeypatch.setattr(sets.photographs, "photographs", lambda: {"picture": picture})
    sets.write_crops(tmp_path, ["picture"], half=half)
    for part, in_second_half in (("train", not is_first), ("val", is_first)):
        for file in (tmp_path / part / "picture").iterdir():
            pixels = np.asarray(Image.open(file)).astype(int)
            assert (pixels[:, 0, 0] < pixels[:, -1, 0]).all()  # not mirrored, and upright
            assert (pixels[0, :, 1] < pixels[-1, :, 1]).all()
            if in_second_half:
                assert pixels[..., channel].min() >= middle - 1
            else:
                assert pixels[..., channel].max() <= middle


def test_letters_are_drawn_whole_and_the_same_each_time(sets):
    families = {"DejaVu Serif": (sets.MATPLOTLIB, ("DejaVuSerif", "DejaVuSerif-Bold"))}
    drawn = list(sets.letters(families, 4))
    assert [label for label, _ in drawn] == [letter for letter in string.ascii_lowercase for _ in range(4)]
    for (_, one), (_, again) in zip(drawn, sets.letters(families, 4), strict=True):
        pixels = np.asarray(one, dtype=int)
        assert pixels.shape == (sets.SIDE, sets.SIDE)
        assert np.ptp(pixels) > 70
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert np.ptp(edges) == 0  # paper all around
        assert (pixels == np.asarray(again)).all()
    (lower, capital, *_) = (np.asarray(image) for label, image in drawn if label == "a")
    assert (lower != capital).any()


def test_files_are_numbered_within_their_class(sets, tmp_path):
    images = [("b", Image.new("L", (8, 8), 1)), ("a", Image.new("L", (8, 8), 2)), ("b", Image.new("L", (8, 8), 3))]
    sets.write(tmp_path / "train", images)
    found = {str(file.relative_to(tmp_path)): Image.open(file).getpixel((0, 0)) for file in tmp_path.rglob("*.png")}
    assert found == {"train/a/0000.png": 2, "train/b/0000.png": 1, "train/b/0001.png": 3}
