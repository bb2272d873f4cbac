"""Class folders: which files are images of which class, and what a user reads when there are none."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from t2t_vit.data.sources import open_evaluation, open_source


def test_images_below_class_folders_and_hidden_files(tmp_path, draw):
    for part in ("train", "val"):
        for name in ("cat/a/deep.JPG", "cat/b.webp", "dog/c.png", "cat/._b.png", "cat/.cache/d.png", ".git/e.png"):
            draw(tmp_path / part / name)
        (tmp_path / part / "cat" / "labels.txt").touch()
    assert open_source(str(tmp_path)).train.names == ["train/cat/a/deep.JPG", "train/cat/b.webp", "train/dog/c.png"]


def test_a_file_is_no_folder(tmp_path, refusal):
    (tmp_path / "data.zip").touch()
    assert refusal(tmp_path / "data.zip") == (
        f"Expected a folder or a .tar file, got the file '{tmp_path}/data.zip'. "
        "Give the folder that holds train/ and val/."
    )


def test_neither_parts_nor_classes(tmp_path, draw, class_folders, refusal):
    expected = f"Expected train/ and val/ with class folders, or at least two class folders, in {tmp_path}; "
    assert refusal(tmp_path) == expected + "it is empty."
    draw(tmp_path / "a.png")
    assert refusal(tmp_path) == expected + "it has files but no folder."
    class_folders(tmp_path / "images", cat=2, dog=2)
    assert refusal(tmp_path) == expected + "it has only 'images'. Are the classes inside that?"
    (tmp_path / "images").rename(tmp_path / "train")
    class_folders(tmp_path / "train/train", cat=2)
    for name in ("cat", "dog"):
        shutil.rmtree(tmp_path / "train" / name)
    assert "train; train look like parts of the data: call them train and val." in refusal(tmp_path)


def test_two_validation_parts(tmp_path, class_folders, refusal):
    for part in ("train", "val", "validation"):
        class_folders(tmp_path / part, cat=2, dog=2)
    assert refusal(tmp_path) == f"{tmp_path} has both val/ and validation/. Keep the one to validate on."


def test_class_folders_without_images(tmp_path, class_folders, refusal):
    class_folders(tmp_path / "train", cat=2, dog=0, emu=0)
    class_folders(tmp_path / "val", cat=1, dog=1, emu=1)
    (tmp_path / "train" / "emu" / "labels.txt").touch()
    assert refusal(tmp_path) == (
        f"Every class folder needs an image, and in {tmp_path}/train these have none: "
        "dog (empty), emu (files, but no image). "
        "Add images (.jpg, .png, .webp, .tif, .npy or others) or remove the folders."
    )


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "dev", "test"), ("Training", "Validation", "Testing"), ("train", "valid", "test")],
)
def test_parts_have_many_names(tmp_path, class_folders, train, val, test):
    for name, count in ((train, 4), (val, 3), (test, 2)):
        class_folders(tmp_path / name, cat=count, dog=count)
    source = open_source(str(tmp_path))
    assert (len(source.train), len(source.val), len(source.test), source.notes) == (8, 6, 4, ())
    assert source.test.names[0] == f"{test}/cat/0.png"
    evaluation = open_evaluation(str(tmp_path))
    assert (len(evaluation.images), evaluation.part) == (6, f"{tmp_path}/{val}")


def test_classes_may_be_called_like_parts(tmp_path, class_folders):
    class_folders(tmp_path, dev=4, prod=4, test=4)
    assert open_source(str(tmp_path)).class_names == ("dev", "prod", "test")


def test_validation_is_split_off_train_where_there_is_none(tmp_path, class_folders):
    class_folders(tmp_path / "train", cat=10, dog=10)
    alone = open_source(str(tmp_path))
    assert (len(alone.train), len(alone.val), alone.test) == (16, 4, None)
    assert open_evaluation(str(tmp_path), trained_split=alone.split).images.names == alone.val.names
    class_folders(tmp_path / "test", cat=3, dog=3)
    source = open_source(str(tmp_path))
    assert (source.train.names, source.val.names, len(source.test)) == (alone.train.names, alone.val.names, 6)
    assert open_evaluation(str(tmp_path)).part == f"{tmp_path}/test"


def test_a_test_part_that_says_nothing_of_the_classes_is_left_out(tmp_path, class_folders, draw, refusal):
    class_folders(tmp_path / "train", cat=5, dog=5)
    draw(tmp_path / "test" / "0.png")
    source = open_source(str(tmp_path))
    assert (source.test, source.notes) == (None, (f"{tmp_path}/test has no class folders, and is left out",))
    class_folders(tmp_path / "test", one=1, two=1)
    source = open_source(str(tmp_path))
    assert source.test is None
    assert source.notes == (f"{tmp_path}/test has none of these classes, and is left out",)
    class_folders(tmp_path / "test", cat=1)
    assert "it has one, two besides" in refusal(tmp_path)


def test_a_test_part_may_lack_rare_classes(tmp_path, class_folders):
    class_folders(tmp_path / "train", ant=5, cat=5, dog=5)
    class_folders(tmp_path / "test", ant=1, dog=2)
    assert list(open_source(str(tmp_path)).test.labels) == [0, 2, 2]


def test_files_of_every_kind_are_used_or_named(tmp_path, class_folders):
    class_folders(tmp_path, cat=2, dog=2)
    Image.new("L", (4, 4), 7).save(tmp_path / "cat" / "a.gif")
    Image.new("L", (4, 4), 7).save(tmp_path / "cat" / "b.AVIF")
    np.save(tmp_path / "cat" / "c.npy", np.zeros((4, 4), np.uint8))
    for name in ("cat/a.txt", "dog/b.txt", "dog/c.mp4", "dog/README", "dog/d.eps", "left.png"):
        (tmp_path / name).touch()
    source = open_source(str(tmp_path))
    assert len(source.train) + len(source.val) == 7
    assert source.notes == (
        "6 files of other kinds are ignored: .txt 2, .eps 1, .mp4 1, .png outside class folders 1, without an ending 1",
    )


@pytest.mark.parametrize("closed", ["", "cat"])
def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch, class_folders, refusal, closed):
    class_folders(tmp_path, cat=2, dog=2)
    folder, scandir = str(tmp_path / closed), os.scandir

    def refuse(path):
        if str(path) == folder:
            raise PermissionError(13, "Permission denied", folder)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # file modes would not stop a test that runs as root
    assert refusal(tmp_path) == f"The folder {folder} cannot be read: Permission denied. Check its permissions."
