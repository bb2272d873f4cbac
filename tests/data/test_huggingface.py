"""Hugging Face data sets on disk, where the library is installed; and what is said where it is not."""

import io
import pickle
import sys

import pytest
from PIL import Image

from t2t_vit.data.images import UnreadableImage
from t2t_vit.data.sources import open_evaluation, open_source


def test_a_missing_library_is_named(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refusal("hfds/pets") == "hfds/pets needs a package that is not installed: pip install datasets."


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "default_cache"))
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def write(datasets, tmp_path):
    """Writes a split of a data set: a column of images of these greys, and others with their type."""

    def write(split, greys, *, image="image", **columns):
        rows = []
        for grey in greys:
            buffer = io.BytesIO()
            if grey is not None:
                Image.new("L", (4, 4), grey).save(buffer, "png")
            rows.append({"bytes": buffer.getvalue() or b"no image", "path": None})
        contents = {image: rows} | {name: values for name, (values, _) in columns.items()}
        features = {image: datasets.Image()} | {name: kind for name, (_, kind) in columns.items()}
        folder = tmp_path / "pets"
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(contents, datasets.Features(features)).to_parquet(folder / f"{split}.parquet")
        return f"hfds/{folder}"

    return write


@pytest.fixture
def pets(datasets):
    return datasets.ClassLabel(names=["dog", "cat"])


def test_splits(write, pets, grey, tmp_path):
    write("train", [1, 2, 3, 4], label=([1, 0, 1, 0], pets))
    write("test", [7, 8], label=([0, 1], pets))
    data = write("validation", [5, 6], label=([0, 1], pets))
    source = open_source(data, data_dir=str(tmp_path / "cache"))
    assert (tmp_path / "cache").is_dir()
    assert source.class_names == ("dog", "cat")  # in the order of the labels
    assert source.train.names == ["train/cat/0000000", "train/dog/0000001", "train/cat/0000002", "train/dog/0000003"]
    assert source.train.labels == [1, 0, 1, 0]
    copy = pickle.loads(pickle.dumps(source))
    assert [grey(copy.train.load(i)) for i in (3, 0, 2, 1)] == [4, 1, 3, 2]
    assert [grey(source.val.load(i)) for i in (0, 1)] == [5, 6]
    assert open_evaluation(data).part == f"split validation of {data}"


def test_a_split_alone_is_split(write, pets):
    data = write("train", range(10), label=([0, 1] * 5, pets))
    source = open_source(data)
    assert (len(source.train), len(source.val), source.split["kind"]) == (8, 2, "stratified")
    assert len(open_evaluation(data).images) == 10


def test_test_stands_in_for_validation(write, pets, refusal):
    data = write("test", [7, 8], label=([0, 1], pets))
    assert len(open_evaluation(data).images) == 2
    assert "none to train on" in refusal(data)


def test_columns_are_found_by_their_kind(write, pets, datasets):
    columns = {"fine": ([1, 0], pets), "id": ([5, 6], datasets.Value("int64"))}
    write("test", [1, 2], image="img", **columns)
    assert open_source(write("train", [1, 2], image="img", **columns)).train.labels == [1, 0]


def test_one_of_several_label_columns_is_named(write, pets, datasets, refusal):
    breeds = datasets.ClassLabel(names=["pug", "poodle", "manx"])
    columns = {"kind": ([0, 1, 0], pets), "breed": ([0, 2, 1], breeds)}
    write("test", [1, 2, 3], **columns)
    data = write("train", [1, 2, 3], **columns)
    assert open_source(f"{data}:breed").class_names == ("pug", "poodle", "manx")
    advice = "it has image, kind, breed. Name the one of labels so: hfds/NAME:COLUMN."
    assert refusal(data) == f"Expected a column 'label' in {data}, or one ClassLabel column; {advice}"
    assert refusal(f"{data}:race") == f"Expected a column 'race' in {data}, or one ClassLabel column; {advice}"


def test_labels_may_be_words(write, datasets):
    for split in ("train", "test"):
        data = write(split, [1, 2, 3], label=(["emu", "cat", "emu"], datasets.Value("string")))
    source = open_source(data)
    assert (source.class_names, source.train.labels) == (("cat", "emu"), [1, 0, 1])


def test_hidden_labels_are_refused(write, pets, refusal):
    write("train", [1, 2], label=([0, 1], pets))
    data = write("test", [1, 2], label=([-1, 1], pets))
    assert refusal(data) == f"1 of 2 images of split test of {data} belong to no single class: their label is -1."


def test_what_cannot_be_loaded_is_refused(datasets, refusal, tmp_path):
    assert refusal(f"hfds/{tmp_path}/no") == f"hfds/{tmp_path}/no cannot be loaded: Couldn't find any data file at " + (
        f"{tmp_path}/no."
    )


def test_unreadable_images_are_named(write, pets):
    data = write("test", [None, 1], label=([0, 1], pets))
    with pytest.raises(UnreadableImage, match="test/dog/0000000 is not a readable image: no image format"):
        open_evaluation(data).images.load(0)
