"""Where the time goes, by a clock that the tests turn."""

from types import SimpleNamespace

import pytest

from t2t_vit.runtime import stopwatch
from t2t_vit.runtime.stopwatch import Stopwatch, shares_in_words


@pytest.fixture
def turn(monkeypatch):
    """Lets seconds pass."""
    now = [100.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def let_pass(seconds):
        now[0] += seconds

    return let_pass


def watch_steps(turn, *, host_apart):
    watch = Stopwatch(host_apart=host_apart)
    for seconds, what in ((3, "data_wait"), (1, "host"), (2, "device_wait"), (4, "checkpoint")) * 2:
        turn(seconds)
        watch.lap(what)
    return watch.read(num_images=30)


def test_shares_are_of_all_the_time_and_checkpoints_are_the_rest(turn):
    assert watch_steps(turn, host_apart=True) == {
        "steps_s": 20.0, "images_per_second": 1.5, "data_wait_percent": 30.0,
        "host_percent": 10.0, "device_wait_percent": 20.0,
    }  # fmt: skip


def test_where_the_host_is_the_device_no_share_of_its_own_is_told(turn):
    assert watch_steps(turn, host_apart=False) == {
        "steps_s": 20.0, "images_per_second": 1.5, "data_wait_percent": 30.0, "device_wait_percent": 30.0,
    }  # fmt: skip


def test_words_tell_what_the_row_tells():
    row = {"epoch": 1, "device_wait_percent": 91.6, "data_wait_percent": 2.0}
    assert shares_in_words(row) == "waiting for images 2 %, computing 92 %"
    assert shares_in_words(row | {"host_percent": 6.0}) == "waiting for images 2 %, Python 6 %, computing 92 %"
    assert shares_in_words({"epoch": 1}) == ""
