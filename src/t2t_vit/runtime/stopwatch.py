"""Where the time of an epoch goes: whether its data, this program or the device bounds a run."""

import time
from collections.abc import Mapping
from typing import Any

SHARES = ("data_wait", "host", "device_wait")


class Stopwatch:
    """Books each stretch of time on what it went to.

    Args:
        host_apart: whether the device works while this program goes on. On a CPU the program does that work itself,
            and what is booked on the host is the device's.
    """

    def __init__(self, *, host_apart: bool) -> None:
        self._host_apart = host_apart
        self.restart()

    def restart(self) -> None:
        """Forgets what was booked, and begins anew."""
        self._seconds = dict.fromkeys((*SHARES, "checkpoint"), 0.0)
        self._began = self._since = time.monotonic()

    def lap(self, what: str) -> None:
        """Books the time since the last lap on one of `SHARES`, or on "checkpoint"."""
        now = time.monotonic()
        self._seconds[what] += now - self._since
        self._since = now

    def read(self, num_images: int) -> dict[str, float]:
        """How fast so many images went by, and the shares of the time in percent; the rest went to checkpoints."""
        elapsed_s = time.monotonic() - self._began
        seconds = dict(self._seconds)
        if not self._host_apart:
            seconds["device_wait"] += seconds.pop("host")
        shares = {f"{what}_percent": 100 * seconds[what] / elapsed_s for what in SHARES if what in seconds}
        return {"images_per_second": num_images / elapsed_s, **shares}


def shares_in_words(row: Mapping[str, Any]) -> str:
    """Where the time of an epoch went, as far as its row of metrics tells."""
    shares = {what.replace("_", " "): row.get(f"{what}_percent") for what in SHARES}
    return ", ".join(f"{name} {percent:.0f} %" for name, percent in shares.items() if percent is not None)
