"""Labels of images as `t2t-vit predict` prints them."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_vit import Predictor
from t2t_vit.cli import main
from t2t_vit.deploy.rows import as_text
from t2t_vit.errors import UserError
from t2t_vit.inference.inputs import find_images


@pytest.fixture
def images(tmp_path):
    """A folder of three images in two folders, and what is no image."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, array in zip(("b.png", "a.PNG", "more/c.bmp"), pixels, strict=True):
        Image.fromarray(array).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_text("no image either")
    return tmp_path / "photos"


def predict(checkpoint, *words):
    return main(["predict", *map(str, words), "--checkpoint", str(checkpoint), "--device", "cpu"])


def test_printed_for_people(small_checkpoint, images, capsys):
    assert predict(small_checkpoint, images, "--top-k", "2") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    (best, probability), (second, other), *_ = Predictor(small_checkpoint, device="cpu")(images / "a.PNG").labels
    assert lines[0] == f"{images / 'a.PNG'}{probability:8.1%}  {best}, {other:8.1%}  {second}"
    assert [Path(line.split()[0]).name for line in lines] == ["a.PNG", "b.png", "c.bmp"]
    assert "t2t_vit checkpoint" in printed.err  # the load report, out of the way of the labels


def test_one_image_gets_a_line_for_each_label_and_many_get_a_line_each(small_checkpoint, images, capsys):
    assert predict(small_checkpoint, images / "a.PNG") == 0
    name, *lines = capsys.readouterr().out.splitlines()
    assert (name, len(lines)) == (str(images / "a.PNG"), 3)
    assert predict(small_checkpoint, images) == 0
    found = capsys.readouterr().out.splitlines()
    assert found[0] == f"{name}{lines[0]}"
    assert len(found) == 3


def test_printed_as_json(small_checkpoint, images, capsys):
    names = [str(images / "b.png"), str(images / "notes.txt"), str(images / "a.PNG")]
    assert predict(small_checkpoint, *names, "--json") == 2
    found = json.loads(capsys.readouterr().out)
    assert [entry["image"] for entry in found] == names
    assert [sorted(entry) for entry in found] == [["image", "labels"], ["error", "image"], ["image", "labels"]]
    expected = Predictor(small_checkpoint, device="cpu")(names[0]).labels
    assert [label["label"] for label in found[0]["labels"]] == [label for label, _ in expected]
    assert sum(label["probability"] for label in found[0]["labels"]) == pytest.approx(1)


def test_unreadable_images_are_named_after_the_others_were_predicted(small_checkpoint, images, capsys):
    (images / "cut.png").write_bytes((images / "b.png").read_bytes()[:300])
    assert predict(small_checkpoint, images) == 2
    printed = capsys.readouterr()
    assert sum(line.startswith(str(images)) for line in printed.out.splitlines()) == 3
    *_, error = printed.err.splitlines()
    assert error.startswith(f"t2t-vit: error: 1 of 4 images could not be read: {images / 'cut.png'} is not a readable")


def test_images_come_from_addresses_too(small_checkpoint, images, site, capsys):
    site.files |= {"/a": (images / "a.PNG").read_bytes(), "/page.png": b"<html>"}
    assert predict(small_checkpoint, f"{site.url}/page.png", f"{site.url}/a", f"{site.url}/none", "--json") == 2
    page, found, none = json.loads(capsys.readouterr().out)
    assert found["image"] == f"{site.url}/a"
    expected = Predictor(small_checkpoint, device="cpu")(images / "a.PNG").labels
    assert [(label["label"], label["probability"]) for label in found["labels"]] == expected
    assert page["error"] == f"{site.url}/page.png is not a readable image: no image format that Pillow knows"
    assert none["error"] == f"{site.url}/none is not a readable image: it could not be downloaded: Not Found"


def test_written_as_a_table(small_checkpoint, images, tmp_path, capsys):
    table = tmp_path / "labels.csv"
    assert predict(small_checkpoint, images / "a.PNG", images / "notes.txt", "--csv", table, "--top-k", "2") == 2
    (best, first), (second, other) = Predictor(small_checkpoint, device="cpu")(images / "a.PNG", top_k=2).labels
    with table.open(newline="") as file:
        header, row, broken = csv.reader(file)
    assert header == ["name", "label", "probability", "label_2", "probability_2", "error"]
    assert row == [str(images / "a.PNG"), best, str(first), second, str(other), ""]
    assert broken[0] == str(images / "notes.txt")
    assert "no image format" in broken[-1]
    assert capsys.readouterr().out == ""


