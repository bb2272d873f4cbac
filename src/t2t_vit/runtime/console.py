"""What a person sees on the terminal: lines, progress bars, tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Display:
    """Lines and progress bars on the terminal.

    Args:
        silent: show nothing, as in every process but the main one.
        stderr: write to standard error, to keep standard output for results.
    """

    def __init__(self, *, silent: bool = False, stderr: bool = False) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=silent, stderr=stderr)

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    @contextmanager
    def steps(self, label: str, total: int, *, done: int = 0) -> Iterator["Steps"]:
        """Shows a bar over `total` steps, if there is a terminal."""
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


class Steps:
    """The bar that `Display.steps` shows."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, news: str = "", *, by: int = 1) -> None:
        """Moves the bar by this many steps, and shows the news beside it."""
        self._progress.update(self._task, advance=by, news=news)


def new_table(*columns: str, num_words: int = 1) -> Table:
    """An empty table; the first `num_words` columns hold words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)  # narrow: all columns fit into 80 characters
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < num_words else "right", no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Prints a table as wide as it is: a pipe or a narrow terminal cuts nothing off."""
    Console(width=1000).print(table)
