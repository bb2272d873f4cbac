"""ImageNet's folders, from its three published archives."""

import gzip
import itertools
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

from rich.filesize import decimal
from scipy.io import loadmat

from t2t_vit.data.config import PrepareImagenetConfig
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.runtime.console import Display

# Synset to words of each class. Written last: a folder that has it is complete.
CLASSES = "classes.json"
META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
# By the readme of the published devkit.
NUM_CLASSES, PUBLISHED = 1000, "1,000 classes, 1,281,167 training images, 50,000 validation images"
UNFINISHED = ".unfinished-"


def prepare_imagenet(config: PrepareImagenetConfig) -> None:
    """Fills OUTPUT/train and OUTPUT/val with a folder of images for each synset, and writes OUTPUT/classes.json.

    An image file is whole or absent, so a run continues one that was killed: it skips images of the right size.

    Raises:
        UserError: an archive is cut, damaged or another one; the disk is too small or cannot be written; or the
            folders do not hold as many images as the devkit counts.
    """
    display = Display()
    output = Path(config.output).expanduser()
    devkit = _read_devkit(_Archive.given("--devkit", config.devkit, "ILSVRC2012_devkit_t12.tar.gz"))
    if _is_complete(output, devkit):
        display.say(f"{output} is complete: {devkit}. To have it checked again, remove its {CLASSES}.")
        return

    train = _Archive.given("--train-tar", config.train_tar, "ILSVRC2012_img_train.tar")
    val = _Archive.given("--val-tar", config.val_tar, "ILSVRC2012_img_val.tar")
    display.say(f"Reading what {train.path} and {val.path} contain.")
    class_tars = _list(train, r"n[0-9]{8}\.tar", {f"{synset}.tar" for synset in devkit.words})
    val_images = _list(val, r"ILSVRC2012_val_[0-9]{8}\.JPEG", set(devkit.val))
    _make_folders(output, devkit)
    _refuse_full_disk(output, devkit, sum(member.size for member in class_tars + val_images))

    num_images = sum(devkit.num_train.values()) + len(devkit.val)
    with (
        tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=output) as folder,
        display.steps("extracting", num_images) as steps,
    ):
        unfinished = Path(folder, "file")
        for image in itertools.chain(
            _extract_train(train, class_tars, output / "train", unfinished),
            _extract_val(val, val_images, output / "val", unfinished, synsets=devkit.val),
        ):
            steps.advance(image)
        if wrong := _wrong_counts(output, devkit):
            raise UserError(
                f"{output} does not hold what the devkit counts: {abbreviate(wrong)}. Where images are missing the "
                "archive is cut or damaged: download it again. Where there are too many, other files lie among them: "
                "remove those."
            )
        os.sync()  # a power cut must not leave classes.json without the images
        _write(json.dumps(devkit.words, indent=1).encode(), output / CLASSES, unfinished)
    display.say(f"{output} is complete: {devkit}. Next: t2t-vit data {output} --verify")


@dataclass(frozen=True)
class _Archive:
    """One of the three archives.

    Attributes:
        label: its name in errors; while a tar inside it is read, that tar's.
        published: its published file name.
    """

    label: str
    path: Path
    published: str

    @classmethod
    def given(cls, flag: str, path: str, published: str) -> "_Archive":
        return cls(f"{flag} {path}", Path(path).expanduser(), published)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns a failure to read the archive into a `UserError`."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a broken file makes tarfile, gzip and scipy raise nearly anything
            if isinstance(error, OSError) and error.strerror:
                raise UserError(f"Cannot read {self.label}: {error.strerror}. Expected {self.published}.") from error
            raise self.broken(str(error) or type(error).__name__) from error

    def broken(self, reason: str) -> UserError:
        """The error for an archive that is not as it was published."""
        return UserError(
            f"{self.label} is cut, damaged or not {self.published}: {reason.rstrip('.')}. Download that again."
        )


# The development kit


