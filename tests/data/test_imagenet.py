"""prepare-imagenet, on archives built as the published ones are: a tar of tars, a flat tar, a gzipped devkit."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from t2t_vit.data.config import PrepareImagenetConfig
from t2t_vit.data.imagenet import prepare_imagenet
from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError

TENCH, SHARK, COCK = "n01440764", "n01484850", "n01514668"
WORDS = {TENCH: "tench, Tinca tinca", SHARK: "great white shark, white shark", COCK: "cock"}
NUM_TRAIN = {TENCH: 3, SHARK: 2, COCK: 4}
# The class of each validation image, by its place in WORDS, from 1.
GROUND_TRUTH = [2, 1, 3, 3, 1, 2, 1]

META = "ILSVRC2012_devkit_t12/data/meta.mat"
LABELS = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def draw(number: int) -> bytes:
    """A JPEG of its own grey and size."""
    file = BytesIO()
    Image.new("L", (4 + number, 4), 10 * number).save(file, "JPEG")
    return file.getvalue()


TRAIN = {
    synset: {f"{synset}_{10 * i}.JPEG": draw(i) for i in range(first, first + count)}
    for first, (synset, count) in enumerate(NUM_TRAIN.items())
}
VAL = {f"ILSVRC2012_val_{i:08d}.JPEG": draw(i) for i in range(1, len(GROUND_TRUTH) + 1)}
TREE = {f"train/{synset}/{name}": content for synset, images in TRAIN.items() for name, content in images.items()} | {
    f"val/{[*WORDS][label - 1]}/{name}": VAL[name] for name, label in zip(VAL, GROUND_TRUTH, strict=True)
}


def tar(files: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> bytes:
    """A tar file of files, and of members that are none."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content) if isinstance(content, bytes) else 0
            archive.addfile(member, BytesIO(content) if isinstance(content, bytes) else None)
    return packed.getvalue()


def synset_table(words: dict[str, str], num_train: dict[str, int]) -> bytes:
    """meta.mat as in the devkit: a column of structs, the classes first and then the synsets above them."""
    rows = [
        (i, synset, name, "a gloss", 0, np.empty(0), 0, num_train[synset])
        for i, (synset, name) in enumerate(words.items(), 1)
    ]
    above = len(rows) + 1
    rows.append((above, "n00001740", "entity", "that which is", 2, np.array([above + 1, 1]), 19, 0))
    rows.append((above + 1, "n01459791", "fish", "an animal", len(words) - 1, np.arange(2, above), 3, 0))
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    table = np.array(rows, dtype=[(field, object) for field in (*fields, "num_train_images")])
    file = BytesIO()
    savemat(file, {"synsets": table[:, None]})
    return file.getvalue()


def train_tar(train: dict[str, dict[str, bytes | tarfile.TarInfo]]) -> bytes:
    return tar({f"{synset}.tar": tar(images) for synset, images in train.items()})


def devkit(**changes: bytes | None) -> bytes:
    """The devkit, with another content for some of its files, or without them."""
    ground_truth = "".join(f"{label}\n" for label in GROUND_TRUTH).encode()
    files = {"meta": synset_table(WORDS, NUM_TRAIN), "labels": ground_truth} | changes
    names = {"meta": META, "labels": LABELS}
    readme = {"ILSVRC2012_devkit_t12/readme.txt": b"This is the documentation"}
    return tar(readme | {names[key]: content for key, content in files.items() if content is not None}, "w:gz")


