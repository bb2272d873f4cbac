"""The split of class folders alone: in proportion, and the same wherever they lie."""

import re
from collections import Counter
from pathlib import Path

import pytest

from t2t_vit.data.sources import open_evaluation, open_source


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


# Groups


def group(name):
    return name.rpartition("/")[2].partition("_")[0]


@pytest.fixture
def videos(tmp_path, draw):
    """Three classes with frames of 12 videos; each video shows two of the classes."""
    for video in range(12):
        for label in (video % 3, (video + 1) % 3):
            for frame in range(2 + video % 4):
                draw(tmp_path / "videos" / "abc"[label] / f"v{video:02d}_{frame}.png")
    return str(tmp_path / "videos")


@pytest.mark.parametrize("group_by", ["v[0-9]+", "(v[0-9]+)_[0-9]"])
def test_groups_stay_on_one_side_in_proportion(videos, group_by):
    source = open_source(videos, group_by=group_by, val_fraction=0.25)
    sides = [{group(name) for name in images.names} for images in (source.train, source.val)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 12
    for label in range(3):
        val, train = list(source.val.labels).count(label), list(source.train.labels).count(label)
        assert 0.15 <= val / (val + train) <= 0.35
    assert source.split["group_by"] == group_by
    evaluation = open_evaluation(videos, trained_split=source.split)
    assert evaluation.images.names == source.val.names
    assert {group(n) for n in open_source(videos).train.names} & {group(n) for n in open_source(videos).val.names}


def test_a_seed_gives_one_grouped_split_and_others_others(videos):
    splits = [open_source(videos, group_by="v[0-9]+", seed=seed).val.names for seed in (1, 1, 2, 3)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2] or splits[0] != splits[3]


def test_a_class_with_two_unequal_groups_has_one_on_each_side(tmp_path, draw):
    for name in [*(f"cat/a_{i}.png" for i in range(9)), "cat/b_0.png", *(f"dog/{v}_0.png" for v in "cdefgh")]:
        draw(tmp_path / name)
    source = open_source(str(tmp_path), group_by="[a-h]_")
    assert set(source.train.labels) == set(source.val.labels) == {0, 1}


def test_images_without_a_group_are_one_each(tmp_path, draw):
    for name in [f"{label}/{name}.png" for label in ("cat", "dog") for name in ("x1_a", "x1_b", *"0123456789")]:
        draw(tmp_path / name)
    source = open_source(str(tmp_path), group_by="x[0-9]")
    assert len(source.val) in (4, 5, 6)
    assert len({name for name in source.val.names if "x1" in name}) in (0, 4)


def test_groups_on_both_sides_of_a_given_split_are_named(tmp_path, draw):
    for part, numbers in (("train", (1, 2, 3)), ("val", (3, 4))):
        for number in numbers:
            for label in ("cat", "dog"):
                draw(tmp_path / part / label / f"v{number}.png")
    note = "groups of --group-by with images both to train on and to validate on, 1 in all: v3"
    assert open_source(str(tmp_path), group_by="v[0-9]").notes == (note,)


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("v[0-9", "--group-by must be a regular expression, got 'v[0-9': unterminated character set at position 1."),
        (
            "patient[0-9]+",
            "--group-by 'patient[0-9]+' finds nothing in the names of the images, such as a/v00_0.png, a/v00_1.png and "
            "88 more. Give a regular expression that finds the group in them, such as 'patient[0-9]+'.",
        ),
        (
            "png",
            "--group-by 'png' puts all images into one group, 'png', which cannot be divided. "
            "Give a regular expression that finds what differs between groups.",
        ),
        (
            "[abc]/",
            "--group-by finds one group only in these classes, which cannot be on both sides of the split: a, b, c. "
            "Add images of other groups, remove the classes, or make val/ yourself.",
        ),
    ],
)
def test_groups_that_do_not_fit_are_told(videos, refusal, group_by, message):
    told = refusal(videos, group_by=group_by)
    assert re.sub("and [0-9]+ more", "and 88 more", told) == message
