"""Class folders, on disk or packed in tar files."""

import os
import posixpath
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from t2t_vit.data.crops import Crop
from t2t_vit.data.images import ImageSet, Part, Parts, read_image
from t2t_vit.data.tars import TarTree
from t2t_vit.errors import UserError, abbreviate

VAL_FOLDERS = ("val", "validation")
# Folders that stand for a part of the data, not for a class of it.
PART_FOLDERS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def find_parts(data: str) -> Parts:
    """The parts of a folder or a tar file: train/ and val/ (or validation/) with class folders, or only class folders.

    In a folder, train.tar stands for train/, and so on.

    Raises:
        UserError: there is a file that is no tar, or two validation parts.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        tree: Tree = FolderTree(path)
        top = ""
    elif path.suffix.lower() == ".tar":
        tree = TarTree(path)
        top = tree.top
    else:
        raise UserError(
            f"Expected a folder or a .tar file, got the file {data!r}. Give the folder that holds train/ and val/."
        )
    folders, files = tree.children(top)
    parts: dict[str, Part] = {}
    for name in ("train", *VAL_FOLDERS):
        if name in folders:
            folder = posixpath.join(top, name)
            parts[name] = Part(tree.title(folder), partial(_read_classes, tree, folder, name))
        elif isinstance(tree, FolderTree) and f"{name}.tar" in files:
            parts[name] = Part(f"{path / name}.tar", partial(_read_tar, path / f"{name}.tar", name))
    if not parts:
        return Parts(str(path), whole=Part(str(path), partial(_read_classes, tree, top, "")))
    val = [parts[name] for name in VAL_FOLDERS if name in parts]
    if len(val) > 1:
        raise UserError(f"{path} has both val/ and validation/. Keep the one to validate on.")
    return Parts(str(path), parts.get("train"), val[0] if val else None)


class Tree(Protocol):
    """Folders in folders."""

    def title(self, folder: str) -> str:
        """What a message calls a folder."""

    def children(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of a folder's folders and of its files, sorted; hidden ones are left out."""

    def files(self, folder: str) -> list[str]:
        """The files below a folder, sorted, as paths from it; hidden ones are left out, and folders that are hidden."""

    def images(self, files: Sequence[str], names: Sequence[str], labels: Sequence[int]) -> ImageSet:
        """The images in these files, by other names."""


class FolderTree:
    """The files of a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def title(self, folder: str) -> str:
        return str(self.root / folder)

    def children(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        try:
            entries = [entry for entry in os.scandir(self.root / folder) if not entry.name.startswith(".")]
        except PermissionError as error:
            raise _unreadable_folder(error) from error
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        return tuple(folders), tuple(sorted({entry.name for entry in entries} - set(folders)))

    def files(self, folder: str) -> list[str]:
        def refuse(error: OSError) -> None:
            raise _unreadable_folder(error) from error

        root = self.root / folder
        prefix = len(str(root)) + 1
        files: list[str] = []
        for parent, folders, names in os.walk(root, followlinks=True, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [f"{parent}{os.sep}{name}"[prefix:] for name in names if not name.startswith(".")]
        return sorted(file.replace(os.sep, "/") for file in files)

    def images(self, files: Sequence[str], names: Sequence[str], labels: Sequence[int]) -> ImageSet:
        return ImageSet(names, labels, partial(_load_file, self.root, files, names))


def _load_file(
    root: Path, files: Sequence[str], names: Sequence[str], index: int, crop: Crop | None = None
) -> Image.Image:
    return read_image(root / files[index], crop, name=names[index])


def _unreadable_folder(error: OSError) -> UserError:
    return UserError(f"The folder {error.filename} cannot be read: {error.strerror}. Check its permissions.")


def _read_tar(path: Path, part: str) -> tuple[tuple[str, ...], ImageSet]:
    tree = TarTree(path)
    return _read_classes(tree, tree.top, part)


def _read_classes(tree: Tree, folder: str, part: str) -> tuple[tuple[str, ...], ImageSet]:
    """The class names, sorted, and the images.

    Args:
        folder: holds the class folders.
        part: what image names begin with, so that they are the same in folders and in tar files.
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
    names = [posixpath.join(part, file) for file in files]
    return class_names, tree.images([posixpath.join(folder, file) for file in files], names, labels)


def _list_class_folders(tree: Tree, folder: str) -> tuple[str, ...]:
    class_names, files = tree.children(folder)
    expected = f"Expected train/ and val/ with class folders, or at least two class folders, in {tree.title(folder)}"
    if not class_names:
        raise UserError(f"{expected}; it {'has files but no folder' if files else 'is empty'}.")
    if all(name.lower() in PART_FOLDERS for name in class_names):
        raise UserError(f"{expected}; {abbreviate(class_names)} look like parts of the data: call them train and val.")
    if len(class_names) == 1:
        raise UserError(f"{expected}; it has only {class_names[0]!r}. Are the classes inside that?")
    return class_names