@pytest.fixture
def config(tmp_path: Path) -> PrepareImagenetConfig:
    """Whole archives, and an output that does not exist yet."""
    contents = {"train.tar": train_tar(TRAIN), "val.tar": tar(VAL), "devkit.tar.gz": devkit()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    train, val, kit = (str(tmp_path / name) for name in contents)
    return PrepareImagenetConfig(train_tar=train, val_tar=val, devkit=kit, output=str(tmp_path / "deep" / "imagenet"))


def files_of(config: PrepareImagenetConfig) -> dict[str, bytes]:
    """Every file of the output, hidden ones too, by its path."""
    root = Path(config.output)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_whole(config: PrepareImagenetConfig) -> None:
    files = files_of(config)
    assert json.loads(files.pop("classes.json")) == WORDS
    assert files == TREE
    assert sorted(path.name for path in Path(config.output).iterdir()) == ["classes.json", "train", "val"]


def inodes(config: PrepareImagenetConfig) -> dict[str, int]:
    """What changes for a file that is written again."""
    return {name: (Path(config.output) / name).stat().st_ino for name in TREE if (Path(config.output) / name).exists()}


def refusal(config: PrepareImagenetConfig) -> str:
    with pytest.raises(UserError) as error:
        prepare_imagenet(config)
    assert not (Path(config.output) / "classes.json").exists()
    return str(error.value)


# The result


def test_images_lie_by_split_and_synset(config, capsys):
    prepare_imagenet(config)
    assert_whole(config)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == (
        f"{config.output} is complete: 3 classes, 9 training images, 7 validation images. "
        f"Next: t2t-vit data {config.output} --verify"
    )


def test_the_folder_is_a_source_to_train_on(config):
    prepare_imagenet(config)
    source = open_source(config.output)
    assert source.class_names == (TENCH, SHARK, COCK)
    assert source.train.labels == [0] * 3 + [1] * 2 + [2] * 4
    assert source.val.labels == [0] * 3 + [1] * 2 + [2] * 2
    assert source.train.load(0).size == (4, 4)


def test_images_get_the_permissions_of_other_files(config, tmp_path):
    prepare_imagenet(config)
    (tmp_path / "other").touch()
    assert {path.stat().st_mode for path in Path(config.output).rglob("*.*")} == {(tmp_path / "other").stat().st_mode}


# Again, and after a kill


def test_a_complete_folder_is_left_alone_and_needs_the_devkit_only(config, capsys):
    prepare_imagenet(config)
    before = inodes(config)
    Path(config.train_tar).unlink()
    Path(config.val_tar).unlink()
    prepare_imagenet(config)
    assert inodes(config) == before
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{config.output} is complete: 3 classes, 9 training images, 7 validation images. "
        "To have it checked again, remove its classes.json."
    )


def test_only_what_is_missing_or_of_another_size_is_written(config):
    prepare_imagenet(config)
    before = inodes(config)
    output = Path(config.output)
    cut, missing = f"train/{SHARK}/{SHARK}_10.JPEG", f"val/{COCK}/ILSVRC2012_val_00000003.JPEG"
    (output / cut).write_bytes(TREE[cut][:-1])
    (output / missing).rename(output.parent / "elsewhere")
    (output / "classes.json").unlink()
    prepare_imagenet(config)
    assert_whole(config)
    after = inodes(config)
    assert {name for name in TREE if after[name] != before[name]} == {cut, missing}


@pytest.mark.parametrize("classes", ["{}", "no JSON"])
def test_a_folder_with_other_classes_is_not_taken_for_complete(config, classes):
    prepare_imagenet(config)
    (Path(config.output) / "classes.json").write_text(classes)
    prepare_imagenet(config)
    assert_whole(config)


def test_hidden_files_count_as_little_as_for_training(config):
    (Path(config.output) / "train" / COCK).mkdir(parents=True)
    hidden = Path(config.output) / "train" / COCK / ".DS_Store"
    hidden.touch()
    prepare_imagenet(config)
    hidden.unlink()
    assert_whole(config)


def test_a_folder_that_lost_images_is_not_taken_for_complete(config):
    prepare_imagenet(config)
    (Path(config.output) / f"train/{COCK}/{COCK}_20.JPEG").unlink()
    prepare_imagenet(config)
    assert_whole(config)


KILLED = """
import os, signal, sys
from pathlib import Path
from t2t_vit.data.config import PrepareImagenetConfig
from t2t_vit.data.imagenet import prepare_imagenet

moment, countdown, *flags = sys.argv[1:]
countdown, write, replace = int(countdown), Path.write_bytes, Path.replace

def count(is_now):
    global countdown
    countdown -= is_now
    return is_now and countdown == 0

def write_bytes(path, content):
    if count(moment == "writing"):
        write(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

def rename(path, target):
    if count(moment == "written"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(path, target)
    if count(moment == "renamed"):
        os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes, Path.replace = write_bytes, rename
prepare_imagenet(PrepareImagenetConfig(**dict(zip(("train_tar", "val_tar", "devkit", "output"), flags))))
"""


