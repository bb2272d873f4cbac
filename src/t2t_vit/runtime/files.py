"""Files that are written whole or not at all, and failed writes that are told."""

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from t2t_vit.errors import UserError


@contextmanager
def write_errors_told(path: Path) -> Iterator[None]:
    """Turns a failed write inside, as on a full disk, into a `UserError` that names the path and the cause."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # torch says only where in its own code the write failed
        if cause is None:
            raise
        stands = " What was there before stands." if path.exists() else ""
        raise UserError(f"{path} could not be written: {cause.strerror or cause}.{stands}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name only when it is complete; until then an older file stands.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with write_errors_told(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except (OSError, RuntimeError):
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: Path, text: str) -> None:
    """Writes text as a `whole_file`."""
    with whole_file(path) as file:
        file.write(text.encode())


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Writes rows as a `whole_file` of comma-separated values, a column for each field of any row.

    Args:
        path: the file.
        rows: dictionaries, or dataclasses. A pair of sizes is written as 64x96; a field that a row lacks is left empty.
    """
    cells = [_cells(row if isinstance(row, Mapping) else dataclasses.asdict(row)) for row in rows]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=list(dict.fromkeys(itertools.chain(*cells))), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    write_text(path, table.getvalue())


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "x".join(map(str, value)) if isinstance(value, tuple) else value for key, value in row.items()}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose tuples are lists, as JSON, YAML and our checkpoints hold them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
