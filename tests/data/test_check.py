"""The first look of training, the report, and the command that prints it."""

import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from t2t_vit.data import check, looks
from t2t_vit.data.check import first_look, inspect_data
from t2t_vit.data.images import ImageSet
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.sources import open_source


def relabelled(images, labels):
    return ImageSet(images.names, [int(label) for label in labels], images.load)


@pytest.fixture(scope="module")
def digits():
    return open_source("digits")


@pytest.fixture
def broken(tmp_path, class_folders):
    """Class folders with two files that are no images."""
    for part in ("train", "val"):
        class_folders(tmp_path / part, cat=9, dog=3)
    (tmp_path / "train" / "cat" / "1.png").write_text("no image")
    (tmp_path / "val" / "dog" / "2.png").write_bytes(b"")
    return tmp_path


def test_digits_are_fit_for_training(digits):
    report = inspect_data(digits)
    assert report.warnings == []
    assert str(report).splitlines()[:4] == [
        "digits: 10 classes, 1,437 images to train on, 360 to validate",
        "classes: the smallest is 8 with 139 training images, the largest 3 with 146, 1.1 times as many",
        "images: all 1,797 looked at, 0 unreadable, 8 x 8 pixels on average",
        "largest: digits/0000, 8 x 8 pixels",
    ]
    assert "guessing finds 10 %" in str(report).splitlines()[4]
    assert str(report).splitlines()[5] == "suspects: none, among 1,797 images"


@pytest.mark.slow
def test_other_splits_of_the_digits_are_fit_too():
    for seed in range(3):
        assert inspect_data(open_source("digits", seed=seed, val_fraction=0.05)).warnings == []


@pytest.mark.slow
def test_shuffled_validation_labels_are_warned_of(digits):
    for seed in range(3):
        labels = np.random.default_rng(seed).permutation(digits.val.labels)
        report = inspect_data(replace(digits, val=relabelled(digits.val, labels)))
        [warning] = report.warnings
        assert warning.startswith("The labels of the validation images look unrelated to those of the training images.")
        assert str(report).endswith(f"\nwarning: {warning}")


def test_permuted_validation_labels_are_told_by_name(digits):
    labels = [{3: 7, 7: 3}.get(label, label) for label in digits.val.labels]
    named = replace(digits, class_names=tuple("abcdefghij"), val=relabelled(digits.val, labels))
    assert inspect_data(named).warnings == [
        "The labels of the validation images look permuted: validation images of d like h, h like d in training."
    ]


def test_classes_without_images_are_named(digits):
    report = inspect_data(replace(digits, class_names=(*"0123456789", "ten", "eleven")))
    assert report.warnings == [
        "Classes without training images, 2 in all: ten, eleven.",
        "Classes without validation images, 2 in all: ten, eleven.",
    ]
    assert "the smallest is ten with 0 training images" in str(report)


def test_twenty_classes_stand_for_more(class_folders, tmp_path):
    for part in ("train", "val"):
        class_folders(tmp_path / part, **{f"c{label:03d}": 8 for label in range(50)})
    Image.new("L", (100, 60)).save(tmp_path / "train" / "c000" / "0.png")
    report = inspect_data(open_source(str(tmp_path)))
    assert "\nclasses: each has 8 training images\n" in str(report)
    assert report.num_tried == 800
    assert report.mean_size == pytest.approx((4 + 56 / 800, 4 + 96 / 800), abs=1e-3)
    assert report.agreement.chance_percent == pytest.approx(100 / 20, abs=1)


def test_time_runs_out_before_every_image_is_read(digits, monkeypatch):
    decoded = []

    def slowly(images):
        def load(index, crop=None):
            decoded.append(index)  # takes a second
            return images.load(index, crop)

        return replace(images, load=load)

    clock = SimpleNamespace(monotonic=lambda: float(len(decoded)))
    monkeypatch.setattr(check, "time", clock)
    monkeypatch.setattr(looks, "time", clock)
    report = inspect_data(replace(digits, train=slowly(digits.train), val=slowly(digits.val)), limit_s=800)
    assert 780 < report.num_tried < 820
    assert report.agreement is not None  # so few are a fair sample too
    assert f"images: {report.num_tried} of 1,797 looked at (--max-time looks at more), " in str(report)


def test_unreadable_images_are_warned_of(broken, refusal):
    report = inspect_data(open_source(str(broken)))
    assert (report.num_tried, report.mean_size) == (24, (4, 4))
    [warning] = report.warnings
    assert warning.startswith(f"2 of 24 images of {broken} cannot be read: train/cat/1.png")
    assert "--verify" not in warning  # they are all that there are
    found = [(one.image, one.part, one.label) for one in report.suspects.found if one.reason == "unreadable"]
    assert found == [("train/cat/1.png", "train", "cat"), ("val/dog/2.png", "val", "dog")]
    for file in broken.rglob("*.png"):
        file.write_bytes(b"")
    source = open_source(str(broken))
    assert refusal(broken, lambda data: inspect_data(source)).startswith(f"None of 24 images of {broken} can be read: ")


