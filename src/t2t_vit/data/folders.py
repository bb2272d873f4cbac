"""Class folders, on disk or packed in tar files."""

import os
import posixpath
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from t2t_vit.data.images import ImageSet, file_images
from t2t_vit.data.splitting import Split, Splits
from t2t_vit.data.tars import index_tar, tar_reader
from t2t_vit.errors import UserError, abbreviate

VAL_FOLDERS = ("val", "validation")
# Folders that stand for a split of the data, not for a class.
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def folder_splits(data: str) -> Splits:
    """The splits of a folder or a tar file: train/ and val/ (or validation/) with class folders, or only class folders.

    In a folder, train.tar stands for train/, and so on.

    Raises:
        UserError: the data is a file but no tar, or has two validation splits.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        tree = _Tree(path, partial(_list_folder, path), lambda files: partial(_read_file, path, files))
    elif path.suffix.lower() == ".tar":
        tree = _tar_tree(path)
    else:
        raise UserError(
            f"Expected a folder or a .tar file, got the file {data!r}. Give the folder that holds train/ and val/."
        )
    folders, files = tree.children(tree.top)
    splits: dict[str, Split] = {}
    for name in ("train", *VAL_FOLDERS):
        if name in folders:
            folder = posixpath.join(tree.top, name)
            splits[name] = Split(tree.title(folder), partial(_read_classes, tree, folder, name))
        elif (tar := f"{name}.tar") in files:  # on disk: inside a tar file this, too, is a folder
            splits[name] = Split(str(path / tar), partial(_read_tar, path / tar, name))
    if not splits:
        return Splits(str(path), whole=Split(str(path), partial(_read_classes, tree, tree.top, "")))
    val = [splits[name] for name in VAL_FOLDERS if name in splits]
    if len(val) > 1:
        raise UserError(f"{path} has both val/ and validation/. Keep the one to validate on.")
    return Splits(str(path), splits.get("train"), val[0] if val else None)


@dataclass(frozen=True)
class _Tree:
    """Folders in folders, on disk or in a tar file.

    Attributes:
        root: the folder, or the tar file.
        children: maps a folder to the sorted names of the folders and of the files in it, without hidden ones.
        reader: maps paths of files to a function from an index to the content of that file.
        top: the folder where the tree begins.
    """

    root: Path
    children: Callable[[str], tuple[list[str], list[str]]]
    reader: Callable[[Sequence[str]], Callable[[int], bytes]]
    top: str = ""

    def title(self, folder: str) -> str:
        """The folder's name in messages."""
        return str(self.root / folder)

    def files(self, folder: str) -> list[str]:
        """The files at any depth in a folder, sorted, as paths relative to it."""
        folders, files = self.children(folder)
        below = [f"{name}/{file}" for name in folders for file in self.files(posixpath.join(folder, name))]
        return sorted(files + below)


def _list_folder(root: Path, folder: str) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    files: list[str] = []
    try:
        for entry in os.scandir(root / folder):
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise UserError(
            f"The folder {error.filename} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    return sorted(folders), sorted(files)


def _read_file(root: Path, files: Sequence[str], index: int) -> bytes:
    return (root / files[index]).read_bytes()


def _tar_tree(path: Path) -> _Tree:
    """The files of a tar file; the tree begins where it branches: most tar files hold a single folder."""
    extents = index_tar(path)
    children = partial(_list_names, sorted(extents))
    top = ""
    while len((listed := children(top))[0]) == 1 and not listed[1]:
        top = posixpath.join(top, listed[0][0])
    return _Tree(path, children, lambda files: tar_reader([path], [(0, *extents[file]) for file in files]), top)


def _list_names(names: Sequence[str], folder: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, from the sorted paths of all files."""
    prefix = f"{folder}/" if folder else ""
    first = bisect_left(names, prefix)
    end = bisect_left(names, f"{folder}0") if folder else len(names)  # 0 follows the slash
    below = [name[len(prefix) :].partition("/") for name in names[first:end]]
    return sorted({name for name, slash, _ in below if slash}), [name for name, slash, _ in below if not slash]


def _read_tar(path: Path, split: str) -> tuple[tuple[str, ...], ImageSet]:
    tree = _tar_tree(path)
    return _read_classes(tree, tree.top, split)


def _read_classes(tree: _Tree, folder: str, split: str) -> tuple[tuple[str, ...], ImageSet]:
    """The sorted class names and the images of a folder with class folders.

    Args:
        split: the start of image names, so that they are the same in folders and in tar files.
    """
    class_names = _list_class_folders(tree, folder)
    files: list[str] = []
    labels: list[int] = []
    without: list[str] = []
    for label, class_name in enumerate(class_names):
        found = tree.files(posixpath.join(folder, class_name))
        images = [posixpath.join(class_name, file) for file in found if file.lower().endswith(IMG_EXTENSIONS)]
        if not images:
            without.append(f"{class_name} ({'files, but no image' if found else 'empty'})")
        files += images
        labels += [label] * len(images)
    if without:
        raise UserError(
            f"Every class folder needs an image, and in {tree.title(folder)} these have none: {abbreviate(without)}. "
            f"Add images ({' '.join(IMG_EXTENSIONS)}) or remove the folders."
        )
    read = tree.reader([posixpath.join(folder, file) for file in files])
    return class_names, file_images(read, [posixpath.join(split, file) for file in files], labels)


def _list_class_folders(tree: _Tree, folder: str) -> tuple[str, ...]:
    class_names, files = tree.children(folder)
    expected = f"Expected train/ and val/ with class folders, or at least two class folders, in {tree.title(folder)}"
    if not class_names:
        raise UserError(f"{expected}; it {'has files but no folder' if files else 'is empty'}.")
    if all(name.lower() in SPLIT_FOLDERS for name in class_names):
        raise UserError(f"{expected}; {abbreviate(class_names)} look like parts of the data: call them train and val.")
    if len(class_names) == 1:
        raise UserError(f"{expected}; it has only {class_names[0]!r}. Are the classes inside that?")
    return tuple(class_names)
