"""Files of predictions that grow while images are predicted, and that a later run goes on with."""

import csv
import io
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from t2t_vit.errors import UserError
from t2t_vit.inference.predictor import Prediction
from t2t_vit.runtime.files import as_bytes, json_text, whole_file, write_errors_told

PART_ROWS, PART_S = 10_000, 60.0
"""Rows of a Parquet file, and the seconds after which it is written with fewer."""


class Rows(Protocol):
    """What predictions are written to, one after another.

    Attributes:
        names: of the images that an earlier run wrote, in order.
    """

    names: list[str]

    def add(self, prediction: Prediction) -> None:
        """Writes a row.

        Raises:
            UserError: it cannot be written.
        """

    def close(self) -> None:
        """Writes what is not written yet."""


def open_rows(csv: str | None, jsonl: str | None, parquet: str | None, *, num_labels: int, embed: bool) -> Rows | None:
    """What to write to, of the three, with what an earlier run wrote; None without any.

    Args:
        num_labels: the most labels of an image.
        embed: whether rows have embeddings.

    Raises:
        UserError: what is there are no predictions of this kind.
    """
    columns = columns_of(num_labels, embed=embed)
    if csv:
        return CsvRows(Path(csv), columns)
    if jsonl:
        return JsonRows(Path(jsonl))
    return ParquetRows(Path(parquet), columns) if parquet else None


def columns_of(num_labels: int, *, embed: bool) -> list[str]:
    """The columns of a table: the likeliest label, then the others by their rank."""
    ranks = ["", *(f"_{rank}" for rank in range(2, num_labels + 1))]
    labels = [f"{what}{rank}" for rank in ranks for what in ("label", "probability")]
    return ["name", *labels, *(["embedding"] if embed else []), "error"]


def as_row(prediction: Prediction) -> dict[str, Any]:
    """What a prediction has in those columns; for an unreadable image the reason."""
    row: dict[str, Any] = {"name": prediction.name}
    for rank, (label, probability) in enumerate(prediction.labels, start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        row |= {f"label{suffix}": label, f"probability{suffix}": probability}
    if prediction.embedding is not None:
        row["embedding"] = prediction.embedding.tolist()
    return row if prediction.error is None else {**row, "error": prediction.error}


def as_json(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON has it."""
    if prediction.error is not None:
        return {"image": prediction.name, "error": prediction.error}
    labels = [{"label": label, "probability": probability} for label, probability in prediction.labels]
    embedding = {} if prediction.embedding is None else {"embedding": prediction.embedding.tolist()}
    return {"image": prediction.name, "labels": labels, **embedding}


def as_text(name: str) -> str:
    """A name without the bytes that are no valid text."""
    return as_bytes(name).decode("utf-8", "replace")


class LineRows:
    """A file of rows that end with a line, to whose end more are written.

    What a killed process left of a row is removed with the first write, not before: the file may be another's.

    Args:
        begin: how the file begins if it is ours.

    Raises:
        UserError: the file cannot be read, or begins otherwise.
    """

    header = ""
    may_quote = False
    """Whether a line may end within quotation marks, where it ends no row."""

    def __init__(self, path: Path, begin: str) -> None:
        self.path, self.size, self.is_cut = path, 0, False
        try:
            self.names = [self.name_of(row) for row in self._read_rows(begin.encode())]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no predictions of this kind: choose another file.") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error

    def _read_rows(self, begin: bytes) -> Iterator[str]:
        """The whole rows, without the header."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            if not begin.startswith(file.read(len(begin))):
                ours = begin.decode().strip()
                raise UserError(
                    f"{self.path} does not begin with {ours}, as these predictions do: choose another file."
                )
            file.seek(0)
            row = b""
            for line in file:
                row += line
                if line.endswith(b"\n") and not (self.may_quote and row.count(b'"') % 2):
                    is_header, self.size = self.size < len(self.header), self.size + len(row)
                    if not is_header:
                        yield row.decode("utf-8", "surrogateescape")
                    row = b""

    def add(self, prediction: Prediction) -> None:
        with write_errors_told(self.path), self.path.open("ab") as file:
            if not self.is_cut:
                file.truncate(self.size)
                file.write(self.header.encode() if self.size == 0 else b"")
                self.is_cut = True
            file.write(as_bytes(self.row_of(prediction)))

    def close(self) -> None:
        """Nothing is left to write."""

    def row_of(self, prediction: Prediction) -> str:
        """A prediction as a row."""
        raise NotImplementedError

    def name_of(self, row: str) -> str:
        """The image of a row."""
        raise NotImplementedError


class CsvRows(LineRows):
    """Comma-separated values; an embedding is a list in brackets."""

    may_quote = True

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.columns, self.header = columns, self._line(columns)
        csv.field_size_limit(2**31 - 1)  # of an embedding
        super().__init__(path, self.header)

    def row_of(self, prediction: Prediction) -> str:
        row = as_row(prediction)
        return self._line([row.get(column, "") for column in self.columns])

    def name_of(self, row: str) -> str:
        return next(csv.reader(io.StringIO(row, newline="")))[0]

    @staticmethod
    def _line(cells: Sequence[Any]) -> str:
        text = io.StringIO(newline="")
        csv.writer(text).writerow(cells)  # its own end of a line makes it quote names that hold a part of that
        return text.getvalue().removesuffix("\r\n") + "\n"


class JsonRows(LineRows):
    """A JSON object on each line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, '{"image": ')

    def row_of(self, prediction: Prediction) -> str:
        return json_text(as_json(prediction), indent=None) + "\n"

    def name_of(self, row: str) -> str:
        return str(json.loads(row)["image"])


class ParquetRows:
    """A folder of Parquet files, each whole: pandas, Polars, DuckDB and Spark read such a folder as one table."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UserError("--parquet needs pyarrow: pip install 't2t-vit[parquet]'.") from error
        kinds = {"embedding": pa.list_(pa.float32()), "probability": pa.float32()}
        self.schema = pa.schema([(name, kinds.get(name.partition("_")[0], pa.string())) for name in columns])
        self.folder, self.buffer, self.since = folder, list[dict[str, Any]](), time.monotonic()
        with write_errors_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
        parts = sorted(folder.glob("part-*.parquet"))
        try:
            tables = [pq.read_table(part, columns=["name"]) for part in parts]
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{folder} holds no predictions of this kind: {error}") from error
        if parts and pq.read_schema(parts[0]) != self.schema:
            raise UserError(f"{folder} has other columns than these predictions: choose another folder.")
        self.names = [name for table in tables for name in table["name"].to_pylist()]
        self.num_parts = len(parts)

    def add(self, prediction: Prediction) -> None:
        row = as_row(prediction)
        self.buffer.append({key: as_text(cell) if isinstance(cell, str) else cell for key, cell in row.items()})
        if len(self.buffer) >= PART_ROWS or time.monotonic() - self.since > PART_S:
            self._write_part()

    def close(self) -> None:
        if self.buffer:
            self._write_part()

    def _write_part(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with whole_file(self.folder / f"part-{self.num_parts:05d}.parquet") as file:
            pq.write_table(pa.Table.from_pylist(self.buffer, schema=self.schema), file)
        self.buffer, self.since = [], time.monotonic()
        self.num_parts += 1
