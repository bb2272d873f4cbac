"""The first look of training, the report, and the command that prints it."""

import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from t2t_vit.data import check
from t2t_vit.data.check import data_command, first_look, inspect_data
from t2t_vit.data.config import DataConfig
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
        "images: 1,663 sampled, 0 unreadable, 8 x 8 pixels on average",
        "largest: digits/0000, 8 x 8 pixels",
    ]
    assert "guessing finds 10 %" in str(report).splitlines()[4]
    assert inspect_data(digits) == report


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
    # 200 of the 400 images of each part, four of each class, and the other four of 20 classes.
    assert report.num_sampled == pytest.approx(2 * (200 + 20 * 4), abs=10)
    assert report.mean_size == pytest.approx((4 + 56 / report.num_sampled, 4 + 96 / report.num_sampled))
    assert report.agreement.chance_percent == pytest.approx(100 / 20, abs=1)


def test_time_runs_out_before_every_image_is_read(digits, monkeypatch):
    clock_s = itertools.count()
    monkeypatch.setattr(check, "time", SimpleNamespace(monotonic=lambda: next(clock_s)))  # a second a look
    report = inspect_data(digits, limit_s=800)
    assert 300 < report.num_sampled < 800
    assert report.agreement is not None  # so few are a fair sample too


def test_unreadable_images_are_warned_of(broken, refusal):
    report = inspect_data(open_source(str(broken)))
    assert (report.num_sampled, report.mean_size) == (24, (4, 4))
    [warning] = report.warnings
    assert warning.startswith(f"2 of 24 sampled images of {broken} cannot be read: train/cat/1.png")
    assert warning.endswith(f". `t2t-vit data {broken} --verify` finds them all.")
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
    assert "warning: 1 of 13 sampled images have one colour all over: val/dog/1.png." in lines
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
    monkeypatch.setattr(check, "LARGE_PIXELS", 15)
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
    monkeypatch.setattr(check, "LARGE_PIXELS", 16)
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
    assert f"sampled images of {broken} cannot be read: train/cat/0.png" in lines[4]
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


# The command


@pytest.mark.slow
def test_the_command_prints_the_report(capsys):
    assert data_command(DataConfig(data="digits")) == 0
    assert capsys.readouterr().out == f"{inspect_data(open_source('digits'))}\n"


@pytest.mark.parametrize("workers", [0, 2])
def test_verify_lists_every_unreadable_file(broken, capsys, workers):
    assert data_command(DataConfig(data=str(broken), verify=True, workers=workers)) == 2
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()[-3:-1]] == [
        "train/cat/1.png is not a readable image",
        "val/dog/2.png is not a readable image",
    ]
    assert out.endswith("\n2 of 24 images cannot be read.\n")
    assert err == ""


def test_counts_are_printed_before_anything_is_decoded(monkeypatch, capsys):
    monkeypatch.setattr(check, "inspect_data", lambda *_, **__: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        data_command(DataConfig(data="digits"))
    assert capsys.readouterr().out.startswith(
        "digits: 10 classes, 1,437 images to train on, 360 to validate\nclasses: "
    )


def test_verify_of_good_files(capsys, tmp_path, class_folders):
    data = str(class_folders(tmp_path, cat=3, dog=3))
    assert data_command(DataConfig(data=data, verify=True, workers=0)) == 0
    assert capsys.readouterr().out.endswith("\n0 of 6 images cannot be read.\n")


def test_json(broken, capsys):
    assert data_command(DataConfig(data=str(broken), json=True, verify=True, workers=0)) == 2
    content = json.loads(capsys.readouterr().out)
    assert content["classes"] == {"cat": {"train": 9, "val": 9}, "dog": {"train": 3, "val": 3}}
    assert (content["sampled"], content["mean_height_px"], len(content["warnings"])) == (24, 4, 1)
    assert [sentence.split()[0] for sentence in content["unreadable"]] == ["train/cat/1.png", "val/dog/2.png"]
    data_command(DataConfig(data="digits", json=True))
    content = json.loads(capsys.readouterr().out)
    assert content["labels"]["verdict"] == "agree"
    assert "unreadable" not in content


def test_workers_without_verify_are_refused(refusal):
    assert refusal("digits", lambda data: data_command(DataConfig(data=data, workers=2))) == (
        "--workers decodes for --verify, and has no effect without it: leave it out."
    )
