"""Writes files whole or not at all, and turns failed writes into a `UserError`."""

import csv
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from t2t_vit.errors import UserError


@contextmanager
def write_errors_told(path: Path) -> Iterator[None]:
    """Turns a failed write inside, such as on a full disk, into a `UserError` with the path and the cause."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__  # torch's message only names a line of its own code
        if cause is None:
            raise
        stands = " What was there before stands." if path.exists() else ""
        raise UserError(f"{path} could not be written: {cause.strerror or cause}.{stands}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces `path` when it is complete. Raises `UserError` if it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")  # hidden, so that nobody who reads the folder takes it for whole
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


def as_bytes(text: str) -> bytes:
    """Text in UTF-8, and the bytes of file names that are no valid text as they are."""
    return text.encode("utf-8", "surrogateescape")


def json_text(content: Any, *, indent: int | None = 2) -> str:
    """JSON that keeps letters as they are; in ASCII where a file name is no valid text, so that all parsers read it."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return text if _is_text(text) else json.dumps(content, indent=indent)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Writes text as a `whole_file`."""
    with whole_file(path) as file:
        file.write(as_bytes(text))


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Writes dictionaries or dataclasses as a `whole_file` of comma-separated values.

    Each field of any row has a column. A pair of sizes is written as 64x96; a field that a row lacks is empty.
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
