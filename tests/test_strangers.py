"""What a stranger gives a command: numbers that cannot be, odd folders and names, and places that cannot be written."""

import io
import os
import pkgutil
import shutil
import sys

import pytest
import torch

from t2t_vit.cli import COMMANDS, main
from t2t_vit.errors import UserError
from t2t_vit.options import build, options_of

REQUIRED = {
    "checkpoint": "x.pt", "images": ("a.png",), "data": "digits", "run": "runs/x", "train_tar": "a", "val_tar": "b",
    "devkit": "c", "output": "d", "format": "onnx",
}  # fmt: skip


def numbers():
    """Each flag of each command that takes a number."""
    for name, command in COMMANDS.items():
        cls = pkgutil.resolve_name(command.config)
        for option in options_of(cls).values():
            if option.kind in (int, float):
                yield pytest.param(cls, option, id=f"{name} {option.flag}")


@pytest.mark.parametrize(("cls", "option"), [*numbers()])
def test_numbers_below_zero_are_refused_by_every_command(cls, option):
    given = {name: REQUIRED[name] for name, one in options_of(cls).items() if one.required}
    given[option.name] = ["-1", "-1"] if option.counts == (2,) else "-1"
    with pytest.raises(UserError, match=rf"{option.flag} (must be|has no effect)"):
        build(cls, given, sources={name: options_of(cls)[name].flag for name in given})


@pytest.fixture
def odd_folder(tmp_path, picture_folder):
    """Class folders with spaces, letters of other alphabets and bytes that are no text; one of them is a link."""
    folder = tmp_path / "my photos"
    names = {"upright": "hoch kant", "lying": "横向き"}
    for name, odd in names.items():
        (folder / "train").mkdir(parents=True, exist_ok=True)
        (folder / "val").mkdir(exist_ok=True)
        shutil.copytree(picture_folder / "val" / name, folder / "val" / odd)
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        shutil.copytree(picture_folder / "train" / name, tmp_path / "elsewhere" / odd)
        (folder / "train" / odd).symlink_to(tmp_path / "elsewhere" / odd)
    (folder / "train/横向き/0.png").rename(os.fsdecode(os.fsencode(str(folder / "train/横向き")) + b"/\xff 0.png"))
    (folder / "train/hoch kant/link.png").symlink_to(tmp_path / "elsewhere/hoch kant/1.png")
    (folder / "train/hoch kant/gone.png").symlink_to(tmp_path / "nowhere.png")
    return folder


TINY = [
    "--model", "t2t_vit_7_32px", "--img-size", "32", "--steps", "2", "--batch-size", "12", "--device", "cpu",
    "--no-amp", "--workers", "0",
]  # fmt: skip


def test_odd_names_and_links_go_all_the_way(odd_folder, tmp_path, capsys, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    run = tmp_path / "ein lauf"
    assert main(["train", str(odd_folder), *TINY, "--output", str(run)]) == 0
    assert b"could not be read and were left out: 1" in printed.getvalue()  # the link that leads nowhere
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "横向き" in page
    assert torch.load(run / "best.pt", weights_only=True)["class_names"] == ["hoch kant", "横向き"]
    assert main(["eval", str(odd_folder), "--checkpoint", str(run), "--workers", "0"]) == 0
    assert main(["predict", str(odd_folder / "train"), "--checkpoint", str(run), "--csv", str(run / "a.csv")]) == 2
    assert "1 of 26 images could not be read" in capsys.readouterr().err
    assert "横向き" in (run / "a.csv").read_text(encoding="utf-8", errors="surrogateescape")
    assert main(["data", str(odd_folder), "--output", str(run)]) == 0
    assert "gone.png" in (run / "suspects.csv").read_text(encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("command", [["train"], ["data"]])
def test_a_folder_with_one_class_is_told(tmp_path, picture_folder, command, capsys):
    shutil.copytree(picture_folder / "train/lying", tmp_path / "photos/lying")
    assert main([*command, str(tmp_path / "photos")]) == 2
    assert "it has only 'lying'. Are the classes inside that?" in capsys.readouterr().err


def test_a_folder_with_one_image_a_class_is_told(tmp_path, picture_folder, capsys):
    for name in ("lying", "upright"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(picture_folder / "train" / name / "0.png", tmp_path / "photos" / name)
    assert main(["train", str(tmp_path / "photos")]) == 2
    assert "these have one: lying, upright. Add images, or remove the folders." in capsys.readouterr().err


def test_a_checkpoint_with_other_classes_is_told(tmp_path, picture_folder, write_small_checkpoint, capsys):
    path = write_small_checkpoint(tmp_path / "small.pt", num_classes=3, class_names=["a", "b", "c"])
    assert main(["eval", str(picture_folder), "--checkpoint", str(path), "--workers", "0"]) == 2
    assert "tells 3 classes apart" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train", *TINY], ["data"]])
def test_an_output_that_cannot_be_written_is_told(tmp_path, odd_folder, command, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([command[0], str(odd_folder), *command[1:], "--output", str(tmp_path / "file/run")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error
    assert "cannot be written" in error or "could not be written" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_is_told(tmp_path, picture_folder, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(["train", str(picture_folder), *TINY, "--output", str(tmp_path / "locked/run")]) == 2
    assert "cannot be written: Permission denied. Choose another --output." in capsys.readouterr().err


def test_links_that_lead_in_circles_end(tmp_path, picture_folder, write_small_checkpoint, capsys):
    folder = tmp_path / "round"
    shutil.copytree(picture_folder / "val/lying", folder / "lying")
    (folder / "lying/up").symlink_to(folder)
    (folder / "again").symlink_to(folder)
    path = write_small_checkpoint(tmp_path / "small.pt", num_classes=2)
    assert main(["predict", str(folder), "--checkpoint", str(path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
