"""What a run leaves behind, and what a person sees while it goes on."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from t2t_vit.errors import UserError
from t2t_vit.training.checkpoints import plain, told, whole_file
from t2t_vit.training.config import CONFIG_FILE
from t2t_vit.training.stopwatch import shares_in_words

METRICS, SUMMARY, ENVIRONMENT, SPLIT = "metrics.jsonl", "summary.csv", "environment.json", "split.json"


class RunDirectory:
    """The files of one run.

    Attributes:
        last: the checkpoint to go on from.
        best: the checkpoint of the best epoch.
        report: what the run came to, to be looked at.
        bad_steps: what is known of steps that were skipped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last, self.best = path / "last.pt", path / "best.pt"
        self.report = path / "report.html"
        self.bad_steps = path / "bad_steps.jsonl"

    def prepare(self, *, resume: bool) -> None:
        """Makes the directory.

        Args:
            resume: whether a run in it is continued; else a run in it is never overwritten.

        Raises:
            UserError: when it holds a run that is not to be continued, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".writable").touch()
            (self.path / ".writable").unlink()
        except OSError as error:
            raise UserError(
                f"The output folder {self.path} cannot be written: {error.strerror}. Choose another --output."
            ) from None
        if not resume and (self.last.exists() or (self.path / METRICS).exists()):
            raise UserError(f"{self.path} holds a run: continue it with --resume, or choose another --output.")

    def of_epoch(self, epoch: int) -> Path:
        """The checkpoint of an epoch, where those of several are kept."""
        return self.path / f"epoch-{epoch + 1:04d}.pt"

    def forget_epochs_before(self, epoch: int) -> None:
        """Removes the checkpoints of earlier epochs."""
        with told(self.path):
            for path in self.path.glob("epoch-*.pt"):
                if path < self.of_epoch(epoch):
                    path.unlink()

    def record_bad_step(self, step: dict[str, Any]) -> None:
        """Notes a step that was skipped."""
        with told(self.bad_steps), self.bad_steps.open("a") as file:
            file.write(json.dumps(step) + "\n")

    def write_settings(self, config: Any, environment: dict[str, Any], split: dict[str, Any]) -> None:
        """Writes what the run depends on."""
        write_whole(self.path / CONFIG_FILE, yaml.safe_dump(plain(asdict(config)), sort_keys=False))
        write_whole(self.path / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        write_whole(self.path / SPLIT, json.dumps(split, indent=2) + "\n")

    def write_metrics(self, metrics: Iterable[dict[str, Any]]) -> None:
        """Writes one line an epoch, as JSON objects and as a table."""
        rows = list(metrics)
        write_whole(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
        table = io.StringIO(newline="")
        # A run may go on where more is measured than where it began: on another machine, under another version.
        writer = csv.DictWriter(table, fieldnames=list(dict.fromkeys(itertools.chain(*rows))))
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path / SUMMARY, table.getvalue())


def write_whole(path: Path, text: str) -> None:
    """Writes a `whole_file` of text."""
    with whole_file(path) as file:
        file.write(text.encode())


class Display:
    """Progress on the terminal: a bar while an epoch runs, a line when it ends.

    Args:
        epochs: of the run.
        silent: shows nothing, as in all but the first of several processes.
    """

    def __init__(self, *, epochs: int, silent: bool = False) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=silent)
        self.epochs = epochs

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    @contextmanager
    def steps(self, label: str, total: int, *, done: int = 0) -> Iterator["Steps"]:
        """A bar over the steps of a part of an epoch; nothing where there is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal or self.console.quiet
        ) as progress:
            yield Steps(progress, progress.add_task(label, total=total, completed=done, news=""))

    def epoch(self, row: dict[str, Any], *, remaining_s: float) -> None:
        """Prints the line of an epoch."""
        ema = f"  EMA {row['ema_top1']:6.2f} %" if "ema_top1" in row else ""
        self.say(
            f"epoch {row['epoch'] + 1:3d}/{self.epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
            f"top-1 {row['val_top1']:6.2f} %{ema}  lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s  "
            f"{shares_in_words(row)}  {row['memory_gb']:.1f} GB  {format_duration(remaining_s)} left"
        )


class Steps:
    """The bar of one part of an epoch."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, news: str = "") -> None:
        """One step is done."""
        self._progress.update(self._task, advance=1, news=news)


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or m:ss under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
