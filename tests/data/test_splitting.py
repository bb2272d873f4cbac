"""The split of class folders alone: in proportion, and the same wherever they lie."""

from collections import Counter
from pathlib import Path

import pytest

from t2t_vit.data.sources import open_source


def test_class_folders_alone_are_split(tmp_path, class_folders, draw, grey):
    class_folders(tmp_path / "a", cat=10, dog=2, emu=21)
    source = open_source(str(tmp_path / "a"))
    assert Counter(source.val.labels) == {0: 2, 1: 1, 2: 4}
    assert Counter(source.train.labels) == {0: 8, 1: 1, 2: 17}
    assert not set(source.train.names) & set(source.val.names)
    for images in (source.train, source.val):
        for index in range(len(images)):
            row = int(Path(images.names[index]).stem)
            assert grey(images.load(index)) == 10 * row + images.labels[index]
    # Neither where the folder lies nor the order in which the files were written matters.
    for name in reversed(source.train.names + source.val.names):
        draw(tmp_path / "b" / name)
    assert open_source(str(tmp_path / "b")).split == source.split
    draw(tmp_path / "b" / "cat" / "new.png")
    assert open_source(str(tmp_path / "b")).split["fingerprint"] != source.split["fingerprint"]


@pytest.mark.parametrize("val_fraction", [0.05, 0.9])
def test_each_side_of_a_split_has_every_class(tmp_path, class_folders, val_fraction):
    source = open_source(str(class_folders(tmp_path, cat=20, dog=2, emu=2)), val_fraction=val_fraction)
    assert set(source.train.labels) == set(source.val.labels) == {0, 1, 2}


@pytest.mark.parametrize("val_fraction", [0, 1, -0.2])
def test_a_fraction_is_between_0_and_1(refusal, val_fraction):
    message = f"Expected a validation fraction between 0 and 1, got {val_fraction}."
    assert refusal("digits", val_fraction=val_fraction) == message
