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


def open_rows(
    csv: str | None, jsonl: str | None, parquet: str | None, *, num_labels: int, embed: bool, resume: bool
) -> Rows | None:
    """What to write to, of the three; None without any.

    Args:
        num_labels: the most labels of an image.
        embed: whether rows have embeddings.
        resume: whether to go on with what is there.

    Raises:
        UserError: there is something, and it is not to be gone on with, or is no such file.
    """
    path = csv or jsonl or parquet
    if path is None:
        return None
    file = Path(path).expanduser()
    if file.exists() and not resume:
        raise UserError(f"{file} is there already: go on with it by --resume, remove it, or choose another name.")
    if csv:
        return CsvRows(file, columns_of(num_labels, embed=embed))
    return JsonRows(file) if jsonl else ParquetRows(file, columns_of(num_labels, embed=embed))


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


class _Lines:
    """A file of records that end with a line, to whose end more are written.

    What a killed process left of a record is removed with the first write, not before: the file may be another's.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.is_cut = path, 0, False

    def read(self, begin: bytes, *, quoted: bool) -> Iterator[bytes]:
        """The whole records.

        Args:
            begin: how the file begins if it is ours.
            quoted: whether a line may end within quotation marks, where it ends no record.

        Raises:
            UserError: the file cannot be read, or begins otherwise.
        """
        try:
            with self.path.open("rb") as file:
                head = file.read(len(begin))
                if not begin.startswith(head):
                    raise UserError(f"{self.path} holds no such predictions: choose another file.")
                file.seek(0)
                record = b""
                for line in file:
                    record += line
                    if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
                        self.size += len(record)
                        yield record
                        record = b""
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}.") from error

    def write(self, line: str) -> None:
        with write_errors_told(self.path), self.path.open("ab") as file:
            if not self.is_cut:
                file.truncate(self.size)
                self.is_cut = True
            file.write(as_bytes(line))


class CsvRows:
    """Comma-separated values; an embedding is a list in brackets."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.columns, self.lines = list(columns), _Lines(path)
        header = self._line(self.columns)
        texts = (record.decode("utf-8", "surrogateescape") for record in self.lines.read(b"name,", quoted=True))
        self.is_new = (first := next(texts, None)) is None
        if first not in (None, header):
            raise UserError(
                f"{path} has the columns {first.strip()}, and these predictions {header.strip()}: choose another file."
            )
        csv.field_size_limit(2**31 - 1)  # of an embedding
        self.names = [next(csv.reader(io.StringIO(text, newline="")))[0] for text in texts]

    def add(self, prediction: Prediction) -> None:
        row = as_row(prediction)
        header, self.is_new = self._line(self.columns) if self.is_new else "", False
        self.lines.write(header + self._line([row.get(column, "") for column in self.columns]))

    def close(self) -> None:
        pass

    @staticmethod
    def _line(cells: Sequence[Any]) -> str:
        text = io.StringIO(newline="")
        csv.writer(text).writerow(cells)  # its own end of a line makes it quote names that hold a part of that
        return text.getvalue().removesuffix("\r\n") + "\n"


class JsonRows:
    """A JSON object on each line."""

    def __init__(self, path: Path) -> None:
        self.lines = _Lines(path)
        try:
            self.names = [json.loads(record)["image"] for record in self.lines.read(b'{"image": ', quoted=False)]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} holds no predictions as JSON lines: choose another file.") from error

    def add(self, prediction: Prediction) -> None:
        self.lines.write(json_text(as_json(prediction), indent=None) + "\n")

    def close(self) -> None:
        pass


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
