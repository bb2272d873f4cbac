"""Images by name, folder or file: what is trained and evaluated on, and what a user reads when it does not fit."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from t2t_vit.data.sources import open_evaluation, open_source

# Digits


def test_digits_are_scikit_learns():
    source, digits = open_source("digits"), load_digits()
    assert (len(source.train), len(source.val)) == (1437, 360)
    assert source.class_names == tuple("0123456789")
    for images in (source.train, source.val):
        for index in range(0, len(images), 100):
            row = int(images.name(index).removeprefix("digits/"))
            pixels = np.asarray(images.load(index))  # (8, 8, 3)
            assert np.abs(pixels / 255 * 16 - digits.images[row][..., None]).max() <= 0.5
            assert images.label(index) == digits.target[row]


def test_digits_are_split_in_proportion_and_for_good():
    source = open_source("digits")
    assert sorted((*source.train.names, *source.val.names)) == [f"digits/{row:04d}" for row in range(1797)]
    classes = Counter(load_digits().target)
    assert all(abs(count - 0.2 * classes[label]) < 1 for label, count in Counter(source.val.labels).items())
    # A checkpoint's record names this split: were it drawn otherwise, training images would pass for validation.
    assert source.split == {
        "kind": "stratified",
        "val_fraction": 0.2,
        "seed": 42,
        "num_train": 1437,
        "num_val": 360,
        "fingerprint": "72603e6041edd55403df8b2895f984721bdb871b",
    }
    assert open_source("digits", seed=1).split["fingerprint"] != source.split["fingerprint"]


# Folders


@pytest.mark.parametrize("val", ["val", "validation"])
def test_train_and_val_folders(tmp_path, class_folders, grey, val):
    class_folders(tmp_path / "train", cat=3, dog=2)
    class_folders(tmp_path / val, cat=1, dog=1)
    source = open_source(str(tmp_path))
    assert source.class_names == ("cat", "dog")
    assert source.train.names == [f"train/{name}.png" for name in ("cat/0", "cat/1", "cat/2", "dog/0", "dog/1")]
    assert source.train.labels == [0, 0, 0, 1, 1]
    assert [grey(source.train.load(i)) for i in range(5)] == [0, 10, 20, 1, 11]
    assert source.val.names == [f"{val}/cat/0.png", f"{val}/dog/0.png"]
    assert source.split.items() >= {"kind": "given", "num_train": 5, "num_val": 2}.items()


def test_class_folders_alone_are_split(tmp_path, class_folders, draw, grey):
    class_folders(tmp_path / "a", cat=10, dog=2, emu=21)
    source = open_source(str(tmp_path / "a"))
    assert Counter(source.val.labels) == {0: 2, 1: 1, 2: 4}
    assert Counter(source.train.labels) == {0: 8, 1: 1, 2: 17}
    assert not set(source.train.names) & set(source.val.names)
    for images in (source.train, source.val):
        for index in range(len(images)):
            row = int(Path(images.name(index)).stem)
            assert grey(images.load(index)) == 10 * row + images.label(index)
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


def test_sets_travel_to_worker_processes(tmp_path, class_folders, grey):
    source = open_source(str(class_folders(tmp_path, cat=4, dog=4)))
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.val.names, copy.val.labels) == (source.val.names, source.val.labels)
    assert grey(copy.val.load(0)) == grey(source.val.load(0))


# What does not fit


def test_unknown_data(refusal):
    assert refusal("digit") == "There is no folder 'digit'. Unknown data set 'digit'. Did you mean digits?"
    known = "Unknown data set '/no/such'. Known: cifar10, cifar100, digits."
    assert refusal("/no/such") == f"There is no folder '/no/such'. {known}"
    assert refusal("a" * 300).startswith("There is no folder 'aaa")  # longer than a file's name can be


@pytest.mark.parametrize("data", ["tfds/cifar10", "hfids/cifar10"])
def test_streams_are_refused(refusal, data):
    assert refusal(data).startswith(f"{data} would be read as a stream, which cannot go on in the middle of an epoch")


@pytest.mark.parametrize("opener", [open_source, open_evaluation])
def test_a_data_dir_without_effect_is_refused(tmp_path, refusal, opener):
    for data in ("digits", f"wds/{tmp_path}", tmp_path):
        assert f"has no effect on {data}: leave it out." in refusal(data, opener, data_dir="data")


def test_a_part_is_missing(tmp_path, class_folders, refusal):
    class_folders(tmp_path / "train", cat=2, dog=2)
    advice = f"Add one, or give {tmp_path}/train to have a part of it split off for validation."
    assert refusal(tmp_path) == f"{tmp_path} has train/ but neither val/ nor validation/. {advice}"
    assert "has train/ but neither val/ nor validation/. Give the folder to" in refusal(tmp_path, open_evaluation)
    (tmp_path / "train").rename(tmp_path / "val")
    assert refusal(tmp_path) == (
        f"{tmp_path} has images to validate on but none to train on. "
        f"Add train/, or give {tmp_path}/val to train on a part of that."
    )


def test_val_has_other_classes(tmp_path, class_folders, refusal):
    class_folders(tmp_path / "train", cat=1, dog=1, emu=1)
    class_folders(tmp_path / "val", cats=1, dog=1, emus=1)
    start = f"The classes of {tmp_path}/val must be those of {tmp_path}/train, but it "
    advice = " Rename, add or remove classes until they agree."
    assert refusal(tmp_path) == start + "lacks cat, emu and has cats, emus besides." + advice
    class_folders(tmp_path / "val", cat=1, emu=1)
    assert refusal(tmp_path) == start + "has cats, emus besides." + advice


def test_a_class_of_one_image_cannot_be_split(tmp_path, class_folders, refusal):
    class_folders(tmp_path, cat=5, dog=1)
    assert "one to train on and one to validate; these have one: dog. Add images" in refusal(tmp_path)


@pytest.mark.parametrize("val_fraction", [0, 1, -0.2])
def test_a_fraction_is_between_0_and_1(refusal, val_fraction):
    message = f"Expected a validation fraction between 0 and 1, got {val_fraction}."
    assert refusal("digits", val_fraction=val_fraction) == message


# Evaluation


def test_evaluation_takes_val_where_there_is_one(tmp_path, class_folders):
    class_folders(tmp_path / "val", cat=2, dog=1)
    (tmp_path / "train").mkdir()  # empty: it is not looked at
    evaluation = open_evaluation(str(tmp_path))
    assert (len(evaluation.images), evaluation.class_names) == (3, ("cat", "dog"))
    assert evaluation.part == f"{tmp_path}/val"


def test_evaluation_takes_class_folders_whole_or_as_training_split_them(tmp_path, class_folders, draw):
    class_folders(tmp_path, cat=10, dog=10)
    source = open_source(str(tmp_path), val_fraction=0.3, seed=1)
    whole = open_evaluation(str(tmp_path))
    assert (len(whole.images), whole.part) == (20, f"all of {tmp_path}")
    val = open_evaluation(str(tmp_path), trained_split=source.split)
    assert val.images.names == source.val.names
    assert val.part == f"validation part of {tmp_path}, as split for training"
    draw(tmp_path / "cat" / "new.png")
    changed = open_evaluation(str(tmp_path), trained_split=source.split)
    assert (len(changed.images), changed.part) == (
        21,
        f"all of {tmp_path}, which holds other images than training split",
    )


def test_evaluation_on_digits_is_on_what_training_left_out():
    default, other = open_source("digits"), open_source("digits", seed=1)
    assert open_evaluation("digits").images.names == default.val.names
    assert open_evaluation("digits", trained_split=other.split).images.names == other.val.names
    foreign = {**other.split, "fingerprint": "another data set's"}
    assert open_evaluation("digits", trained_split=foreign).images.names == default.val.names
