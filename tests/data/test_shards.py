"""Webdataset shards, read in any order."""

import io
import tarfile

import pytest
from PIL import Image

from t2t_vit.data.sources import open_evaluation, open_source


def write_shard(path, **members):
    """A shard in which a number is an image of that grey, and bytes are themselves; __ in a name is a dot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            if isinstance(content, int):
                buffer = io.BytesIO()
                Image.new("L", (4, 4), content).save(buffer, "png")
                content = buffer.getvalue()
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_data_set(root, names):
    for number, name in enumerate(names):
        write_shard(
            root / name,
            a__jpg=10 * number + 1,
            a__cls=b"10",
            a__json=b"{}",
            b__cls=b"2\n",
            b__seg__png=99,  # another image of the same sample: its extension is .seg.png
            b__PNG=10 * number + 2,
        )


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (["pets-train-0000.tar", "pets-train-0001.tar"], ["pets-validation-0000.tar"]),
        (["train/0.tar", "train/1.tar"], ["val/0.tar"]),
    ],
)
def test_shards_of_two_parts(tmp_path, grey, train, val):
    write_data_set(tmp_path, [*train, *val])
    write_shard(tmp_path / "pets-test-0000.tar", a__jpg=99)
    source = open_source(f"wds/{tmp_path}")
    assert source.class_names == ("2", "10")
    assert source.train.names == [f"{shard}/{name}" for shard in train for name in ("a.jpg", "b.PNG")]
    assert source.train.labels == [1, 0, 1, 0]
    assert [grey(source.train.load(i)) for i in (3, 0, 2, 1)] == [12, 1, 11, 2]
    assert [grey(source.val.load(i)) for i in (0, 1)] == [21, 22]
    assert source.split["kind"] == "given"
    evaluation = open_evaluation(f"wds/{tmp_path}")
    assert (evaluation.images.names, evaluation.part) == (source.val.names, f"validation shards of {tmp_path}")


@pytest.mark.parametrize("name", ["{:04d}.tar", "train-{:04d}.tar"])
def test_shards_of_one_part_are_split(tmp_path, name):
    write_data_set(tmp_path, [name.format(i) for i in range(5)])
    write_shard(tmp_path / "test-0.tar", a__jpg=99, a__cls=b"2")
    source = open_source(f"wds/{tmp_path}")
    assert (len(source.train), len(source.val), source.split["kind"]) == (8, 2, "stratified")
    assert open_evaluation(f"wds/{tmp_path}", trained_split=source.split).images.names == source.val.names


# What does not fit


def test_no_shards(tmp_path, refusal):
    for folder in (tmp_path, tmp_path / "nothing"):
        expected = f"Expected a folder with webdataset shards (.tar files), got '{folder}', which holds none."
        assert refusal(f"wds/{folder}") == expected


def test_validation_shards_alone_are_nothing_to_train_on(tmp_path, refusal):
    write_data_set(tmp_path, ["val-0.tar"])
    assert "has images to validate on but none to train on" in refusal(f"wds/{tmp_path}")
    assert len(open_evaluation(f"wds/{tmp_path}").images) == 2


def test_shards_that_do_not_tell_their_part_are_not_trained_on_beside_those_that_do(tmp_path, refusal):
    write_data_set(tmp_path, ["train-0.tar", "train-1.tar", "0.tar"])
    assert "say nothing of their part: 0.tar. Name them train, val or test" in refusal(f"wds/{tmp_path}")


def test_labels_are_numbers_beside_the_images(tmp_path, refusal):
    start = f"Expected images with their labels in .cls files beside them in the shards of {tmp_path}, but "
    shard = tmp_path / "0.tar"
    write_shard(shard, a__jpg=1, a__json=b'{"label": 1}', b__jpg=2, b__cls=b"1")
    assert refusal(f"wds/{tmp_path}") == start + "1 have none, such as 0.tar/a.jpg."
    write_shard(shard, a__txt=b"text")
    assert refusal(f"wds/{tmp_path}") == start + "they hold no image."
    write_shard(shard, a__jpg=1, a__cls=b"cat")
    assert refusal(f"wds/{tmp_path}") == "0.tar/a.cls must hold the number of a class, holds b'cat'."