@pytest.mark.parametrize(
    ("moment", "file"),
    [("writing", 1), ("written", 5), ("renamed", 9), ("writing", 12), ("written", 17)],
)
def test_a_run_killed_at_any_moment_is_continued(config, moment, file):
    """Files 1 to 9 are for training, 10 to 16 for validation, 17 says that all is done."""
    flags = [config.train_tar, config.val_tar, config.devkit, config.output]
    run = subprocess.run([sys.executable, "-c", KILLED, moment, str(file), *flags], stdout=subprocess.DEVNULL)
    assert run.returncode == -signal.SIGKILL
    visible = {name: content for name, content in files_of(config).items() if not name.startswith(".")}
    assert len(visible) == file - (moment != "renamed")
    assert visible.items() <= TREE.items()  # whole or not there
    before = inodes(config)
    prepare_imagenet(config)
    assert_whole(config)
    assert inodes(config).items() >= before.items()


def test_a_full_disk_is_told_and_the_next_run_continues(config, monkeypatch):
    replace, done = Path.replace, []

    def replace_until_full(path: Path, target: Path) -> Path:
        if len(done) == 11:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done.append(target)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_until_full)
    assert refusal(config) == (
        f"Cannot write {config.output}/val/{COCK}/ILSVRC2012_val_00000003.JPEG: No space left on device. "
        "Once that is mended, the same command goes on from here."
    )
    assert len(files_of(config)) == 11
    monkeypatch.undo()
    prepare_imagenet(config)
    assert_whole(config)


# The disk


