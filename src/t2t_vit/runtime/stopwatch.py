"""Measures where the time of an epoch goes: to its data, to this program, or to the device."""

import time
from collections.abc import Mapping
from typing import Any

SHARES = {"data_wait": "waiting for images", "host": "Python", "device_wait": "computing"}
"""What the time of an epoch goes to, and how a person calls it."""


class Stopwatch:
    """Sums the time that went to each purpose.

    Args:
        host_apart: whether the device works while this program goes on. A CPU does not: there the host's time counts
            as the device's.
    """

    def __init__(self, *, host_apart: bool) -> None:
        self._host_apart = host_apart
        self.restart()

    def restart(self) -> None:
        """Sets all sums to zero."""
        self._seconds = dict.fromkeys((*SHARES, "checkpoint"), 0.0)
        self._began = self._since = time.monotonic()

    def lap(self, what: str) -> None:
        """Adds the time since the last lap to one of `SHARES`, or to "checkpoint"."""
        now = time.monotonic()
        self._seconds[what] += now - self._since
        self._since = now

    def read(self, num_images: int) -> dict[str, float]:
        """The seconds, images per second, and the share of each purpose in percent; the rest went to checkpoints."""
        elapsed_s = time.monotonic() - self._began
        seconds = dict(self._seconds)
        if not self._host_apart:
            seconds["device_wait"] += seconds.pop("host")
        shares = {f"{what}_percent": 100 * seconds[what] / elapsed_s for what in SHARES if what in seconds}
        return {"steps_s": elapsed_s, "images_per_second": num_images / elapsed_s, **shares}


def shares_in_words(row: Mapping[str, Any]) -> str:
    """The shares of an epoch's time that its row of metrics holds, in words."""
    shares = {words: row.get(f"{what}_percent") for what, words in SHARES.items()}
    return ", ".join(f"{words} {percent:.0f} %" for words, percent in shares.items() if percent is not None)
