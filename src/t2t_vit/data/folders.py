"""Class folders, on disk or packed in tar files."""

import dataclasses
import os
import posixpath
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from t2t_vit.data.images import ImageSet, file_images, image_extensions
from t2t_vit.data.splitting import Split, Splits
from t2t_vit.data.tars import index_tar, tar_reader
from t2t_vit.errors import UserError, abbreviate

VAL_FOLDERS = ("val", "valid", "validation", "dev")
PARTS = {"train": ("train", "training"), "val": VAL_FOLDERS, "test": ("test", "testing")}
"""Maps a part of the data to the names of its folder, in capitals or not."""
PART_OF = {name: part for part, names in PARTS.items() for name in names}


def folder_splits(data: str) -> Splits:
    """The parts of a folder or a tar file: train/ and val/ and test/ with class folders, or only class folders.

    In a folder, train.tar stands for train/, and so on. Without val/, the whole of train/ is to be split.

    Raises:
        UserError: the data is a file but no tar, or has one part twice.
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
    found, notes = _find_parts(tree)
    for part, splits in found.items():
        if len(splits) > 1:
            job = {"train": "train", "val": "validate", "test": "test"}[part]
            raise UserError(f"{path} has both {' and '.join(splits)}. Keep the one to {job} on.")
    parts = {part: next(iter(splits.values())) for part, splits in found.items()}
    if not parts:
        return Splits(str(path), whole=Split(str(path), partial(_read_classes, tree, tree.top, "")))
    train, val, test = (parts.get(part) for part in PARTS)
    if train and not val:
        return Splits(train.title, whole=train, test=test, notes=notes)
    return Splits(str(path), train, val, test=test, notes=notes)


def _find_parts(tree: "_Tree") -> tuple[dict[str, dict[str, Split]], tuple[str, ...]]:
    """The folders and tar files of each part, by their names with "/"; and a sentence for what is left out."""
    folders, files = tree.children(tree.top)
    # On disk; inside a tar file a tar is a folder.
    tars = {file[:-4]: file for file in files if file.lower().endswith(".tar") and file[:-4] not in folders}
    names = [name for name in (*folders, *tars) if name.lower() in PART_OF]
    # Classes may be called dev, test or valid. They are parts beside train/, or where nothing but parts is there.
    if not any(name.lower() in ("val", "validation") or PART_OF[name.lower()] == "train" for name in names) and (
        len(names) < len(folders)
    ):
        return {}, ()
    parts: dict[str, dict[str, Split]] = {}
    notes: list[str] = []
    for name in names:
        part, folder = PART_OF[name.lower()], posixpath.join(tree.top, name)
        if name in tars:
            split = Split(str(tree.root / tars[name]), partial(_read_tar, tree.root / tars[name], name))
        elif part == "test" and len(tree.children(folder)[0]) < 2:
            notes.append(f"{tree.title(folder)} has no class folders, and is left out")
            continue
        else:
            split = Split(tree.title(folder), partial(_read_classes, tree, folder, name))
        parts.setdefault(part, {})[f"{name}/"] = split
    return parts, tuple(notes)


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
    others = Counter(f"{_ending(file)} outside class folders" for file in tree.children(folder)[1])
    for label, class_name in enumerate(class_names):
        found = tree.files(posixpath.join(folder, class_name))
        images = [posixpath.join(class_name, file) for file in found if _ending(file) in image_extensions()]
        others.update(ending for file in found if (ending := _ending(file)) not in image_extensions())
        if not images:
            without.append(f"{class_name} ({'files, but no image' if found else 'empty'})")
        files += images
        labels += [label] * len(images)
    if without:
        raise UserError(
            f"Every class folder needs an image, and in {tree.title(folder)} these have none: {abbreviate(without)}. "
            "Add images (.jpg, .png, .webp, .tif, .npy or others) or remove the folders."
        )
    read = tree.reader([posixpath.join(folder, file) for file in files])
    images_of_split = file_images(read, [posixpath.join(split, file) for file in files], labels)
    return class_names, dataclasses.replace(images_of_split, ignored=others)


def _ending(file: str) -> str:
    return posixpath.splitext(file)[1].lower() or "without an ending"


def _list_class_folders(tree: _Tree, folder: str) -> tuple[str, ...]:
    class_names, files = tree.children(folder)
    expected = f"Expected train/ and val/ with class folders, or at least two class folders, in {tree.title(folder)}"
    if not class_names:
        raise UserError(f"{expected}; it {'has files but no folder' if files else 'is empty'}.")
    if all(name.lower() in PART_OF for name in class_names):
        raise UserError(f"{expected}; {abbreviate(class_names)} look like parts of the data: call them train and val.")
    if len(class_names) == 1:
        raise UserError(f"{expected}; it has only {class_names[0]!r}. Are the classes inside that?")
    return tuple(class_names)
