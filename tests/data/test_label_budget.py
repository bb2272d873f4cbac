"""A label budget: which images are learnt from, chosen by and reported on."""

import itertools
from collections import Counter

import pytest

from t2t_vit.data.label_budget import limit_labels
from t2t_vit.data.sources import open_evaluation, open_source
from t2t_vit.errors import UserError


def names_of(source):
    return {part: set(images.names) for part, images in source.parts.items()}


@pytest.fixture(scope="module")
def digits():
    return open_source("digits", val_fraction=0.5)


@pytest.mark.parametrize("count", [20, 50, 101, 898])
def test_no_image_is_in_two_parts_and_the_reported_ones_are_those_kept_for_validation(digits, count):
    limited = limit_labels(digits, count, seed=0)
    parts = names_of(limited)
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(parts.values(), 2))
    assert parts["test"] == set(digits.val.names)
    assert parts["train"] | parts["val"] <= set(digits.train.names)
    assert len(limited.train) + len(limited.val) == count


def test_a_fifth_of_each_class_is_to_choose_by_and_a_fifth_at_least(digits):
    limited = limit_labels(digits, 50, seed=0)
    assert Counter(limited.train.labels) == dict.fromkeys(range(10), 4)
    assert Counter(limited.val.labels) == dict.fromkeys(range(10), 1)
    fewest = limit_labels(digits, 20, seed=0)
    assert Counter(fewest.train.labels) == Counter(fewest.val.labels) == dict.fromkeys(range(10), 1)
    every = limit_labels(digits, 898, seed=0)
    assert len(every.val) / 898 == pytest.approx(0.2, abs=0.01)


def test_labels_keep_their_image(digits):
    limited = limit_labels(digits, 50, seed=0)
    label_of = dict(zip(digits.train.names, digits.train.labels, strict=True))
    for images in (limited.train, limited.val):
        assert [label_of[name] for name in images.names] == images.labels


def test_a_smaller_budget_is_a_part_of_a_larger_one_and_each_image_stays_on_its_side(digits):
    budgets = [names_of(limit_labels(digits, count, seed=3)) for count in (20, 33, 50, 100, 897, 898)]
    for smaller, larger in itertools.pairwise(budgets):
        assert smaller["train"] <= larger["train"]
        assert smaller["val"] <= larger["val"]


def test_another_seed_draws_other_labels_and_the_same_seed_the_same(digits):
    one, same, other = (limit_labels(digits, 50, seed=seed) for seed in (0, 0, 1))
    assert one.split == same.split
    assert len(names_of(one)["train"] & names_of(other)["train"]) < 10
    assert one.split != other.split


def test_rare_classes_give_what_they_have(tmp_path, class_folders):
    source = open_source(str(class_folders(tmp_path, cat=30, dog=3, emu=30)), val_fraction=0.2)
    assert Counter(source.train.labels)[1] == 2
    limited = limit_labels(source, 20, seed=0)
    assert Counter(limited.train.labels + limited.val.labels) == {0: 9, 1: 2, 2: 9}
    assert set(limited.train.labels) == set(limited.val.labels) == {0, 1, 2}


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (899, "--labels must be at most the 898 training images of digits, got 899. Give fewer."),
        (
            19,
            "--labels must be at least 20 for 10 classes, two for each, one to learn from and one to choose by, "
            "got 19. Give more; digits has 898.",
        ),
    ],
)
def test_budgets_that_the_data_cannot_give_are_refused(digits, count, message):
    with pytest.raises(UserError) as told:
        limit_labels(digits, count, seed=0)
    assert str(told.value) == message


def test_a_class_of_one_training_image_is_refused(tmp_path, class_folders):
    source = open_source(str(class_folders(tmp_path, cat=10, dog=2)))
    with pytest.raises(
        UserError, match=r"^--labels needs two training images of each class, .*; these have one: dog\. "
    ):
        limit_labels(source, 5, seed=0)


def test_evaluation_is_on_the_reported_images(digits, tmp_path, class_folders):
    limited = limit_labels(digits, 50, seed=1)
    assert open_evaluation("digits", trained_split=limited.split).images.names == limited.test.names
    folder = str(class_folders(tmp_path / "whole", cat=20, dog=20))
    limited = limit_labels(open_source(folder), 8, seed=1)
    evaluation = open_evaluation(folder, trained_split=limited.split)
    assert evaluation.images.names == limited.test.names
    assert evaluation.part == f"validation part of {folder}, as split for training"


def test_where_there_is_a_test_part_it_is_reported_on(tmp_path, class_folders):
    for part, count in {"train": 10, "val": 4, "test": 3}.items():
        class_folders(tmp_path / part, cat=count, dog=count)
    source = open_source(str(tmp_path))
    limited = limit_labels(source, 8, seed=1)
    assert limited.test.names == source.test.names
    assert "beside --labels, the 8 validation images are left aside" in limited.notes
    evaluation = open_evaluation(str(tmp_path), trained_split=limited.split)
    assert evaluation.part == f"{tmp_path}/test"
    assert open_evaluation(str(tmp_path), trained_split=source.split).part == f"{tmp_path}/val"


def test_a_new_reported_image_changes_the_record(tmp_path, class_folders, draw):
    for part in ("train", "val", "test"):
        class_folders(tmp_path / part, cat=4, dog=4)
    before = limit_labels(open_source(str(tmp_path)), 8, seed=0).split
    assert limit_labels(open_source(str(tmp_path)), 8, seed=0).split == before
    draw(tmp_path / "test" / "cat" / "new.png")
    assert limit_labels(open_source(str(tmp_path)), 8, seed=0).split != before
