"""SIGTERM and Ctrl-C let a run save and leave; a second Ctrl-C ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""What a shell reports of a process that such a signal ended."""


class Interruption:
    """Whether the run was asked to end.

    Attributes:
        signal: the signal that came, None as long as none did.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Notes the signals inside instead of dying of them. Signals reach the main thread only: elsewhere, nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
