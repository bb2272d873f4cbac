"""Files inside tar files, read by their place: any one at any time, by any number of processes.

timm's reader of tar files shares one open file with the worker processes that are forked from it, takes the innermost
folder for the class, and streams webdatasets. Here an image is a range of bytes, so that a tar is as good as a folder:
the same classes, the same split, and a run that continues in the middle of an epoch.
"""

import posixpath
import tarfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from t2t_vit.data.crops import Crop
from t2t_vit.data.images import ImageSet, UnreadableImage, read_image
from t2t_vit.errors import UserError

Extent = tuple[int, int]
"""First byte and number of bytes."""


def index_tar(path: Path) -> dict[str, Extent]:
    """Where each file of a tar file lies, by its name, hidden ones left out.

    A tar inside it counts as a folder of its name.

    Raises:
        UserError: the file is no plain tar, is cut off, or holds symbolic links.
    """
    extents: dict[str, Extent] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            _index(archive, extents)
    except tarfile.TarError as error:
        raise UserError(
            f"{path} is no tar file, is compressed, or is cut off: {error}. Decompress it, or get it again."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return extents


def _index(archive: tarfile.TarFile, extents: dict[str, Extent], *, folder: str = "", start: int = 0) -> None:
    """Adds the files of an archive that begins at byte `start` of the outermost one and stands for a folder."""
    for member in _members(archive):
        name = _inner_name(folder + member.name)
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if member.isreg() and name.lower().endswith(".tar"):
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                _index(inner, extents, folder=f"{name[:-4]}/", start=start + member.offset_data)
        elif member.isreg():
            extents[name] = (start + member.offset_data, member.size)
        elif member.islnk() and (first := _inner_name(folder + member.linkname)) in extents:
            extents[name] = extents[first]  # a second name of a file that came before
        elif member.islnk() or member.issym():
            raise UserError(f"{archive.name!s}: {name} is a link to a file. Pack it again with tar --dereference.")


def _inner_name(name: str) -> str:
    """The path from the top of the archive, whatever it was packed with: "./", "/", "../"."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        archive.members.clear()  # type: ignore[attr-defined] # it would keep them all: a gigabyte for a million files


class TarTree:
    """The files of a tar file, as folders.

    Attributes:
        top: the folder in which the tree begins to branch: most tar files hold a single folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._extents = index_tar(path)
        self._names = sorted(self._extents)
        self.top = ""
        folders, files = self.children("")
        while len(folders) == 1 and not files:
            self.top = posixpath.join(self.top, folders[0])
            folders, files = self.children(self.top)

    def title(self, folder: str) -> str:
        """What a message calls a folder."""
        return f"{self.path}/{folder}" if folder else str(self.path)

    def children(self, folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of a folder's folders and of its files, sorted."""
        below = [file.partition("/") for file in self.files(folder)]
        folders, files = {name for name, slash, _ in below if slash}, [name for name, slash, _ in below if not slash]
        return tuple(sorted(folders)), tuple(files)

    def files(self, folder: str) -> list[str]:
        """The files below a folder, sorted, as paths from it."""
        prefix = f"{folder}/" if folder else ""
        first = bisect_left(self._names, prefix)
        end = bisect_left(self._names, f"{folder}0") if folder else None  # 0 follows the slash
        return [name[len(prefix) :] for name in self._names[first:end]]

    def images(self, files: Sequence[str], names: Sequence[str], labels: Sequence[int]) -> ImageSet:
        """The images in these files, by other names."""
        return tar_images([self.path], [(0, *self._extents[file]) for file in files], names, labels)


def tar_images(
    paths: Sequence[Path], places: Sequence[tuple[int, int, int]], names: Sequence[str], labels: Sequence[int]
) -> ImageSet:
    """The images at these places: which of the tar files, first byte, number of bytes."""
    return ImageSet(names, labels, partial(_load_place, paths, np.array(places, dtype=np.int64), names))


def _load_place(
    paths: Sequence[Path], places: np.ndarray, names: Sequence[str], index: int, crop: Crop | None = None
) -> Image.Image:
    which, start, size = places[index].tolist()
    try:
        with paths[which].open("rb") as file:  # opened each time: processes must not share a position in it
            content = read_extent(file, (start, size))
    except OSError as error:
        raise UnreadableImage(names[index], error.strerror or str(error)) from error
    return read_image(BytesIO(content), crop, name=names[index])


def read_extent(file: BinaryIO, extent: Extent) -> bytes:
    """The bytes at a place of a file."""
    file.seek(extent[0])
    return file.read(extent[1])
