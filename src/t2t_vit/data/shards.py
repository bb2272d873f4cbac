"""Webdataset shards: tar files in which KEY.cls, a number, is the label of the image KEY.jpg.

They are indexed rather than streamed: a stream cannot go on in the middle of an epoch with the same images.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from t2t_vit.data.folders import VAL_FOLDERS
from t2t_vit.data.images import ImageSet, file_images
from t2t_vit.data.splitting import Split, Splits
from t2t_vit.data.tars import index_tar, tar_reader
from t2t_vit.errors import UserError, abbreviate


def shard_splits(data: str) -> Splits:
    """The shards with the word train in their path, and those with val or validation.

    Without validation shards, the training shards are one whole; without either word, all shards are. Shards with the
    word test are left out.

    Args:
        data: "wds/" and a folder that holds .tar files at any depth.

    Raises:
        UserError: there are no shards; or some have the word train, and others none of these words.
    """
    folder = data.removeprefix("wds/")
    root = Path(folder).expanduser()
    shards = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.tar"))
    if not shards:
        raise UserError(f"Expected a folder with webdataset shards (.tar files), got {folder!r}, which holds none.")
    words = {shard: set(re.split("[^a-z]+", shard.lower())) for shard in shards}
    train = [shard for shard in shards if "train" in words[shard]]
    val = [shard for shard in shards if words[shard] & set(VAL_FOLDERS)]
    others = [shard for shard in shards if not words[shard] & {"train", "test", *VAL_FOLDERS}]
    if train and others:
        raise UserError(
            f"Some shards of {root} have the word train in their path, but these say nothing of their part: "
            f"{abbreviate(others)}. Name them train, val or test, or move them away."
        )

    def split(kind: str, of_it: list[str]) -> Split | None:
        return Split(f"{kind} shards of {root}", partial(_read, root, of_it)) if of_it else None

    if not val:
        return Splits(str(root), whole=split("training", train) or split("the", others or shards))
    return Splits(str(root), split("training", train), split("validation", val))


def _read(root: Path, shards: Sequence[str]) -> tuple[tuple[str, ...], ImageSet]:
    """The labels that occur, sorted, as class names; and the images."""
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    targets: list[int] = []
    without: list[str] = []
    for which, shard in enumerate(shards):
        extents = index_tar(root / shard)
        with (root / shard).open("rb") as file:
            for member, extent in extents.items():
                key, extension = _split_key(member)
                if extension.lower() not in IMG_EXTENSIONS:
                    continue
                if f"{key}.cls" not in extents:
                    without.append(f"{shard}/{member}")
                    continue
                names.append(f"{shard}/{member}")
                places.append((which, *extent))
                start, size = extents[f"{key}.cls"]
                file.seek(start)
                targets.append(_parse_label(file.read(size), f"{shard}/{key}.cls"))
    if without or not names:
        raise UserError(
            f"Expected images with their labels in .cls files beside them in the shards of {root}, "
            + (f"but {len(without)} have none, such as {without[0]}." if without else "but they hold no image.")
        )
    classes, labels = np.unique(targets, return_inverse=True)
    read = tar_reader([root / shard for shard in shards], places)
    return tuple(map(str, classes)), file_images(read, names, labels.tolist())


def _split_key(member: str) -> tuple[str, str]:
    """Key and extension as webdatasets have them: the extension begins at the first dot of the file's name."""
    folder, slash, file = member.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", dot + extension


def _parse_label(content: bytes, name: str) -> int:
    try:
        return int(content)
    except ValueError:
        raise UserError(f"{name} must hold the number of a class, holds {content[:20]!r}.") from None