@dataclass(frozen=True)
class _Devkit:
    """What the development kit says of the images.

    Attributes:
        words: maps a synset to the class's names, such as "tench, Tinca tinca".
        num_train: maps a synset to the number of its training images.
        val: maps a validation image's file name to its synset.
    """

    words: dict[str, str]
    num_train: dict[str, int]
    val: dict[str, str]

    def __str__(self) -> str:
        num_train = sum(self.num_train.values())
        return f"{len(self.words):,} classes, {num_train:,} training images, {len(self.val):,} validation images"

    @property
    def counts(self) -> dict[str, int]:
        """The number of images in each folder, such as train/n01440764."""
        num_val = Counter(self.val.values())
        train = {f"train/{synset}": count for synset, count in self.num_train.items()}
        return train | {f"val/{synset}": num_val[synset] for synset in self.words}


def _read_devkit(archive: _Archive) -> _Devkit:
    files: dict[str, bytes] = {}
    with archive.reading():
        with gzip.open(archive.path) as file:
            content = file.read()  # reads the checksum at the end too: a damaged meta.mat makes scipy crash
        with tarfile.open(fileobj=BytesIO(content)) as tar:
            for member in tar:
                name = "/".join(PurePosixPath(member.name).parts[-2:])
                if name in (META, GROUND_TRUTH) and member.isfile():
                    files[name] = _open_member(tar, member).read()
    missing = [name for name in (META, GROUND_TRUTH) if name not in files]
    if missing:
        raise archive.broken(f"it has no {' and no '.join(missing)}, as if of another year")
    with archive.reading():
        devkit = _parse_devkit(files[META], files[GROUND_TRUTH].decode())
    strange = [synset for synset in devkit.words if not re.fullmatch("n[0-9]{8}", synset)]
    if strange:  # they would become names of folders
        raise archive.broken(f"it lists {abbreviate(strange)} among its synsets")
    if not devkit.val:
        raise archive.broken("it lists no images")
    if len(devkit.words) == NUM_CLASSES and str(devkit) != PUBLISHED:
        raise archive.broken(f"it lists {devkit}, where the published one lists {PUBLISHED}")
    return devkit


def _parse_devkit(meta: bytes, ground_truth: str) -> _Devkit:
    synsets: dict[int, str] = {}  # by the number that stands for it in the ground truth
    words: dict[str, str] = {}
    num_train: dict[str, int] = {}
    for row in loadmat(BytesIO(meta), variable_names="synsets", squeeze_me=True)["synsets"]:
        if row["num_children"] == 0:  # the others are nodes of WordNet's tree above the classes
            synset = str(row["WNID"])
            synsets[int(row["ILSVRC2012_ID"])] = synset
            words[synset] = str(row["words"])
            num_train[synset] = int(row["num_train_images"])
    labels = [int(line) for line in ground_truth.split()]
    unknown = sorted(set(labels) - set(synsets))
    if unknown:
        raise ValueError(f"the ground truth has {unknown[0]}, which is no class of the table")
    # The i-th line is for the i-th file name in alphabetical order.
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": synsets[label] for i, label in enumerate(labels, 1)}
    return _Devkit(words, num_train, val)


# Reading the archives of images


def _list(archive: _Archive, pattern: str, expected: set[str]) -> list[tarfile.TarInfo]:
    """The members of an archive, if they are the expected ones."""
    with archive.reading(), tarfile.open(archive.path, "r:") as tar:
        members = list(_plain_files(tar, pattern, archive, example=min(expected)))
    names = {member.name for member in members}
    for difference, verb in ((expected - names, "lacks"), (names - expected, "has besides")):
        if difference:
            raise archive.broken(
                f"of the {len(expected):,} files that the devkit lists it {verb} {abbreviate(sorted(difference))}"
            )
    return members


def _plain_files(tar: tarfile.TarFile, pattern: str, archive: _Archive, *, example: str) -> Iterator[tarfile.TarInfo]:
    """The members; refuses links, devices, odd names, and sparse files, whose few bytes may stand for too many."""
    for member in tar:
        if not member.isreg() or member.issparse() or not re.fullmatch(pattern, member.name):
            kinds = {"folder": member.isdir(), "sparse file": member.issparse(), "file": member.isreg()}
            kind = next((name for name, fits in kinds.items() if fits), "link or device")
            raise UserError(
                f"Expected nothing but files such as {example} in {archive.label}, got the {kind} {member.name!r}. "
                f"Give {archive.published} as it was published."
            )
        yield member