@pytest.mark.parametrize(("count", "warned"), [(39, False), (40, True)])
def test_classes_of_very_different_sizes_are_told(count, warned, tmp_path, class_folders):
    class_folders(tmp_path / "train", cat=4, dog=count)
    class_folders(tmp_path / "val", cat=2, dog=2)
    told = "dog has 10 times as many training images as cat" in str(inspect_data(open_source(str(tmp_path))))
    assert told == warned


def test_large_constant_and_ignored_files_are_told(tmp_path, class_folders):
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        class_folders(tmp_path / part, cat=count, dog=count)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 300), dtype=np.uint8)).save(
        tmp_path / "train/cat/2.jpg"
    )
    Image.new("RGB", (50, 60), (1, 2, 3)).save(tmp_path / "val/dog/1.png")
    (tmp_path / "train/cat/notes.txt").touch()
    report = inspect_data(open_source(str(tmp_path)))
    assert report.largest == ("train/cat/2.jpg", 400, 300)  # though no more of it was decoded than needed
    assert report.of_one_colour == ["val/dog/1.png"]
    lines = str(report).splitlines()
    assert lines[0].endswith("2 classes, 9 images to train on, 4 to validate, 6 to test")
    assert "note: 1 files of other kinds are ignored: .txt 1" in lines
    assert "largest: train/cat/2.jpg, 400 x 300 pixels" in lines
    assert "warning: 1 of 19 images have one colour all over: val/dog/1.png." in lines
    assert report.to_json()["largest"] == {"image": "train/cat/2.jpg", "height_px": 400, "width_px": 300}


def test_channels_are_inspected_too(tmp_path):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(60):
            np.save(tmp_path / name / f"{i}.npy", rng.integers(0, 90 + 30 * label, (9, 20, 5)).astype(np.uint8))
    report = inspect_data(open_source(str(tmp_path), format=PixelFormat(5)))
    assert (report.mean_size, report.unreadable, report.agreement.verdict) == ((9, 20), [], "agree")


def test_large_images_are_decoded_one_at_a_time(tmp_path, class_folders, monkeypatch):
    monkeypatch.setattr(looks, "LARGE_PIXELS", 15)
    source = open_source(str(class_folders(tmp_path, cat=8, dog=8)))
    at_once: list[int] = []
    most = []

    def load(index, crop=None):
        at_once.append(index)
        most.append(len(at_once))
        time.sleep(0.002)
        at_once.remove(index)
        return source.train.load(index, crop)

    inspect_data(replace(source, train=replace(source.train, load=load)))
    assert max(most) == 1
    most.clear()
    monkeypatch.setattr(looks, "LARGE_PIXELS", 16)
    inspect_data(replace(source, train=replace(source.train, load=load)))
    assert max(most) > 1


# The first look


def test_the_first_look_is_short(digits):
    assert first_look(digits).splitlines() == [
        "digits: 10 classes, 1,437 images to train on, 360 to validate",
        "classes: the smallest is 8 with 139 training images, the largest 3 with 146, 1.1 times as many",
        "`t2t-vit data digits` checks more",
    ]


def test_the_first_look_decodes_few_images_over_the_whole_of_each_split(digits):
    looked_at = []

    def count(side):
        images = getattr(digits, side)
        load = lambda index, crop=None: looked_at.append((side, index)) or images.load(index, crop)  # noqa: E731
        return ImageSet(images.names, images.labels, load)

    first_look(replace(digits, train=count("train"), val=count("val")))
    for side, last in (("train", 1436), ("val", 359)):
        rows = sorted(row for name, row in looked_at if name == side)
        assert len(rows) == 8
        assert (rows[0], rows[-1]) == (0, last)
        assert max(np.diff(rows)) < last / 6


def test_the_first_look_warns(digits, broken):
    (broken / "train" / "cat" / "0.png").write_bytes(b"")
    source = open_source(str(broken))
    lines = first_look(replace(source, class_names=(*source.class_names, "emu"))).splitlines()
    assert lines[2:4] == [
        "warning: Classes without training images, 1 in all: emu.",
        "warning: Classes without validation images, 1 in all: emu.",
    ]
    assert lines[4].startswith("warning: ")
    assert f"images of {broken} cannot be read: train/cat/0.png" in lines[4]
    assert lines[5] == f"`t2t-vit data {broken}` checks more"


@pytest.mark.parametrize(("split", "word"), [("train", "training"), ("val", "validation")])
def test_the_first_look_refuses_what_can_hardly_be_read(broken, refusal, split, word):
    for file in (broken / split).rglob("*.png"):
        file.write_bytes(b"")
    source = open_source(str(broken))
    message = refusal(broken, lambda data: first_look(source))
    assert message.startswith(f"8 of 8 sampled {word} images of {broken} cannot be read: {split}/cat/0.png, ")
    assert message.endswith(
        f" and 3 more: no image format that Pillow knows. `t2t-vit data {broken} --verify` finds them all."
    )


@pytest.mark.slow
def test_the_first_look_needs_no_classifier():
    program = (
        "import sys; from t2t_vit.data.check import first_look; "
        "print([name for name in ('sklearn', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
