"""The command `data`: what it prints, and the list and the page that it writes."""

import csv
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from t2t_vit.cli import main
from t2t_vit.data.check import inspect_data
from t2t_vit.data.config import DataConfig
from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError
from t2t_vit.pictures import inspection
from t2t_vit.pictures.inspection import data_command
from t2t_vit.pictures.sheet import GAP_PX, LINE_PX


@pytest.fixture
def faulty(tmp_path, picture_folder):
    """The folder of pictures with a copy across its parts, a blank image and two files that are no images."""
    folder = tmp_path / "fau lty"
    for file in picture_folder.rglob("*.png"):
        copy = folder / file.relative_to(picture_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (folder / "train/upright/again.png").write_bytes((folder / "val/upright/0.png").read_bytes())
    Image.new("RGB", (32, 32), "red").save(folder / "train/lying/blank <b>.png")
    (folder / "train/lying/broken.png").write_text("no image")
    (folder / "val/lying/empty.png").write_bytes(b"")
    return folder


def run(folder, tmp_path, **settings):
    return data_command(DataConfig(data=str(folder), output=str(tmp_path / "out"), **settings))


def rows_of(path):
    with path.open(newline="") as file:
        return [(row["image"], row["reason"]) for row in csv.DictReader(file)]


EXPECTED = [
    ("train/upright/again.png", "exact duplicate"),
    ("train/lying/broken.png", "unreadable"),
    ("val/lying/empty.png", "unreadable"),
    ("train/lying/blank <b>.png", "blank"),
]


def test_the_command_lists_suspects(faulty, tmp_path, capsys):
    assert run(faulty, tmp_path) == 0
    out, path = capsys.readouterr().out, tmp_path / "out" / "suspects.csv"
    lines = out.splitlines()
    assert lines[0].startswith(f"{faulty}: 2 classes, 27 images to train on, 9 to validate")
    assert lines[-2:] == [f"list: {path}", f"page: {path.with_suffix('.html')}"]
    assert "\nsuspects: exact duplicate 1, unreadable 2, blank 1, among 34 images\n" in out
    assert rows_of(path) == EXPECTED
    page = path.with_suffix(".html").read_text()
    assert f"t2t-vit train &#39;{faulty}&#39; --exclude {path}" in page
    assert page.count("<img") == 3  # the copy with its original, and the blank one
    assert "blank &lt;b&gt;.png" in page
    assert "<b>.png" not in page


def test_what_the_list_names_is_left_out_of_training(faulty, tmp_path):
    run(faulty, tmp_path)
    source = open_source(str(faulty), exclude=str(tmp_path / "out" / "suspects.csv"))
    assert not {*source.train.names, *source.val.names} & {name for name, _ in EXPECTED}
    report = inspect_data(source)
    assert report.suspects.found == ()


def test_clean_data_leave_nothing(tmp_path, capsys):
    assert run("digits", tmp_path) == 0
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == f"{inspect_data(open_source('digits'))}\n"


def test_an_edited_list_stays(faulty, tmp_path, capsys):
    run(faulty, tmp_path)
    path = tmp_path / "out" / "suspects.csv"
    Image.new("RGB", (32, 32), "blue").save(faulty / "train/lying/blue.png")
    run(faulty, tmp_path)  # nobody has edited it
    assert ("train/lying/blue.png", "blank") in rows_of(path)
    edited = "".join(path.read_text().splitlines(keepends=True)[:3])
    path.write_text(edited)
    run(faulty, tmp_path)
    assert path.read_text() == edited
    assert ("train/lying/blue.png", "blank") in rows_of(tmp_path / "out" / "suspects-2.csv")
    assert f"list: {tmp_path}/out/suspects-2.csv" in capsys.readouterr().out
    run(faulty, tmp_path)
    assert not (tmp_path / "out" / "suspects-3.csv").exists()
    (tmp_path / "out" / "suspects-2.html").unlink()  # so that nobody knows whether the second was edited
    (faulty / "train/lying/blue.png").unlink()
    run(faulty, tmp_path)
    assert ("train/lying/blue.png", "blank") in rows_of(tmp_path / "out" / "suspects-2.csv")
    assert (tmp_path / "out" / "suspects-3.csv").exists()


def test_names_that_are_no_text_go_the_whole_way(tmp_path, monkeypatch):
    for name in ("caf\udce9", "写真 1"):
        (tmp_path / "odd" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), "red").save(tmp_path / "odd" / name / f"{i}\udcff.png")
        for i in range(8):
            pixels = np.random.default_rng((i, ord(name[0]))).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "odd" / name / f"{len(name)} {i}.png")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    assert main(["data", str(tmp_path / "odd"), "--output", str(tmp_path / "out")]) == 0
    assert os.fsencode("caf\udce9/0\udcff.png") in printed.getvalue()
    source = open_source(str(tmp_path / "odd"), exclude=str(tmp_path / "out" / "suspects.csv"))
    assert len(source.train) + len(source.val) == 16