def _extract_train(
    archive: _Archive, class_tars: Iterable[tarfile.TarInfo], folder: Path, unfinished: Path
) -> Iterator[str]:
    """Writes the images of a tar of tars, and yields the name of each."""
    with archive.reading(), tarfile.open(archive.path, "r:") as outer:
        for class_tar in class_tars:
            synset = class_tar.name.removesuffix(".tar")
            inside = replace(archive, label=f"{class_tar.name} in {archive.label}")
            with inside.reading(), tarfile.open(fileobj=_open_member(outer, class_tar), mode="r:") as tar:
                for image in _plain_files(tar, rf"{synset}_[0-9]+\.JPEG", inside, example=f"{synset}_1.JPEG"):
                    yield _extract(tar, image, folder / synset, unfinished)


def _extract_val(
    archive: _Archive, images: Iterable[tarfile.TarInfo], folder: Path, unfinished: Path, *, synsets: Mapping[str, str]
) -> Iterator[str]:
    """Writes the images of a tar, each to the folder of its synset, and yields the name of each."""
    with archive.reading(), tarfile.open(archive.path, "r:") as tar:
        for image in images:
            yield _extract(tar, image, folder / synsets[image.name], unfinished)


def _extract(tar: tarfile.TarFile, image: tarfile.TarInfo, folder: Path, unfinished: Path) -> str:
    """Writes an image, unless a file of its size is there, and returns its name."""
    target = folder / image.name
    if not target.exists() or target.stat().st_size != image.size:
        _write(_open_member(tar, image).read(), target, unfinished)
    return image.name


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # None stands for what is no file
    return file


# Writing the folders


def _write(content: bytes, target: Path, unfinished: Path) -> None:
    """Writes the content to a temporary file and renames it, so that the target is whole or absent."""
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except OSError as error:
        raise UserError(
            f"Cannot write {target}: {error.strerror}. Once that is mended, the same command goes on from here."
        ) from error


def _make_folders(output: Path, devkit: _Devkit) -> None:
    """Makes the class folders, and removes what a killed run left unfinished."""
    try:
        if strange := sorted(set(_count_files(output)) - set(devkit.counts)):
            raise UserError(
                f"{output} has folders that are no class of the devkit: {abbreviate(strange)}. Choose another --output."
            )
        for folder in devkit.counts:
            (output / folder).mkdir(parents=True, exist_ok=True)
        for leftover in output.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
    except OSError as error:
        raise UserError(f"Cannot write into --output {output}: {error.strerror}. Choose another.") from error


def _refuse_full_disk(output: Path, devkit: _Devkit, needed: int) -> None:
    missing = needed - sum(file.stat().st_size for folder in devkit.counts for file in os.scandir(output / folder))
    free = shutil.disk_usage(output).free
    if missing > free:
        raise UserError(
            f"The images take {decimal(missing)} more, and the disk of {output} has {decimal(free)} free. "
            "Make room, or choose another --output."
        )


def _count_files(output: Path) -> dict[str, int]:
    """The number of files in each class folder, without hidden ones, which training does not see either."""
    return {
        f"{split}/{folder.name}": sum(not file.name.startswith(".") for file in os.scandir(folder))
        for split in ("train", "val")
        if (output / split).exists()
        for folder in os.scandir(output / split)
        if folder.is_dir() and not folder.name.startswith(".")
    }


def _wrong_counts(output: Path, devkit: _Devkit) -> list[str]:
    """A phrase for each class folder whose number of images is not the devkit's."""
    found, expected = _count_files(output), devkit.counts
    return [
        f"{folder} ({found.get(folder, 0)} images, not {expected.get(folder, 0)})"
        for folder in sorted({*expected, *found})
        if found.get(folder) != expected.get(folder)
    ]


def _is_complete(output: Path, devkit: _Devkit) -> bool:
    try:
        words = json.loads((output / CLASSES).read_bytes())
    except (OSError, ValueError):
        return False
    return words == devkit.words and not _wrong_counts(output, devkit)
