"""SIGTERM and Ctrl-C let a run save and leave; a second Ctrl-C ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from t2t_vit.runtime.machine import Machine

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""The exit codes that a shell reports for a process ended by these signals."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """Makes SIGTERM raise `Terminated`, as Ctrl-C raises `KeyboardInterrupt`; runs inside watch for both as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interruption:
    """Whether the run was asked to end; `signal` is the signal that came, None until one does."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.signal: signal.Signals | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Records the signals that come inside, instead of ending. Only the main thread gets signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def in_any_process(self) -> bool:
        """Whether any process was asked to end. All processes call this together and get the same answer."""
        return self._machine.in_any_process(self.signal is not None)

    def in_only_process(self) -> bool:
        """Whether this is the only process and was asked to end; several processes would have to agree first."""
        return self.signal is not None and self._machine.world_size == 1

    def exit_code(self) -> int | None:
        """The command's exit code: that of the signal that any process got, None if none did."""
        codes = self._machine.gather(self.signal and EXIT_CODES[self.signal])
        return next((code for code in codes if code is not None), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
