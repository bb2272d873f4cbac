"""ImageNet's folders from the three archives in which it is published."""

import gzip
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

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from scipy.io import loadmat

from t2t_vit.data.config import PrepareImagenetConfig
from t2t_vit.errors import UserError, abbreviate

# Synset to words of each class. It is written last, so a folder that has it is whole.
CLASSES = "classes.json"
META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
# Training and validation images of the 1,000 classes, by the readme of the published devkit.
NUM_CLASSES, NUM_TRAIN, NUM_VAL = 1000, 1_281_167, 50_000
UNFINISHED = ".unfinished-"


def prepare_imagenet(config: PrepareImagenetConfig) -> None:
    """Fills OUTPUT/train and OUTPUT/val with a folder of images for each synset, and writes OUTPUT/classes.json.

    An image is there whole or not at all. So the next run continues one that was killed, and does not write again what
    is there in its right size.

    Raises:
        UserError: an archive is cut, damaged or another one; the disk is too small or cannot be written; or the
            folders do not hold in the end what the devkit counts.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    output = Path(config.output).expanduser()
    devkit = _read_devkit(_Archive.given("--devkit", config.devkit, "ILSVRC2012_devkit_t12.tar.gz"))
    if _is_complete(output, devkit):
        console.print(f"{output} is complete: {devkit}. To have it checked again, remove its {CLASSES}.")
        return

    train = _Archive.given("--train-tar", config.train_tar, "ILSVRC2012_img_train.tar")
    val = _Archive.given("--val-tar", config.val_tar, "ILSVRC2012_img_val.tar")
    console.print(f"Reading what {train.path} and {val.path} contain.")
    class_tars = _list(train, r"n[0-9]{8}\.tar", {f"{synset}.tar" for synset in devkit.words})
    val_images = _list(val, r"ILSVRC2012_val_[0-9]{8}\.JPEG", set(devkit.val))
    _make_folders(output, devkit)
    _refuse_full_disk(output, devkit, sum(member.size for member in class_tars + val_images))

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=output) as folder,
        Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress,
    ):
        unfinished = Path(folder, "file")
        for archive, positions in (
            (train, _extract_train(train, class_tars, output / "train", unfinished)),
            (val, _extract_val(val, val_images, output / "val", unfinished, synsets=devkit.val)),
        ):
            size = archive.path.stat().st_size
            bar = progress.add_task(archive.path.name, total=size)
            for position in positions:
                progress.update(bar, completed=position)
            progress.update(bar, completed=size)  # behind the last image come zeros
        _refuse_wrong_counts(output, devkit)
        os.sync()  # after a power cut the file that stands for completeness must not be there without the images
        _write(json.dumps(devkit.words, indent=1).encode(), output / CLASSES, unfinished)
    console.print(f"{output} is complete: {devkit}. Next: t2t-vit data {output} --verify")


@dataclass(frozen=True)
class _Archive:
    """One of the three archives.

    Attributes:
        label: what an error calls it, or the tar inside it that is being read.
        published: the name under which it is published.
    """

    label: str
    path: Path
    published: str

    @classmethod
    def given(cls, flag: str, path: str, published: str) -> "_Archive":
        return cls(f"{flag} {path}", Path(path).expanduser(), published)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Tells the user what is wrong with the archive when reading it fails."""
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
        return UserError(f"{self.label} is cut, damaged or not {self.published}: {reason}. Download that again.")


# The development kit


@dataclass(frozen=True)
class _Devkit:
    """What the development kit says of the images.

    Attributes:
        words: synset to the class's names, such as "tench, Tinca tinca".
        num_train: synset to the number of its training images.
        val: file name of each validation image to its synset.
    """

    words: dict[str, str]
    num_train: dict[str, int]
    val: dict[str, str]

    def __str__(self) -> str:
        return _in_words(len(self.words), sum(self.num_train.values()), len(self.val))

    @property
    def counts(self) -> dict[str, Mapping[str, int]]:
        """The number of images of each synset, in train and in val."""
        num_val = Counter(self.val.values())
        return {"train": self.num_train, "val": {synset: num_val[synset] for synset in self.words}}


def _in_words(num_classes: int, num_train: int, num_val: int) -> str:
    return f"{num_classes:,} classes, {num_train:,} training images, {num_val:,} validation images"


def _read_devkit(archive: _Archive) -> _Devkit:
    files: dict[str, bytes] = {}
    with archive.reading():
        with gzip.open(archive.path) as file:
            content = file.read()  # to the end, where its checksum is: a damaged meta.mat makes scipy crash
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
    published = _in_words(NUM_CLASSES, NUM_TRAIN, NUM_VAL)
    if len(devkit.words) == NUM_CLASSES and str(devkit) != published:
        raise archive.broken(f"it lists {devkit}, where the published one lists {published}")
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
    """The members of an archive, after a check that they are the expected ones."""
    example = min(expected)
    with archive.reading(), tarfile.open(archive.path, "r:") as tar:
        for member in tar:
            _refuse_stranger(member, pattern, archive, example=example)
        members = tar.getmembers()
    names = {member.name for member in members}
    for difference, verb in ((expected - names, "lacks"), (names - expected, "has besides")):
        if difference:
            raise archive.broken(
                f"of the {len(expected):,} files that the devkit lists it {verb} {abbreviate(sorted(difference))}"
            )
    return members