def test_a_small_disk_is_refused_before_anything_is_written(config, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    needed = sum(len(tar(images)) for images in TRAIN.values()) + sum(map(len, VAL.values()))
    assert refusal(config) == (
        f"The images take {needed / 1000:.1f} kB more, and the disk of {config.output} has 10.0 kB free. "
        "Make room, or choose another --output."
    )
    assert files_of(config) == {}


def test_what_is_there_takes_no_room_again(config, monkeypatch):
    prepare_imagenet(config)
    (Path(config.output) / "classes.json").unlink()
    needed = sum(len(tar(images)) for images in TRAIN.values()) + sum(map(len, VAL.values()))
    room = needed - sum(map(len, TREE.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    prepare_imagenet(config)
    assert_whole(config)


def test_an_output_that_is_a_file(config):
    Path(config.output).parent.mkdir()
    Path(config.output).touch()
    assert refusal(config) == f"Cannot write into --output {config.output}: Not a directory. Choose another."


def test_an_output_with_other_images(config):
    stranger = Path(config.output) / "train" / "cat"
    stranger.mkdir(parents=True)
    assert refusal(config) == (
        f"{config.output} has folders that are no class of the devkit: train/cat. Choose another --output."
    )
    stranger.rmdir()
    (Path(config.output) / "val" / SHARK).mkdir(parents=True)
    (Path(config.output) / "val" / SHARK / "mine.JPEG").touch()
    assert refusal(config) == (
        f"{config.output} does not hold what the devkit counts: val/{SHARK} (3 images, not 2). Where images are "
        "missing the archive is cut or damaged: download it again. Where there are too many, other files lie among "
        "them: remove those."
    )


# Wrong, cut and damaged archives


@pytest.mark.parametrize(
    ("field", "published"),
    [
        ("train_tar", "ILSVRC2012_img_train.tar"),
        ("val_tar", "ILSVRC2012_img_val.tar"),
        ("devkit", "ILSVRC2012_devkit_t12.tar.gz"),
    ],
)
def test_an_archive_that_is_not_there_or_none(config, field, published):
    path = Path(getattr(config, field))
    label = f"--{field.replace('_', '-')} {path}"
    path.write_text("<html>Log in to download</html>" * 100)
    not_gzip = "Not a gzipped file (b'<h')"
    reason = not_gzip if field == "devkit" else "invalid header"
    assert refusal(config) == f"{label} is cut, damaged or not {published}: {reason}. Download that again."
    path.unlink()
    assert refusal(config) == f"Cannot read {label}: No such file or directory. Expected {published}."
    path.mkdir()
    assert refusal(config) == f"Cannot read {label}: Is a directory. Expected {published}."


def test_swapped_archives(config):
    train, val = Path(config.train_tar).read_bytes(), Path(config.val_tar).read_bytes()
    Path(config.train_tar).write_bytes(val)
    assert refusal(config) == (
        f"Expected nothing but files such as {TENCH}.tar in --train-tar {config.train_tar}, got the file "
        "'ILSVRC2012_val_00000001.JPEG'. Give ILSVRC2012_img_train.tar as it was published."
    )
    Path(config.train_tar).write_bytes(train)
    Path(config.val_tar).write_bytes(train)
    assert refusal(config) == (
        f"Expected nothing but files such as ILSVRC2012_val_00000001.JPEG in --val-tar {config.val_tar}, got the file "
        f"'{TENCH}.tar'. Give ILSVRC2012_img_val.tar as it was published."
    )
    assert not Path(config.output).exists()


def without(files: dict, *names: str) -> dict:
    return {name: content for name, content in files.items() if name not in names}


OTHER_YEAR = tar(
    {"devkit-1.0/data/meta.mat": b"", "devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt": b""}, "w:gz"
)
THOUSAND = {f"n{i:08d}": "a class" for i in range(1000)}


@pytest.mark.parametrize(
    ("field", "content", "reason"),
    [
        ("train_tar", train_tar(TRAIN)[:20_000], "unexpected end of data"),
        ("val_tar", tar(VAL)[:5000], "unexpected end of data"),
        ("train_tar", train_tar(without(TRAIN, SHARK)), f"of the 3 files that the devkit lists it lacks {SHARK}.tar"),
        (
            "train_tar",
            train_tar(TRAIN | {"n99999999": {}}),
            "of the 3 files that the devkit lists it has besides n99999999.tar",
        ),
        (
            "val_tar",
            tar(without(VAL, "ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000007.JPEG")),
            "of the 7 files that the devkit lists it lacks ILSVRC2012_val_00000002.JPEG, ILSVRC2012_val_00000007.JPEG",
        ),
        (
            "val_tar",
            tar(VAL | {"ILSVRC2012_val_00000008.JPEG": b""}),
            "of the 7 files that the devkit lists it has besides ILSVRC2012_val_00000008.JPEG",
        ),
        ("devkit", devkit()[:-100], "Compressed file ended before the end-of-stream marker was reached"),
        ("devkit", OTHER_YEAR, f"it has no {LABELS[22:]}, as if of another year"),
        (
            "devkit",
            devkit(meta=None, labels=None),
            f"it has no {META[22:]} and no {LABELS[22:]}, as if of another year",
        ),
        ("devkit", devkit(meta=b"synsets"), "Mat file appears to be truncated"),
        ("devkit", devkit(labels=b"1\n2\n4\n"), "the ground truth has 4, which is no class of the table"),
        ("devkit", devkit(labels=b"1\ntwo\n"), "invalid literal for int() with base 10: 'two'"),
        ("devkit", devkit(labels=b""), "it lists no images"),
        (
            "devkit",
            devkit(meta=synset_table({"../../up": "up"} | WORDS, {"../../up": 1} | NUM_TRAIN)),
            "it lists ../../up among its synsets",
        ),
        (
            "devkit",
            devkit(meta=synset_table(THOUSAND, dict.fromkeys(THOUSAND, 1300))),
            "it lists 1,000 classes, 1,300,000 training images, 7 validation images, where the published one lists "
            "1,000 classes, 1,281,167 training images, 50,000 validation images",
        ),
    ],
)
def test_what_is_wrong_with_an_archive_is_told_before_anything_is_written(config, field, content, reason):
    Path(getattr(config, field)).write_bytes(content)
    label = f"--{field.replace('_', '-')} {getattr(config, field)}"
    published = {"train_tar": "img_train.tar", "val_tar": "img_val.tar", "devkit": "devkit_t12.tar.gz"}[field]
    message = refusal(config)
    assert message == f"{label} is cut, damaged or not ILSVRC2012_{published}: {reason}. Download that again."
    assert not Path(config.output).exists()


def test_a_damaged_devkit_does_not_reach_the_reader_of_its_table(config):
    """Its checksum is compared first: scipy crashes on damaged tables."""
    content = bytearray(devkit())
    content[-8] ^= 1  # of the checksum itself, so that only it can tell
    Path(config.devkit).write_bytes(content)
    assert "CRC check failed" in refusal(config)


def test_a_published_devkit_passes(config):
    """Its 1,000 classes have 1,281,167 and 50,000 images; so that is what the other archives must hold."""
    num_train = dict(zip(THOUSAND, [1300] * 999 + [1_281_167 - 999 * 1300], strict=True))
    ground_truth = "".join(f"{i % 1000 + 1}\n" for i in range(50_000)).encode()
    Path(config.devkit).write_bytes(devkit(meta=synset_table(THOUSAND, num_train), labels=ground_truth))
    assert "of the 1,000 files that the devkit lists it lacks n00000000.tar, n00000001.tar, " in refusal(config)


@pytest.mark.parametrize(
    ("content", "reason"), [(tar(TRAIN[SHARK])[:1700], "unexpected end of data"), (b"?" * 10_240, "invalid header")]
)
def test_a_broken_tar_inside_the_training_archive_is_named(config, content, reason):
    tars = {f"{synset}.tar": tar(images) for synset, images in TRAIN.items()}
    Path(config.train_tar).write_bytes(tar(tars | {f"{SHARK}.tar": content}))
    assert refusal(config) == (
        f"{SHARK}.tar in --train-tar {config.train_tar} is cut, damaged or not ILSVRC2012_img_train.tar: {reason}. "
        "Download that again."
    )


def test_classes_that_lack_images_are_counted_and_named(config):
    short = {TENCH: without(TRAIN[TENCH], f"{TENCH}_10.JPEG"), SHARK: {}, COCK: TRAIN[COCK]}
    Path(config.train_tar).write_bytes(train_tar(short))
    assert refusal(config) == (
        f"{config.output} does not hold what the devkit counts: train/{TENCH} (2 images, not 3), train/{SHARK} "
        "(0 images, not 2). Where images are missing the archive is cut or damaged: download it again. Where there are "
        "too many, other files lie among them: remove those."
    )
    Path(config.train_tar).write_bytes(train_tar(TRAIN))
    prepare_imagenet(config)
    assert_whole(config)


# Members that are no plain images


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def sparse(name: str) -> tarfile.TarInfo:
    """A terabyte of zeros."""
    member = tarfile.TarInfo(name)
    member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": f"{10**12}"}
    return member


@pytest.mark.parametrize("place", ["among the class tars", "in a class tar", "among the validation images"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda name: tarfile.TarInfo(f"../{name}"), "file"),
        (lambda name: tarfile.TarInfo(f"{name}/../../../{name}"), "file"),
        (lambda name: tarfile.TarInfo(f"/tmp/{name}"), "file"),
        (lambda name: tarfile.TarInfo(f"{name}\n"), "file"),
        (lambda name: special(name, tarfile.DIRTYPE), "folder"),
        (lambda name: special(name, tarfile.SYMTYPE, "/etc/passwd"), "link or device"),
        (lambda name: special(name, tarfile.LNKTYPE, "../train.tar"), "link or device"),
        (lambda name: special(name, tarfile.CHRTYPE), "link or device"),
        (lambda name: special(name, tarfile.FIFOTYPE), "link or device"),
        (sparse, "sparse file"),
    ],
)
def test_what_is_no_plain_image_is_refused_by_its_name(config, tmp_path, make, kind, place):
    before = set(tmp_path.iterdir())
    if place == "in a class tar":
        member, example = make(f"{SHARK}_1000.JPEG"), f"{SHARK}_1.JPEG"
        label, published = f"{SHARK}.tar in --train-tar {config.train_tar}", "ILSVRC2012_img_train.tar"
        Path(config.train_tar).write_bytes(train_tar(TRAIN | {SHARK: {"": member} | TRAIN[SHARK]}))
    elif place == "among the class tars":
        member, example = make(f"{COCK}.tar"), f"{TENCH}.tar"
        label, published = f"--train-tar {config.train_tar}", "ILSVRC2012_img_train.tar"
        tars = {f"{synset}.tar": tar(images) for synset, images in TRAIN.items()}
        Path(config.train_tar).write_bytes(tar(tars | {"": member}))
    else:
        member, example = make("ILSVRC2012_val_00000007.JPEG"), "ILSVRC2012_val_00000001.JPEG"
        label, published = f"--val-tar {config.val_tar}", "ILSVRC2012_img_val.tar"
        Path(config.val_tar).write_bytes(tar(VAL | {"": member}))
    assert refusal(config) == (
        f"Expected nothing but files such as {example} in {label}, got the {kind} {member.name!r}. "
        f"Give {published} as it was published."
    )
    output = Path(config.output)
    assert set(tmp_path.iterdir()) - {output.parent} == before
    assert files_of(config).keys() <= {name for name in TREE if name.startswith(f"train/{TENCH}")}
    assert not output.exists() or {path.name for path in output.iterdir()} == {"train", "val"}
