"""What a person sees on the terminal: lines, progress bars, tables."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


class Display:
    """Lines, progress bars and a table on the terminal.

    Args:
        silent: show nothing, as in every process but the main one.
        stderr: write to standard error, to keep standard output for results.
        file: write to this file instead.
    """

    def __init__(self, *, silent: bool = False, stderr: bool = False, file: TextIO | None = None) -> None:
        self.console = Console(highlight=False, soft_wrap=True, quiet=silent, stderr=stderr, file=file)
        self._bars: Progress | None = None  # those below the table, while there is one

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    @contextmanager
    def table(self, *columns: str) -> Iterator["LiveTable"]:
        """Shows a table that grows, with the bars of `steps` below it; without a terminal, a line for each row."""
        live_table = LiveTable(self, columns)
        if not self._is_live():
            yield live_table
            return
        self._bars = _new_bars(self.console)
        shown = Group(live_table, self._bars)
        try:
            with Live(shown, console=self.console, refresh_per_second=8, vertical_overflow="visible"):
                yield live_table
                live_table.is_whole = True
        finally:
            self._bars = None

    @contextmanager
    def steps(self, label: str, total: int, *, done: int = 0) -> Iterator["Steps"]:
        """Shows a bar over `total` steps, if there is a terminal."""
        if self._bars is not None:
            task = self._bars.add_task(label, total=total, completed=done, news="")
            try:
                yield Steps(self._bars, task)
            finally:
                self._bars.remove_task(task)
            return
        with _new_bars(self.console, transient=True, disable=not self._is_live()) as bars:
            yield Steps(bars, bars.add_task(label, total=total, completed=done, news=""))

    def _is_live(self) -> bool:
        return self.console.is_terminal and not self.console.quiet


class LiveTable:
    """The table that `Display.table` shows: on a terminal the newest rows that fit, at the end all of them.

    Attributes:
        is_whole: whether it shows all its rows.
    """

    def __init__(self, display: Display, columns: Sequence[str]) -> None:
        self._display, self._columns = display, columns
        self._rows: list[Sequence[str]] = []
        self._best = -1
        self.is_whole = False

    def add(self, cells: Sequence[str], line: str, *, is_best: bool) -> None:
        """Adds a row.

        Args:
            cells: what stands in it.
            line: what is printed without a terminal.
            is_best: whether it is the best row so far, which is set off.
        """
        self._rows.append(cells)
        if is_best:
            self._best = len(self._rows) - 1
        if not self._display._is_live():
            self._display.say(line)

    def __rich__(self) -> Table:
        table = new_table(*self._columns, num_words=0)
        fitting = max(1, self._display.console.height - 6)  # the heading, the bars, and a line typed below
        first = 0 if self.is_whole else max(0, len(self._rows) - fitting)
        for place, cells in enumerate(self._rows[first:], start=first):
            table.add_row(*cells, style="bold" if place == self._best else None)
        return table


def _new_bars(console: Console, *, transient: bool = False, disable: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=disable,
    )


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
