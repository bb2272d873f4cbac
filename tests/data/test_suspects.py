"""Planted faults are found, and clean images raise next to no alarm."""

from collections import Counter
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from t2t_vit.data.check import inspect_data, look_at
from t2t_vit.data.duplicates import near_images
from t2t_vit.data.images import ImageSet
from t2t_vit.data.labels import describe
from t2t_vit.data.looks import Looks
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.sources import open_source
from t2t_vit.data.suspects import find_suspects


def image_set(pictures, labels, prefix=""):
    def load(index, crop=None):
        return crop.resize(cropped(crop, np.asarray(pictures[index])))

    def cropped(crop, pixels):
        box = crop.choose(pixels.shape[1], pixels.shape[0])
        return pixels[box.top : box.bottom, box.left : box.right]

    return ImageSet([f"{prefix}{i}" for i in range(len(pictures))], labels, load)


def suspects_of(class_names="ab", **parts):
    looks = {}
    for part, (pictures, labels) in parts.items():
        looks[part] = Looks(image_set([picture.convert("RGB") for picture in pictures], labels, f"{part}/"))
        looks[part].add(range(len(pictures)))
    return find_suspects(looks, class_names)


def scenes(count, seed=0):
    """Smooth pictures, 48 x 64 pixels, that have nothing in common."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (count, 5, 6, 3), np.uint8)
    return [Image.fromarray(one).resize((64, 48), Image.Resampling.BICUBIC) for one in noise]


def reencoded(image, **how):
    file = BytesIO()
    image.save(file, **how)
    return Image.open(file)


def test_copies_across_the_split_are_dropped_from_training():
    train, val = scenes(60), scenes(20, seed=1)
    again = [
        reencoded(val[0], format="png"),
        reencoded(val[1], format="jpeg", quality=60),
        val[2].resize((48, 36)),
        val[3].point(lambda value: min(255, round(1.1 * value))),
    ]
    found = suspects_of(train=([*train, *again], [0] * 64), val=(val, [0] * 20)).found
    assert [(one.image, one.reason, one.like, one.detail) for one in found] == [
        ("train/60", "exact duplicate", "val/0", "is in val too"),
        ("train/61", "near duplicate", "val/1", "is in val too"),
        ("train/62", "near duplicate", "val/2", "is in val too"),
        ("train/63", "near duplicate", "val/3", "is in val too"),
    ]


def test_of_copies_in_a_part_the_first_is_kept_and_of_conflicting_ones_none():
    pictures = scenes(40)
    pictures += [pictures[3], pictures[3], pictures[7], pictures[9].resize((60, 45))]
    labels = [0] * 20 + [1] * 20 + [0, 0, 1, 1]
    found = suspects_of(train=(pictures, labels)).found
    assert [(one.image, one.reason, one.like) for one in found] == [
        ("train/7", "duplicate with another label", "train/42"),
        ("train/42", "duplicate with another label", "train/7"),
        ("train/9", "duplicate with another label", "train/43"),
        ("train/43", "duplicate with another label", "train/9"),
        ("train/40", "exact duplicate", "train/3"),
        ("train/41", "exact duplicate", "train/3"),
    ]
    assert found[0].detail == "the same picture is in a, b"
    assert found[2].detail == "nearly the same picture is in a, b"


def test_strange_shapes_are_found():
    pictures = scenes(30)
    pictures[4] = pictures[4].resize((5, 4))
    pictures[5] = Image.fromarray(np.asarray(pictures[5].resize((400, 20))))
    pictures[6] = reencoded(Image.new("RGB", (64, 48), (90, 80, 70)), format="jpeg")
    pictures[7] = pictures[7].resize((48, 64))  # upright is as good as lying
    found = suspects_of(train=(pictures, [0] * 30)).found
    assert [(one.image, one.reason, one.detail) for one in found] == [
        ("train/6", "blank", "one colour all over"),
        ("train/4", "tiny", "4 x 5 pixels, where the shorter side usually has 48"),
        ("train/5", "odd shape", "20 x 400 pixels"),
    ]


def test_walls_and_skies_are_no_copies_of_one_another():
    rng = np.random.default_rng(0)
    skies = [Image.fromarray(rng.integers(195, 211, (48, 64, 3)).astype(np.uint8)) for _ in range(30)]
    assert suspects_of(train=(scenes(40) + skies, [0] * 70)).count() == {}


@pytest.mark.parametrize("count", [1, 2, 11, 12])
def test_a_few_images_are_too_few_to_compare(count):
    copies = np.random.default_rng(0).integers(0, 256, (count, 768)).astype(np.uint8)
    assert near_images(copies) == []


def test_wrong_labels_of_digits_are_found():
    digits = open_source("digits")
    rows = np.random.default_rng(0).permutation(len(digits.train))[:40]
    labels = np.array(digits.train.labels)
    labels[rows] = (labels[rows] + 3) % 10
    report = inspect_data(replace(digits, train=replace(digits.train, labels=labels.tolist())))
    assert report.suspects.labels_told
    named = {suspect.image for suspect in report.suspects.found}
    right = named & {digits.train.names[row] for row in rows}
    assert len(right) >= 25
    assert len(named) - len(right) <= 3
    true = digits.train.labels[digits.train.names.index(report.suspects.found[0].image)]
    assert report.suspects.found[0].detail.startswith(f"looks like {true}, ")


def test_labels_that_nothing_can_tell_are_not_judged():
    labels = np.random.default_rng(0).integers(0, 2, 80).tolist()
    suspects = suspects_of(train=(scenes(80), labels))
    assert not suspects.labels_told
    assert (
        str(suspects) == "none, among 80 images; labels not judged: too few images, or too hard for a simple classifier"
    )
    assert not suspects_of(train=(scenes(8), [0, 1] * 4)).labels_told
    assert not suspects_of(train=(scenes(40), [0] * 40)).labels_told


def test_arrays_of_any_unit_are_looked_through(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(30):
            field = rng.normal(size=(6, 6, 4))
            np.save(tmp_path / name / f"{i}.npy", 1e-4 * np.kron(field, np.ones((4, 4, 1))).astype(np.float32))
    np.save(tmp_path / "dog/copy.npy", np.load(tmp_path / "dog/3.npy"))
    np.save(tmp_path / "dog/near.npy", 1.02 * np.load(tmp_path / "dog/4.npy"))
    np.save(tmp_path / "dog/flat.npy", np.full((24, 24, 4), 0.5, np.float32))
    report = inspect_data(open_source(str(tmp_path), format=PixelFormat(4)))
    assert report.suspects.count() == {"exact duplicate": 1, "near duplicate": 1, "blank": 1}


def test_large_sets_are_compared_in_part(monkeypatch):
    monkeypatch.setattr("t2t_vit.data.suspects.MAX_COMPARED", 50)
    pictures = scenes(60)
    suspects = suspects_of(train=([*pictures, pictures[8]], [0] * 61))
    assert suspects.num_compared == 50
    assert suspects.count() == {"exact duplicate": 1}  # these are found among all


def test_many_classes_are_judged_in_part(monkeypatch):
    monkeypatch.setattr("t2t_vit.data.suspects.MAX_CLASSES", 4)
    digits, judged = open_source("digits"), []
    monkeypatch.setattr(
        "t2t_vit.data.suspects.doubtful_labels", lambda copies, labels: judged.extend(labels.tolist()) or []
    )
    suspects = find_suspects(look_at(digits, limit_s=60), digits.class_names)
    assert suspects.labels_told
    assert set(judged) == {0, 3, 6, 9}


def test_features_do_not_depend_on_their_company():
    copies = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3)).astype(np.uint8)
    features = describe(copies)
    assert features.shape == (7, 4 * 4 * 8 + 8 * 8 * 3 + 3 + 3 + 1)
    np.testing.assert_allclose(features[3], describe(copies[3:4])[0], rtol=1e-6)
    # The edge of a dark left half is a step to the right: direction 0.
    step = np.zeros((1, 32, 32, 1), np.uint8)
    step[:, :, 16:] = 255
    edges = describe(step)[0, : 4 * 4 * 8].reshape(16, 8).sum(axis=0)
    assert edges.argmax() == 0
    assert edges[1:] == pytest.approx(0)


def test_the_reasons_of_a_list_are_counted():
    suspects = suspects_of(train=([*scenes(20), scenes(20)[0]], [0] * 21))
    assert [one.image for one in suspects.found] == ["train/20"]
    assert Counter(one.reason for one in suspects.found) == suspects.count()


@pytest.mark.parametrize("count", [3, 10, 12, 20])
def test_many_copies_of_an_image_are_found(count):
    rng = np.random.default_rng(1)
    first = np.asarray(scenes(1, seed=9)[0], float)
    noisy = [np.clip(first + rng.normal(0, 4, first.shape), 0, 255) for _ in range(count)]
    copies = [Image.fromarray(pixels.astype(np.uint8)) for pixels in noisy]
    suspects = suspects_of(train=(scenes(400) + copies, [0] * (400 + count)))
    assert suspects.count() == {"near duplicate": count - 1}


def test_of_copies_with_few_other_labels_these_are_the_conflict():
    pictures = scenes(40)
    pictures += [pictures[3]] * 4
    found = suspects_of(train=(pictures, [0] * 42 + [1, 0])).found
    assert [(one.image, one.reason, one.like) for one in found] == [
        ("train/42", "duplicate with another label", "train/3"),
        ("train/40", "exact duplicate", "train/3"),
        ("train/41", "exact duplicate", "train/3"),
        ("train/43", "exact duplicate", "train/3"),
    ]
