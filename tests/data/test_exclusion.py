"""Images that are left out: before the split, in training and evaluation alike."""

import pytest

from t2t_vit.data.sources import open_evaluation, open_source

EXPECTED = "--exclude takes a .csv with a column 'image', as t2t-vit data writes it, or a name on each line"


@pytest.fixture
def folder(tmp_path, class_folders):
    return str(class_folders(tmp_path / "pets", cat=10, dog=10))


def write(tmp_path, text, name="list.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,reason\ncat/0.png,blank\ndog/3.png,tiny\n"),
        ("a.csv", "\ufeffreason,image\r\nblank,cat/0.png\r\ntiny,dog/3.png\r\n"),  # as a spreadsheet saves it
        ("a.txt", "cat/0.png\n\n  dog/3.png\n"),
    ],
)
def test_images_of_a_list_are_left_out(tmp_path, folder, name, text):
    source = open_source(folder, exclude=write(tmp_path, text, name))
    names = {*source.train.names, *source.val.names}
    assert len(names) == 18
    assert not names & {"cat/0.png", "dog/3.png"}
    assert source.split["excluded"] == ["cat/0.png", "dog/3.png"]
    assert source.notes == ("left out, as --exclude names them: 2",)
    evaluation = open_evaluation(folder, trained_split=source.split)
    assert evaluation.images.names == source.val.names
    assert evaluation.part.startswith("validation part of ")


def test_images_are_left_out_of_every_part(tmp_path, class_folders):
    root = tmp_path / "parts"
    for part in ("train", "val", "test"):
        class_folders(root / part, cat=3, dog=3)
    exclude = write(tmp_path, "image\n" + "".join(f"{part}/cat/0.png\n" for part in ("train", "val", "test")))
    source = open_source(str(root), exclude=exclude)
    assert [len(source.train), len(source.val), len(source.test)] == [5, 5, 5]
    evaluation = open_evaluation(str(root), trained_split=source.split)
    assert evaluation.images.names == source.val.names
    assert evaluation.part == f"{root}/val, without 1 that training excluded"


def test_names_need_not_be_valid_text(tmp_path, draw):
    names = ["cat/n\udce4ive.png", "cat/a b.png", "cat/写真.png"]
    for name in (*names, *(f"{label}/{i}.png" for label in ("cat", "dog") for i in range(4))):
        draw(tmp_path / "pets" / name)
    exclude = write(tmp_path, "image\n" + "".join(f'"{name}"\n' for name in names))
    source = open_source(str(tmp_path / "pets"), exclude=exclude)
    assert len(source.train) + len(source.val) == 8


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,reason\ncat/0.png,blank\n", f"a.csv has the columns path, reason. {EXPECTED}."),
        ("a.csv", "", f"a.csv has the columns none. {EXPECTED}."),
        ("a.csv", "image\n", f"a.csv names no image. {EXPECTED}."),
        ("a.csv", 'image\n"cat/0.png\n', f"a.csv is no whole table: unexpected end of data. {EXPECTED}."),
        ("a.txt", "\n \n", f"a.txt names no image. {EXPECTED}."),
        (
            "a.txt",
            "cat/0.png\ncat/99.png\n",
            "--exclude names images that {folder} does not have, 1 in all: cat/99.png. "
            "Names are as t2t-vit data writes them, such as cat/0.png.",
        ),
        (
            "a.txt",
            "".join(f"cat/{i}.png\n" for i in range(10)),
            "--exclude leaves no image of cat in {folder}: shorten the list.",
        ),
        (
            "a.txt",
            "".join(f"cat/{i}.png\n" for i in range(9)),
            "{folder} has no val/, and a split needs two images of each class, one to train on and one to validate; "
            "these have one: cat. Add images, or remove the folders.",
        ),
    ],
)
def test_a_list_that_does_not_fit_is_told(tmp_path, folder, refusal, name, text, message):
    told = refusal(folder, exclude=write(tmp_path, text, name))
    assert told.replace(f"{tmp_path}/a", "a") == message.format(folder=folder).replace(f"{tmp_path}/a", "a")


def test_a_list_that_cannot_be_read_is_told(tmp_path, folder, refusal):
    assert refusal(folder, exclude=str(tmp_path)) == f"{tmp_path} cannot be read: Is a directory. {EXPECTED}."


def test_spaces_around_names_stay_in_a_table(tmp_path, draw):
    for name in (" b/1 .png", " b/2.png", " b/3.png", "c/1.png", "c/2.png"):
        draw(tmp_path / "pets" / name)
    source = open_source(str(tmp_path / "pets"), exclude=write(tmp_path, "image\n b/1 .png\n"))
    assert source.split["excluded"] == [" b/1 .png"]


def test_a_test_part_without_an_image_is_none(tmp_path, class_folders):
    for part in ("train", "val", "test"):
        class_folders(tmp_path / "parts" / part, cat=2, dog=2)
    names = [f"test/{label}/{i}.png" for label in ("cat", "dog") for i in range(2)]
    source = open_source(str(tmp_path / "parts"), exclude=write(tmp_path, "\n".join(names), "a.txt"))
    assert source.test is None
    assert f"--exclude leaves no image of {tmp_path}/parts/test, which is left out" in source.notes
