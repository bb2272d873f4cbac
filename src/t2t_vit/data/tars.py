"""Files inside tar files, read in any order by any number of processes.

An image is a range of bytes here, so that a tar gives the classes and the split of the same files in a folder, and a
run continues in the middle of an epoch. timm's reader shares an open file with forked workers, takes the innermost
folder for the class, and streams webdatasets.
"""

import posixpath
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from t2t_vit.errors import UserError

Extent = tuple[int, int]
"""First byte and number of bytes."""


def index_tar(path: Path) -> dict[str, Extent]:
    """Maps each file in a tar file to its place, hidden files left out; a tar inside counts as a folder.

    Raises:
        UserError: the file is no plain tar, is cut off, or holds symbolic links.
    """
    extents: dict[str, Extent] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            _index(archive, extents)
    except tarfile.TarError as error:
        raise UserError(
            f"{path} is no tar file, is compressed, or is cut off: {str(error).rstrip('.')}. "
            "Decompress it, or get it again."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return extents


def _index(archive: tarfile.TarFile, extents: dict[str, Extent], *, folder: str = "", start: int = 0) -> None:
    """Adds the files of an archive that begins at byte `start` of the outermost one and counts as `folder`."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined] # it would keep them all: a gigabyte for a million files
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
    """The path from the top of the archive, without the "./", "/" or "../" that it may start with."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def tar_reader(paths: Sequence[Path], places: Sequence[tuple[int, int, int]]) -> Callable[[int], bytes]:
    """A function from the index of a file to its content.

    Args:
        paths: the tar files.
        places: for each file, the index of its tar file, its first byte there, and its number of bytes.
    """
    return partial(_read_place, paths, np.array(places, dtype=np.int64))


def _read_place(paths: Sequence[Path], places: np.ndarray, index: int) -> bytes:
    which, start, size = places[index].tolist()
    with paths[which].open("rb") as file:  # opened each time: processes must not share a position in it
        file.seek(start)
        return file.read(size)