READERS = {
    "csv": lambda path: list(
        csv.DictReader(io.StringIO(path.read_bytes().decode(errors="surrogateescape"), newline=""))
    ),
    "jsonl": lambda path: [json.loads(line) for line in path.read_text().split("\n") if line],
    "parquet": lambda path: pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist(),
}
each_kind = pytest.mark.parametrize("kind", READERS)


def names_of(kind, path):
    return [row["image" if kind == "jsonl" else "name"] for row in READERS[kind](path)]


@each_kind
def test_what_was_cut_off_goes_on_where_it_ended(kind, small_checkpoint, images, tmp_path, capsys):
    paths = [images / "a.PNG", images / "b.png", images / "more" / "c.bmp"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert predict(small_checkpoint, *paths, f"--{kind}", whole, "--embed") == 0
    assert predict(small_checkpoint, *paths[:2], f"--{kind}", part, "--embed") == 0
    if kind != "parquet":
        part.write_bytes(part.read_bytes()[:-3])  # as a killed process leaves it
    capsys.readouterr()
    assert predict(small_checkpoint, *paths, f"--{kind}", part, "--embed", "--resume") == 0
    assert f"{2 if kind == 'parquet' else 1} of 3 images are written already" in capsys.readouterr().err
    assert names_of(kind, part) == [str(path) for path in paths]
    for ours, theirs in zip(READERS[kind](part), READERS[kind](whole), strict=True):
        assert ours.keys() == theirs.keys()
        ours, theirs = (json.loads(str(row["embedding"])) for row in (ours, theirs))
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert predict(small_checkpoint, *paths, f"--{kind}", part, "--embed", "--resume") == 0  # nothing is left to do
    assert len(names_of(kind, part)) == 3


@each_kind
def test_a_file_of_others_is_not_gone_on_with(kind, small_checkpoint, images, tmp_path, capsys):
    file = tmp_path / "labels"
    assert predict(small_checkpoint, images / "b.png", f"--{kind}", file) == 0
    assert predict(small_checkpoint, images / "b.png", f"--{kind}", file) == 2
    assert "labels is there already: go on with it by --resume" in capsys.readouterr().err
    assert predict(small_checkpoint, images / "a.PNG", f"--{kind}", file, "--resume") == 2
    assert f"image 1 was {images / 'b.png'}, now it is {images / 'a.PNG'}" in capsys.readouterr().err
    if kind != "jsonl":
        assert predict(small_checkpoint, images / "b.png", f"--{kind}", file, "--resume", "--top-k", "1") == 2
        assert "other columns" in (error := capsys.readouterr().err) or "does not begin with name,label" in error


@each_kind
@pytest.mark.parametrize("content", ["line one\nimportant last line", "one line", "name,age", "name,label\nx,3\nlast"])
def test_a_file_that_is_no_such_table_stays_as_it_is(kind, content, small_checkpoint, images, tmp_path):
    file = tmp_path / "notes"
    file.write_text(content)
    assert predict(small_checkpoint, images / "b.png", f"--{kind}", file, "--resume") == 2
    assert file.read_text() == content


@each_kind
@pytest.mark.parametrize("name", ["x\u2028y.png", "x\x85y.png", "x\ry.png", "x\ny.png", 'x"y.png'])
@pytest.mark.parametrize("cut", [1, 20, 60])
def test_odd_names_of_unreadable_images_are_gone_on_with(kind, name, cut, small_checkpoint, images, tmp_path):
    odd = images / name
    odd.write_text("no image")
    file = tmp_path / "labels"
    assert predict(small_checkpoint, images / "b.png", odd, f"--{kind}", file) == 2
    if kind != "parquet":
        file.write_bytes(file.read_bytes()[:-cut])
    predict(small_checkpoint, images / "b.png", odd, images / "a.PNG", f"--{kind}", file, "--resume")
    assert names_of(kind, file) == [str(images / "b.png"), str(odd), str(images / "a.PNG")]


@each_kind
def test_bytes_that_are_no_text_are_gone_on_with_too(kind, small_checkpoint, images, tmp_path):
    odd = images / os.fsdecode(b"x\xff.png")
    odd.write_text("no image")
    file = tmp_path / "labels"
    assert predict(small_checkpoint, odd, f"--{kind}", file) == 2
    if kind == "parquet":
        (file / ".part-00001.parquet.tmp").write_text("what a killed process leaves")
    assert predict(small_checkpoint, odd, images / "a.PNG", f"--{kind}", file, "--resume") == 0
    name = as_text(str(odd)) if kind == "parquet" else str(odd)
    assert names_of(kind, file) == [name, str(images / "a.PNG")]


def test_a_row_whose_name_has_a_line_break_is_cut_off_whole(small_checkpoint, images, tmp_path):
    odd = images / "more" / "a\nb.png"
    (images / "a.PNG").rename(odd)
    file = tmp_path / "labels.csv"
    assert predict(small_checkpoint, images / "b.png", odd, "--csv", file) == 0
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b"b.png")])
    assert predict(small_checkpoint, images / "b.png", odd, "--csv", file, "--resume") == 0
    assert names_of("csv", file) == [str(images / "b.png"), str(odd)]