def test_a_folder_that_cannot_be_written_is_told(faulty, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"^.*/out could not be written: File exists\. What was there before stands\.$"):
        run(faulty, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_verify_lists_every_unreadable_file(faulty, tmp_path, capsys, workers):
    assert run(faulty, tmp_path, verify=True, workers=workers) == 2
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()[-3:-1]] == [
        "train/lying/broken.png is not a readable image",
        "val/lying/empty.png is not a readable image",
    ]
    assert out.endswith("\n2 of 36 images cannot be read.\n")
    assert err == ""


def test_counts_are_printed_before_anything_is_decoded(monkeypatch, capsys):
    monkeypatch.setattr(inspection, "inspect_data", lambda *_, **__: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        data_command(DataConfig(data="digits"))
    assert capsys.readouterr().out.startswith(
        "digits: 10 classes, 1,437 images to train on, 360 to validate\nclasses: "
    )


def test_verify_of_good_files(capsys, tmp_path, picture_folder):
    assert run(picture_folder, tmp_path, verify=True, workers=0) == 0
    assert capsys.readouterr().out.endswith("\n0 of 32 images cannot be read.\n")


def test_json(faulty, tmp_path, capsys):
    assert run(faulty, tmp_path, json=True, verify=True, workers=0) == 2
    content = json.loads(capsys.readouterr().out)
    assert content["classes"] == {"lying": {"train": 14, "val": 5}, "upright": {"train": 13, "val": 4}}
    assert (content["looked_at"], content["mean_height_px"], len(content["warnings"])) == (36, 32, 2)
    assert [sentence.partition(" is ")[0] for sentence in content["unreadable"]] == [
        "train/lying/broken.png",
        "val/lying/empty.png",
    ]
    assert [(suspect["image"], suspect["reason"]) for suspect in content["suspects"]] == EXPECTED
    assert content["list"] == str(tmp_path / "out" / "suspects.csv")


def test_a_list_that_is_in_use_stays_and_the_next_one_has_its_images_too(faulty, tmp_path):
    run(faulty, tmp_path)
    path = tmp_path / "out" / "suspects.csv"
    before = path.read_text()
    Image.new("RGB", (32, 32), "blue").save(faulty / "train/lying/blue.png")
    run(faulty, tmp_path, exclude=str(path))
    assert path.read_text() == before
    left_out = [(name, "left out before") for name, _ in sorted(EXPECTED)]
    assert rows_of(tmp_path / "out" / "suspects-2.csv") == [("train/lying/blue.png", "blank"), *left_out]


def test_a_list_of_other_data_stays(faulty, tmp_path):
    run(faulty, tmp_path)
    before = (tmp_path / "out" / "suspects.csv").read_text()
    other = tmp_path / "other"
    faulty.rename(other)
    (other / "train/lying/broken.png").unlink()
    run(other, tmp_path)
    assert (tmp_path / "out" / "suspects.csv").read_text() == before
    assert (tmp_path / "out" / "suspects-2.csv").exists()


def test_the_command_of_the_page_opens_the_same_data(faulty, tmp_path):
    run(faulty, tmp_path, group_by="[0-9]+", background="black")
    page = (tmp_path / "out" / "suspects.html").read_text()
    assert "--group-by &#39;[0-9]+&#39; --background black --exclude" in page


def test_json_of_names_that_are_no_text_is_ascii(tmp_path, picture_folder, capsys):
    for name in ("a", "b"):
        (tmp_path / "odd" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), "red").save(tmp_path / "odd" / name / f"{i}\udcff.png")
    run(tmp_path / "odd", tmp_path, json=True)
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)["suspects"][0]["class"] == "a"


def test_show_draws_a_row_of_each_class_and_skips_what_cannot_be_read(faulty, tmp_path, capsys):
    path = tmp_path / "sheets" / "sheet.png"
    path.parent.mkdir()
    assert run(faulty, tmp_path, show=str(path)) == 0
    assert capsys.readouterr().out == f"2 classes of {faulty}: {path}\n"
    source = open_source(str(faulty))
    with Image.open(path) as sheet:
        drawn = np.asarray(sheet.convert("RGB"))
    size = inspection.SHEET_PX
    for label in range(2):  # the first image of a class stands at the left, the classes below one another
        picture = ImageOps.pad(source.train.load(source.train.labels.index(label)), (size, size), color="white")
        top = GAP_PX + label * (size + LINE_PX + GAP_PX)
        assert (drawn[top : top + size, GAP_PX : GAP_PX + size] == np.asarray(picture)).all()
    assert not (tmp_path / "out").exists()  # no list of suspects
