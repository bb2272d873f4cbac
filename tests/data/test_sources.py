"""Images by name, folder or file: what is trained and evaluated on, and what a user reads when it does not fit."""

import pickle

import pytest

from t2t_vit.data.sources import absolute_path, open_evaluation, open_source

# Folders


@pytest.mark.parametrize("val", ["val", "validation"])
def test_train_and_val_folders(tmp_path, class_folders, grey, val):
    class_folders(tmp_path / "train", cat=3, dog=2)
    class_folders(tmp_path / val, cat=1, dog=1)
    source = open_source(str(tmp_path))
    assert source.class_names == ("cat", "dog")
    assert source.train.names == [f"train/{name}.png" for name in ("cat/0", "cat/1", "cat/2", "dog/0", "dog/1")]
    assert source.train.labels == [0, 0, 0, 1, 1]
    assert [grey(source.train.load(i)) for i in range(5)] == [0, 10, 20, 1, 11]
    assert source.val.names == [f"{val}/cat/0.png", f"{val}/dog/0.png"]
    assert source.split.items() >= {"kind": "given", "num_train": 5, "num_val": 2}.items()


def test_sets_travel_to_worker_processes(tmp_path, class_folders, grey):
    source = open_source(str(class_folders(tmp_path, cat=4, dog=4)))
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.val.names, copy.val.labels) == (source.val.names, source.val.labels)
    assert grey(copy.val.load(0)) == grey(source.val.load(0))


# What does not fit


def test_unknown_data(refusal):
    assert refusal("digit") == "There is no folder 'digit'. Unknown data set 'digit'. Did you mean digits?"
    known = "Unknown data set '/no/such'. Known: cifar10, cifar100, digits, formulas."
    assert refusal("/no/such") == f"There is no folder '/no/such'. {known}"
    assert refusal("a" * 300).startswith("There is no folder 'aaa")  # longer than a file's name can be


@pytest.mark.parametrize("data", ["tfds/cifar10", "hfids/cifar10"])
def test_streams_are_refused(refusal, data):
    assert refusal(data).startswith(f"{data} would be read as a stream, which cannot go on in the middle of an epoch")


@pytest.mark.parametrize("opener", [open_source, open_evaluation])
def test_a_data_dir_without_effect_is_refused(tmp_path, refusal, opener):
    for data in ("digits", f"wds/{tmp_path}", tmp_path):
        assert f"has no effect on {data}: leave it out." in refusal(data, opener, data_dir="data")


def test_a_part_is_missing(tmp_path, class_folders, refusal):
    class_folders(tmp_path / "val", cat=2, dog=2)
    assert refusal(tmp_path) == (
        f"{tmp_path} has images to validate on but none to train on. "
        f"Add train/, or give {tmp_path}/val to train on a part of that."
    )


def test_val_has_other_classes(tmp_path, class_folders, refusal):
    class_folders(tmp_path / "train", cat=1, dog=1, emu=1)
    class_folders(tmp_path / "val", cats=1, dog=1, emus=1)
    start = f"The classes of {tmp_path}/val must be those of {tmp_path}/train, but it "
    advice = " Rename, add or remove classes until they agree."
    assert refusal(tmp_path) == start + "lacks cat, emu and has cats, emus besides." + advice
    class_folders(tmp_path / "val", cat=1, emu=1)
    assert refusal(tmp_path) == start + "has cats, emus besides." + advice


def test_a_class_of_one_image_cannot_be_split(tmp_path, class_folders, refusal):
    class_folders(tmp_path, cat=5, dog=1)
    assert "one to train on and one to validate; these have one: dog. Add images" in refusal(tmp_path)


# Evaluation


def test_evaluation_takes_val_where_there_is_one(tmp_path, class_folders):
    class_folders(tmp_path / "val", cat=2, dog=1)
    (tmp_path / "train").mkdir()  # empty: it is not looked at
    evaluation = open_evaluation(str(tmp_path))
    assert (len(evaluation.images), evaluation.class_names) == (3, ("cat", "dog"))
    assert evaluation.part == f"{tmp_path}/val"


def test_evaluation_takes_class_folders_whole_or_as_training_split_them(tmp_path, class_folders, draw):
    class_folders(tmp_path, cat=10, dog=10)
    source = open_source(str(tmp_path), val_fraction=0.3, seed=1)
    whole = open_evaluation(str(tmp_path))
    assert (len(whole.images), whole.part) == (20, f"all of {tmp_path}")
    val = open_evaluation(str(tmp_path), trained_split=source.split)
    assert val.images.names == source.val.names
    assert val.part == f"validation part of {tmp_path}, as split for training"
    draw(tmp_path / "cat" / "new.png")
    changed = open_evaluation(str(tmp_path), trained_split=source.split)
    assert (len(changed.images), changed.part) == (
        21,
        f"all of {tmp_path}, which holds other images than training split",
    )


@pytest.mark.parametrize("name", ["digits", "cifar10", "hfds/user/name"])
def test_names_of_data_stay_names_though_a_folder_is_called_so(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    assert absolute_path(name) == name


def test_folders_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_path("photos") == str(tmp_path.resolve() / "photos")
    assert absolute_path("wds/shards") == f"wds/{tmp_path.resolve() / 'shards'}"
