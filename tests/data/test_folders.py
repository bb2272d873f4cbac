"""Class folders: which files are images of which class, and what a user reads when there are none."""

import os

import pytest

from t2t_vit.data.sources import open_source


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
    (tmp_path / "images").rename(tmp_path / "Train")
    class_folders(tmp_path / "Test", cat=2, dog=2)
    assert refusal(tmp_path) == expected + "Test, Train look like parts of the data: call them train and val."


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
        "Add images (.jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp) or remove the folders."
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
