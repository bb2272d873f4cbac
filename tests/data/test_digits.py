"""scikit-learn's digits: the same images, split in the same way for good."""

from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from t2t_vit.data.sources import open_evaluation, open_source


def test_digits_are_scikit_learns():
    source, digits = open_source("digits"), load_digits()
    assert (len(source.train), len(source.val)) == (1437, 360)
    assert source.class_names == tuple("0123456789")
    for images in (source.train, source.val):
        for index in range(0, len(images), 100):
            row = int(images.names[index].removeprefix("digits/"))
            pixels = np.asarray(images.load(index))  # (8, 8, 3)
            assert np.abs(pixels / 255 * 16 - digits.images[row][..., None]).max() <= 0.5
            assert images.labels[index] == digits.target[row]


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


def test_evaluation_on_digits_is_on_what_training_left_out():
    default, other = open_source("digits"), open_source("digits", seed=1)
    assert open_evaluation("digits").images.names == default.val.names
    assert open_evaluation("digits", trained_split=other.split).images.names == other.val.names
    foreign = {**other.split, "fingerprint": "another data set's"}
    assert open_evaluation("digits", trained_split=foreign).images.names == default.val.names
