"""What a run leaves behind, and what a person sees while it goes on."""

import csv
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
from t2t_vit.training.checkpoints import plain
from t2t_vit.training.config import CONFIG_FILE

METRICS, SUMMARY, ENVIRONMENT, SPLIT = "metrics.jsonl", "summary.csv", "environment.json", "split.json"


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory, made if it is not there.
        resume: whether a run in it is continued; else a run in it is never overwritten.

    Raises:
        UserError: when it holds a run that is not to be continued, or cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.last, self.best = path / "last.pt", path / "best.pt"
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / ".writable").touch()
            (path / ".writable").unlink()
        except OSError as error:
            raise UserError(
                f"The output folder {path} cannot be written: {error.strerror}. Choose another --output."
            ) from None
        if not resume and (self.last.exists() or (path / METRICS).exists()):
            raise UserError(f"{path} holds a run: continue it with --resume, or choose another --output.")

    def write_settings(self, config: Any, environment: dict[str, Any], split: dict[str, Any]) -> None:
        """Writes what the run depends on."""
        (self.path / CONFIG_FILE).write_text(yaml.safe_dump(plain(asdict(config)), sort_keys=False))
        (self.path / ENVIRONMENT).write_text(json.dumps(environment, indent=2) + "\n")
        (self.path / SPLIT).write_text(json.dumps(split, indent=2) + "\n")

    def write_metrics(self, metrics: Iterable[dict[str, Any]]) -> None:
        """Writes one line an epoch, as JSON objects and as a table."""
        rows = list(metrics)
        (self.path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
        with (self.path / SUMMARY).open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)


class Display:
    """Progress on the terminal: a bar while an epoch runs, a line when it ends."""

    def __init__(self, *, epochs: int) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
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
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            yield Steps(progress, progress.add_task(label, total=total, completed=done, news=""))

    def epoch(self, row: dict[str, Any], *, remaining_s: float) -> None:
        """Prints the line of an epoch."""
        ema = f"  EMA {row['ema_top1']:6.2f} %" if "ema_top1" in row else ""
        self.say(
            f"epoch {row['epoch'] + 1:3d}/{self.epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
            f"top-1 {row['val_top1']:6.2f} %{ema}  lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s  "
            f"{format_duration(remaining_s)} left"
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