def _refuse_stranger(member: tarfile.TarInfo, pattern: str, archive: _Archive, *, example: str) -> None:
    """Refuses what is no plain file of the expected name: links, devices, names that lead out of the folder.

    A sparse file is no plain one either: few bytes can stand for more than fit into memory.
    """
    if not member.isreg() or member.issparse() or not re.fullmatch(pattern, member.name):
        kinds = {"folder": member.isdir(), "sparse file": member.issparse(), "file": member.isreg()}
        kind = next((name for name, fits in kinds.items() if fits), "link or device")
        raise UserError(
            f"Expected nothing but files such as {example} in {archive.label}, got the {kind} {member.name!r}. "
            f"Give {archive.published} as it was published."
        )


def _extract_train(
    archive: _Archive, class_tars: Iterable[tarfile.TarInfo], folder: Path, unfinished: Path
) -> Iterator[int]:
    """Writes the images of a tar of tars, and yields after each how far the archive is read, in bytes."""
    with archive.reading(), tarfile.open(archive.path, "r:") as outer:
        for class_tar in class_tars:
            synset = class_tar.name.removesuffix(".tar")
            inside = replace(archive, label=f"{class_tar.name} in {archive.label}")
            with inside.reading(), tarfile.open(fileobj=_open_member(outer, class_tar), mode="r:") as images:
                for image in images:
                    _refuse_stranger(image, rf"{synset}_[0-9]+\.JPEG", inside, example=f"{synset}_1.JPEG")
                    _extract(images, image, folder / synset, unfinished)
                    yield class_tar.offset_data + images.offset


def _extract_val(
    archive: _Archive, images: Iterable[tarfile.TarInfo], folder: Path, unfinished: Path, *, synsets: Mapping[str, str]
) -> Iterator[int]:
    """As `_extract_train`, for a tar of images.

    Args:
        synsets: file name to synset.
    """
    with archive.reading(), tarfile.open(archive.path, "r:") as tar:
        for image in images:
            _extract(tar, image, folder / synsets[image.name], unfinished)
            yield image.offset_data + image.size


def _extract(tar: tarfile.TarFile, image: tarfile.TarInfo, folder: Path, unfinished: Path) -> None:
    """Writes an image, unless it is there in its right size."""
    target = folder / image.name
    try:
        is_there = target.stat().st_size == image.size
    except OSError:
        is_there = False
    if not is_there:
        _write(_open_member(tar, image).read(), target, unfinished)


def _open_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None  # None stands for what is no file
    return file


# Writing the folders


def _write(content: bytes, target: Path, unfinished: Path) -> None:
    """Makes the file whole or not at all, by way of a file that gets its name when it is written."""
    try:
        unfinished.write_bytes(content)
        unfinished.replace(target)
    except OSError as error:
        raise UserError(
            f"Cannot write {target}: {error.strerror}. Once that is mended, the same command goes on from here."
        ) from error


def _make_folders(output: Path, devkit: _Devkit) -> None:
    """Makes the folders of the classes, and removes what a run that was killed left unfinished."""
    try:
        for part in devkit.counts:
            strange = set(_count_files(output / part)) - set(devkit.words)
            if strange:
                raise UserError(
                    f"{output / part} has folders that are no class of the devkit: {abbreviate(sorted(strange))}. "
                    "Choose another --output."
                )
            for synset in devkit.words:
                (output / part / synset).mkdir(parents=True, exist_ok=True)
        for leftover in output.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
    except OSError as error:
        raise UserError(f"Cannot write into --output {output}: {error.strerror}. Choose another.") from error


def _refuse_full_disk(output: Path, devkit: _Devkit, needed: int) -> None:
    folders = [output / part / synset for part in devkit.counts for synset in devkit.words]
    missing = needed - sum(file.stat().st_size for folder in folders for file in os.scandir(folder))
    free = shutil.disk_usage(output).free
    if missing > free:
        raise UserError(
            f"The images take {decimal(missing)} more, and the disk of {output} has {decimal(free)} free. "
            "Make room, or choose another --output."
        )


def _count_files(folder: Path) -> dict[str, int]:
    """The number of files in each class folder; what is hidden does not count, neither here nor for training."""
    if not folder.exists():
        return {}
    classes = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return {entry.name: sum(not file.name.startswith(".") for file in os.scandir(entry)) for entry in classes}


def _wrong_counts(output: Path, devkit: _Devkit) -> list[str]:
    """Which class folders hold another number of images than the devkit says, and what they hold, in words."""
    wrong = []
    for part, expected in devkit.counts.items():
        found = _count_files(output / part)
        for synset in sorted({*expected, *found}):
            if found.get(synset) != expected.get(synset):
                wrong.append(f"{part}/{synset} ({found.get(synset, 0)} images, not {expected.get(synset, 0)})")
    return wrong


def _is_complete(output: Path, devkit: _Devkit) -> bool:
    try:
        words = json.loads((output / CLASSES).read_bytes())
    except (OSError, ValueError):
        return False
    return words == devkit.words and not _wrong_counts(output, devkit)


def _refuse_wrong_counts(output: Path, devkit: _Devkit) -> None:
    wrong = _wrong_counts(output, devkit)
    if wrong:
        raise UserError(
            f"{output} does not hold what the devkit counts: {abbreviate(wrong)}. Where images are missing the archive "
            "is cut or damaged: download it again. Where there are too many, other files lie among them: remove those."
        )
