"""The list of images to leave out, as `--exclude` takes it and `t2t-vit data` writes it."""

import csv
import io
from collections.abc import Collection
from pathlib import Path

from t2t_vit.data.images import ImageSet
from t2t_vit.errors import UserError, abbreviate

IMAGE_COLUMN = "image"


def read_excluded(path: str) -> frozenset[str]:
    """The names in a list of images: the column `image` of a .csv file, or the lines of another file.

    Raises:
        UserError: the file cannot be read as such a list, or names no image.
    """
    file = Path(path).expanduser()
    expected = (
        f"--exclude takes a .csv with a column {IMAGE_COLUMN!r}, as t2t-vit data writes it, or a name on each line"
    )
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # file names need not be valid text
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {expected}.") from None
    if file.suffix.lower() == ".csv":
        try:
            table = csv.DictReader(io.StringIO(text), strict=True)
            rows = list(table)
        except csv.Error as error:
            raise UserError(f"{path} is no whole table: {error}. {expected}.") from None
        if IMAGE_COLUMN not in (table.fieldnames or ()):
            raise UserError(f"{path} has the columns {abbreviate(table.fieldnames or ['none'])}. {expected}.")
        names = [row[IMAGE_COLUMN] or "" for row in rows]
    else:
        names = [line.strip() for line in text.splitlines()]
    found = frozenset(name for name in names if name)
    if not found:
        raise UserError(f"{path} names no image. {expected}.")
    return found


def refuse_unknown(excluded: Collection[str], parts: Collection[ImageSet], data: str) -> None:
    """Refuses names that no image has.

    Raises:
        UserError: when there are some.
    """
    known = {name for images in parts for name in images.names}
    unknown = [name for name in sorted(excluded) if name not in known]
    if unknown:
        example = next((images.names[0] for images in parts if len(images)), "none")
        raise UserError(
            f"--exclude names images that {data} does not have, {len(unknown):,} in all: {abbreviate(unknown)}. "
            f"Names are as t2t-vit data writes them, such as {example}."
        )
