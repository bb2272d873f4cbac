"""The files of a run."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from t2t_vit.data.exclusion import IMAGE_COLUMN
from t2t_vit.errors import UserError
from t2t_vit.runtime.files import plain, write_csv, write_errors_told, write_text
from t2t_vit.training.config import CONFIG_FILE

METRICS, SUMMARY, ENVIRONMENT, SPLIT = "metrics.jsonl", "summary.csv", "environment.json", "split.json"


class RunDirectory:
    """The files of one run.

    Attributes:
        last: the checkpoint for --resume.
        best: the checkpoint with the best weights.
        report: the report as HTML.
        augmented: a sheet of training images as the network gets them.
        excluded: the images that the run leaves out; the list that was given may change.
        bad_steps: a line for each skipped step.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / "last.pt", path / "best.pt"
        self.report = path / "report.html"
        self.augmented = path / "augmented.png"
        self.excluded = path / "excluded.csv"
        self.bad_steps = path / "bad_steps.jsonl"

    def prepare(self, *, resume: bool) -> None:
        """Tries whether the directory can be written, and leaves nothing there: the settings are the first to be.

        Args:
            resume: whether a run in it may be continued; it is never overwritten.

        Raises:
            UserError: the directory holds a run and `resume` is False, or cannot be written.
        """
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink()
            for path in new:
                path.rmdir()
        except OSError as error:
            raise UserError(
                f"The output folder {self.path} cannot be written: {error.strerror}. Choose another --output."
            ) from None
        if not resume and (self.last.exists() or (self.path / METRICS).exists()):
            raise UserError(f"{self.path} holds a run: continue it with --resume, or choose another --output.")

    def of_epoch(self, epoch: int) -> Path:
        """The checkpoint of an epoch, with `--checkpoint-hist`."""
        return self.path / f"epoch-{epoch + 1:04d}.pt"

    def keep_newest_epochs(self, count: int) -> None:
        """Removes all but so many of the checkpoints of epochs, the oldest first."""
        with write_errors_told(self.path):
            for path in sorted(self.path.glob("epoch-*.pt"))[:-count]:
                path.unlink()

    def record_bad_step(self, step: dict[str, Any]) -> None:
        """Adds a skipped step to bad_steps.jsonl."""
        with write_errors_told(self.bad_steps), self.bad_steps.open("a") as file:
            file.write(json.dumps(step) + "\n")

    def write_settings(self, config: Any, environment: dict[str, Any], split: dict[str, Any]) -> None:
        """Makes the directory, and writes what the run depends on."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / CONFIG_FILE, yaml.safe_dump(plain(asdict(config)), sort_keys=False))
        write_text(self.path / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        write_text(self.path / SPLIT, json.dumps(split, indent=2) + "\n")
        if "excluded" in split:
            write_csv(self.excluded, [{IMAGE_COLUMN: name} for name in split["excluded"]])

    def write_metrics(self, metrics: Sequence[dict[str, Any]]) -> None:
        """Writes the rows as JSON lines and as a table, whose columns are the numbers of all rows.

        Rows may differ: a run may be resumed on a machine or under a version that measures more.
        """
        write_text(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in metrics))
        write_csv(self.path / SUMMARY, [numbers_of(row) for row in metrics])


def numbers_of(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics without the lists of its classes' recalls."""
    return {name: value for name, value in row.items() if not isinstance(value, list)}
