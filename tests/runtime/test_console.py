"""The table that grows on a terminal, and the lines without one."""

import io
import re

import pytest
from rich.console import Console

from t2t_vit.runtime.console import Display


@pytest.fixture
def display(request):
    """A display of ten lines that keeps what it shows; on a terminal unless the test says otherwise."""
    made = Display()
    made.console = Console(
        file=io.StringIO(), force_terminal=getattr(request, "param", True), width=60, height=10, highlight=False
    )
    return made


def plain(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def shown(display):
    return plain(display.console.file.getvalue())


def add_rows(display, count, best=None):
    with display.table("step", "right %") as table:
        for row in range(count):
            with display.steps("training", 4) as steps:
                steps.advance("loss 1.0")
            table.add([f"{row}", f"{row / 10:.2f}"], f"line {row}", is_best=row == best)
            if row == 2:
                display.say("a warning")
        return list(table.__rich__().columns[0].cells)


def test_a_terminal_shows_the_newest_rows_and_at_the_end_all(display):
    live = add_rows(display, 12)
    assert live == [str(row) for row in range(8, 12)]  # of ten lines, without heading, bar and a line below
    end = shown(display)[shown(display).rindex("step right %") :]
    assert re.findall(r"^ *(\d+) +\d\.\d\d", end, re.MULTILINE) == [str(row) for row in range(12)]
    assert "a warning" in shown(display)
    assert "line 3" not in shown(display)


def test_the_best_row_is_set_off(display):
    add_rows(display, 4, best=1)
    end = display.console.file.getvalue()
    bold = [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split()[0] for line in end.splitlines()[-4:] if "\x1b[1m" in line
    ]
    assert bold == ["1"]


@pytest.mark.parametrize("display", [False], indirect=True)
def test_a_log_has_a_line_for_each_row(display):
    add_rows(display, 4)
    assert shown(display).splitlines() == ["line 0", "line 1", "line 2", "a warning", "line 3"]


def test_bars_go_on_after_a_table(display):
    add_rows(display, 1)
    with display.steps("testing", 2) as steps:
        steps.advance()
    assert "testing" in shown(display)


def test_a_silent_display_shows_nothing(capsys):
    silent = Display(silent=True)
    with silent.table("step") as table, silent.steps("training", 2) as steps:
        steps.advance()
        table.add(["1"], "line 1", is_best=True)
    assert capsys.readouterr() == ("", "")
