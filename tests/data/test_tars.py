"""Tar files: as good as the folders that are packed in them."""

import pickle
import shutil
import tarfile

import pytest
import torch

from t2t_vit.data.images import UnreadableImage
from t2t_vit.data.loading import Draw, DrawnImages, make_loader
from t2t_vit.data.sources import open_evaluation, open_source


def pack(path, *entries, mode="w"):
    """A tar file of (file or folder on disk, its name inside)."""
    with tarfile.open(path, mode) as archive:
        for file, name in entries:
            archive.add(file, name)
    return path


def same(left, right):
    """Whether two sources hold the same images, names, labels and split."""
    assert left.class_names == right.class_names
    assert left.split == right.split
    for side in ("train", "val"):
        ours, theirs = getattr(left, side), getattr(right, side)
        assert (list(ours.names), list(ours.labels)) == (list(theirs.names), list(theirs.labels))
        assert all(ours.load(i).tobytes() == theirs.load(i).tobytes() for i in range(len(ours)))
    return True


@pytest.fixture
def pets(tmp_path, draw, class_folders):
    class_folders(tmp_path / "pets" / "train", cat=3, dog=2, emu10=4, emu9=2)
    class_folders(tmp_path / "pets" / "val", cat=1, dog=2, emu10=1, emu9=1)
    draw(tmp_path / "pets" / "train" / "cat" / "deep" / "a.JPEG", grey=77)
    draw(tmp_path / "pets" / "train" / "cat" / "._0.png")
    (tmp_path / "pets" / "README").touch()
    return tmp_path / "pets"


@pytest.mark.parametrize("inside", ["", "pets", "./pets", "/data/pets", "../pets"])
def test_a_tar_is_the_folder_in_it(tmp_path, pets, inside):
    tar = pack(tmp_path / "pets.tar", *((pets / part, f"{inside}/{part}") for part in ("train", "val", "README")))
    assert same(open_source(str(tar)), open_source(str(pets)))


def test_a_tar_for_each_part(tmp_path, pets):
    folder = tmp_path / "packed"
    folder.mkdir()
    pack(folder / "train.tar", (pets / "train", "train"))
    pack(folder / "val.tar", (pets / "val", "."))
    assert same(open_source(str(folder)), open_source(str(pets)))
    (folder / "train.tar").write_text("not looked at")
    assert open_evaluation(str(folder)).images.names == open_evaluation(str(pets)).images.names


def test_a_folder_and_a_tar(tmp_path, pets):
    mixed = shutil.copytree(pets, tmp_path / "mixed")
    pack(mixed / "val.tar", (mixed / "val", "val"))
    shutil.rmtree(mixed / "val")
    assert same(open_source(str(mixed)), open_source(str(pets)))


def test_classes_alone_are_split_as_in_a_folder(tmp_path, pets):
    tar = pack(tmp_path / "train.tar", (pets / "train", "train"))
    assert same(open_source(str(tar)), open_source(str(pets / "train")))
    assert open_evaluation(str(tar)).part == f"all of {tar}"


def test_tars_in_a_tar_are_folders(tmp_path, pets):
    classes = [
        (pack(tmp_path / f"{folder.name}.tar", (folder, ".")), f"{folder.name}.tar")
        for folder in (pets / "train").iterdir()
    ]
    tar = pack(tmp_path / "all.tar", *classes)
    assert same(open_source(str(tar)), open_source(str(pets / "train")))
    assert same(open_source(str(pack(tmp_path / "box.tar", (tar, "all.tar")))), open_source(str(pets / "train")))


def test_hard_links_are_files_and_symbolic_links_are_refused(tmp_path, class_folders, refusal):
    class_folders(tmp_path / "a", cat=2, dog=1)
    (tmp_path / "a" / "dog" / "1.png").hardlink_to(tmp_path / "a" / "cat" / "0.png")
    expected = open_source(str(tmp_path / "a"))
    assert same(open_source(str(pack(tmp_path / "a.tar", (tmp_path / "a", "a")))), expected)
    (tmp_path / "a" / "dog" / "2.png").symlink_to("1.png")
    tar = pack(tmp_path / "a.tar", (tmp_path / "a", "a"))
    assert refusal(tar) == f"{tar}: a/dog/2.png is a link to a file. Pack it again with tar --dereference."


def test_a_folder_ends_where_its_name_does(tmp_path, pets):
    """A class takes the files below its folder, not those beside it whose names begin alike."""
    beside = [(pets / "train" / "dog", f"x/{name}") for name in ("cat0", "cat-")]
    source = open_source(str(pack(tmp_path / "a.tar", (pets / "train" / "cat", "x/cat"), *beside)), val_fraction=0.25)
    assert source.class_names == ("cat", "cat-", "cat0")
    assert sorted(name for name in source.train.names + source.val.names if name.startswith("cat/")) == [
        f"cat/{file}" for file in ("0.png", "1.png", "2.png", "deep/a.JPEG")
    ]


def test_workers_and_this_process_read_side_by_side(tmp_path, pets):
    tar = pack(tmp_path / "pets.tar", (pets, "pets"))
    images = pickle.loads(pickle.dumps(open_source(str(tar)).train))
    first = images.load(0).tobytes()  # before the workers are forked
    loader = make_loader(
        DrawnImages(images, transform=_first_pixel), [[Draw(0, i, i)] for i in range(len(images))], workers=2
    )
    greys = [int(batch.images) for batch in loader]
    assert greys == [images.load(i).getpixel((0, 0))[0] for i in range(len(images))]
    assert images.load(0).tobytes() == first


def _first_pixel(image):
    return torch.tensor(image.getpixel((0, 0))[0]).view(1, 1, 1)


# What does not fit


def test_compressed_or_cut_tars(tmp_path, pets, refusal):
    tar = pack(tmp_path / "pets.tar", (pets, "pets"), mode="w:gz")
    assert refusal(tar).startswith(f"{tar} is no tar file, is compressed, or is cut off: ")
    whole = pack(tmp_path / "whole.tar", (pets, "pets")).read_bytes()
    tar.write_bytes(whole[: len(whole) // 2 + 100])
    assert refusal(tar) == (
        f"{tar} is no tar file, is compressed, or is cut off: unexpected end of data. Decompress it, or get it again."
    )


def test_a_tar_without_classes(tmp_path, draw, refusal):
    draw(tmp_path / "a.png")
    tar = pack(tmp_path / "flat.tar", (tmp_path / "a.png", "images/a.png"))
    expected = f"Expected train/ and val/ with class folders, or at least two class folders, in {tar}/images; "
    assert refusal(tar) == expected + "it has files but no folder."


def test_a_tar_that_goes_away(tmp_path, pets):
    tar = pack(tmp_path / "pets.tar", (pets, "pets"))
    images = open_source(str(tar)).val
    tar.unlink()
    with pytest.raises(UnreadableImage, match=r"val/cat/0.png is not a readable image: No such file or directory"):
        images.load(0)
