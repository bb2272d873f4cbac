"""Labels that do not mean the same on both sides are found, and others never are."""

import numpy as np
import pytest

from t2t_vit.data.agreement import Answers, check_agreement
from t2t_vit.data.looks import Looks
from t2t_vit.data.sources import open_source


def copies_of(images):
    looks = Looks(images)
    looks.add(range(len(images)))
    return np.array([look.tiny for _, look in sorted(looks.seen.items())]), np.array(images.labels)


@pytest.fixture(scope="module")
def digits():
    """Tiny copies and labels of training and of validation images."""
    source = open_source("digits", val_fraction=0.25)
    return *copies_of(source.train), *copies_of(source.val)


def check(digits, val_labels):
    return check_agreement(*digits[:3], val_labels)


def test_digits_agree(digits):
    found = check(digits, digits[3])
    assert (found.verdict, found.renamed) == ("agree", ())
    assert found.train_percent > 85
    assert found.val_percent > 85
    assert found.chance_percent == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_labels_are_unrelated(digits, seed):
    found = check(digits, np.random.default_rng(seed).permutation(digits[3]))
    assert found.verdict == "unrelated"
    assert found.val_percent < 20


@pytest.mark.parametrize("seed", range(4))
def test_a_permutation_is_found(digits, seed):
    permutation = np.random.default_rng(seed).permutation(10)
    found = check(digits, permutation[digits[3]])
    assert found.verdict == "permuted"
    # Label permutation[k] of validation means k.
    assert set(found.renamed) == {(int(new), old) for old, new in enumerate(permutation) if old != new}


def test_two_exchanged_classes_are_found(digits):
    exchange = np.array([0, 1, 2, 7, 4, 5, 6, 3, 8, 9])
    assert check(digits, exchange[digits[3]]).renamed == ((3, 7), (7, 3))


@pytest.mark.parametrize("seed", range(4))
def test_few_images_of_digits_agree(digits, seed):
    rng = np.random.default_rng(seed)
    train = np.sort(rng.choice(len(digits[1]), 100, replace=False))
    val = np.sort(rng.choice(len(digits[3]), 20, replace=False))
    assert check_agreement(digits[0][train], digits[1][train], digits[2][val], digits[3][val]).verdict == "agree"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_classes", [2, 20])
def test_nothing_is_said_where_nothing_can_be_learnt(seed, num_classes):
    rng = np.random.default_rng(seed)
    labels = np.arange(400) % num_classes
    train, val = rng.integers(0, 256, (2, 400, 768), dtype=np.uint8)
    found = check_agreement(train, labels, val, labels)
    assert found.verdict == "unclear"
    assert found.train_percent < 100 / num_classes + 15


def _near_classes(num_classes, *, num_val, distance, seed):
    """Labels and copies of a training and a validation set whose classes differ by little."""
    rng = np.random.default_rng(seed)
    centres = distance * rng.standard_normal((num_classes, 768))
    for num_images in (400, num_val):
        labels = np.arange(num_images) % num_classes
        noise = 30 * rng.standard_normal((num_images, 768))
        yield np.clip(128 + centres[labels] + noise, 0, 255).astype(np.uint8), labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("num_classes", "num_val", "distance"), [(5, 500, 1.5), (3, 12, 1.5), (10, 60, 2)])
def test_classes_that_hardly_differ_agree(num_classes, num_val, distance, seed):
    (train, labels), (val, val_labels) = _near_classes(num_classes, num_val=num_val, distance=distance, seed=seed)
    found = check_agreement(train, labels, val, val_labels)
    assert found.verdict == "agree"
    assert found.train_percent < found.chance_percent + 25


@pytest.mark.parametrize("seed", range(8))
def test_chance_is_no_permutation(seed):
    # Among 20! permutations there is always one that explains chance well, so that it must prove itself on others.
    (train, labels), (val, val_labels) = _near_classes(20, num_val=200, distance=3.5, seed=seed)
    shuffled = np.random.default_rng(seed).permutation(val_labels)
    assert check_agreement(train, labels, val, shuffled).verdict == "unrelated"


def test_standard_errors_are_those_of_answers_dealt_at_random():
    rng = np.random.default_rng(0)
    labels, answers = rng.choice(3, 60, p=(0.6, 0.3, 0.1)), rng.choice(3, 60, p=(0.2, 0.3, 0.5))
    dealt = [(labels == rng.permutation(answers)).mean() for _ in range(4000)]
    found = Answers(labels, answers)
    assert found.chance == pytest.approx(np.mean(dealt), rel=0.02)
    assert found.share - found.chance == pytest.approx(found.errors_above_chance * np.std(dealt), rel=0.05)


def test_too_few_images(digits):
    train, labels, val, val_labels = digits
    assert check_agreement(train, labels, val[:9], val_labels[:9]) is None
    assert check_agreement(train[:3], labels[:3], val, val_labels) is None
    one_class = labels == 3
    assert check_agreement(train[one_class], labels[one_class], val, val_labels) is None