def test_images_come_from_patterns_lists_and_standard_input(images, tmp_path, monkeypatch):
    first, second = images / "a.PNG", images / "b.png"
    assert find_images([str(images / "**/*")]) == [first, images / "b.png", images / "more" / "c.bmp"]
    listed = images / "list.csv"
    listed.write_text(f"label,Path\nx,b.png\ny,{first}\nz,http://host/c.png\n")
    assert find_images([str(listed)]) == [second, first, "http://host/c.png"]
    listed.write_text("b.png\na.PNG\n")
    assert find_images([str(listed)]) == [second, first]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{second}\n\n{first}\n".encode())))
    assert find_images(["-"]) == [second, first]
    listed.write_text("")
    with pytest.raises(UserError, match=r"list\.csv names no image"):
        find_images([str(listed)])
    with pytest.raises(UserError, match="No image fits the pattern"):
        find_images([str(images / "*.txt")])


def test_unlikely_labels_are_left_out_and_answers_averaged(small_checkpoint, images, capsys):
    predictor = Predictor(small_checkpoint, device="cpu")
    (best, high), (_, low), *_ = predictor(images / "a.PNG").labels
    assert predict(small_checkpoint, images / "a.PNG", "--json", "--threshold", str((high + low) / 2)) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert [label["label"] for label in entry["labels"]] == [best]
    with Image.open(images / "a.PNG") as image:
        mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pair = [dict(answer.labels) for answer in predictor([image, mirrored], flip=True)]
        plain = dict(predictor(image).labels)
    assert pair[0] == pytest.approx(pair[1], abs=1e-5)
    assert pair[0] != pytest.approx(plain, abs=1e-5)


def test_printing_and_writing_exclude_each_other(small_checkpoint, images, capsys):
    assert predict(small_checkpoint, images, "--json", "--csv", "x.csv") == 2
    assert "--json prints, and has no effect beside a file to write" in capsys.readouterr().err
    assert predict(small_checkpoint, images, "--jsonl", "x", "--csv", "x.csv") == 2
    assert predict(small_checkpoint, images, "--resume") == 2
    assert "--resume has no effect without" in capsys.readouterr().err


def test_a_folder_without_images(tmp_path):
    with pytest.raises(UserError, match=r"The folder .* holds no image \(\.jpg"):
        find_images([str(tmp_path)])


def test_folders_that_cannot_be_read_are_told(images, monkeypatch, capsys):
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    assert images / "b.png" in find_images([str(images)])
    told = capsys.readouterr().err
    assert told == f"warning: folders that could not be read: {images / 'more'} (Permission denied)\n"
    with pytest.raises(UserError, match=r"The folder .*more cannot be read: Permission denied"):
        find_images([str(images / "more")])


def test_numbers_that_make_no_sense(small_checkpoint, images, capsys):
    assert predict(small_checkpoint, images, "--top-k", "0") == 2
    assert capsys.readouterr().err == "t2t-vit: error: --top-k must be at least 1, got 0.\n"
