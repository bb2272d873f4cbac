"""Webdataset shards: tar files in which KEY.cls, a number, is the label of the image KEY.jpg.

They are indexed rather than streamed: a stream cannot go on in the middle of an epoch with the same images.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from t2t_vit.data.folders import VAL_FOLDERS
from t2t_vit.data.images import ImageSet, Part, Parts
from t2t_vit.data.tars import index_tar, read_extent, tar_images
from t2t_vit.errors import UserError, abbreviate


def shard_parts(folder: str) -> Parts:
    """The shards with the word train in their path, and those with val or validation; without these, one whole.

    The whole is the shards for training, or all where no name says what it is for. Those with the word test are left
    out of either.

    Args:
        folder: holds .tar files, itself or in its folders.

    Raises:
        UserError: it holds none, or beside those for training some that say nothing.
    """
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

    def part(kind: str, of_it: list[str]) -> Part | None:
        return Part(f"{kind} shards of {root}", partial(_read, root, of_it)) if of_it else None

    if not val:
        return Parts(str(root), whole=part("training", train) or part("the", others or shards))
    return Parts(str(root), part("training", train), part("validation", val))


def _read(root: Path, shards: Sequence[str]) -> tuple[tuple[str, ...], ImageSet]:
    """The labels that occur, in order, as class names, and the images."""
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
                targets.append(_read_label(read_extent(file, extents[f"{key}.cls"]), f"{shard}/{key}.cls"))
    if without or not names:
        raise UserError(
            f"Expected images with their labels in .cls files beside them in the shards of {root}, "
            + (f"but {len(without)} have none, such as {without[0]}." if without else "but they hold no image.")
        )
    position = {target: index for index, target in enumerate(sorted(set(targets)))}
    class_names = tuple(str(target) for target in position)
    paths = [root / shard for shard in shards]
    return class_names, tar_images(paths, places, names, [position[target] for target in targets])


def _split_key(member: str) -> tuple[str, str]:
    """Key and extension as webdatasets have them: what follows the first dot of the file's name is the extension."""
    folder, slash, file = member.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", dot + extension


def _read_label(content: bytes, name: str) -> int:
    try:
        return int(content)
    except ValueError:
        raise UserError(f"{name} must hold the number of a class, holds {content[:20]!r}.") from None
