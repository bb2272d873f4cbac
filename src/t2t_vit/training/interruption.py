"""SIGTERM and Ctrl-C let a run save and leave; a second Ctrl-C ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from t2t_vit.runtime.machine import Machine

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""What a shell reports of a process that such a signal ended."""


class Interruption:
    """Whether the run was asked to end.

    Args:
        machine: knows the other processes.

    Attributes:
        signal: the signal that came, None as long as none did.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
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

    def in_any_process(self) -> bool:
        """Whether any process was asked to end. All processes call this together, and all get the same answer."""
        return self._machine.in_any_process(self.signal is not None)

    def in_only_process(self) -> bool:
        """Whether this process was asked to end and is the only one: several would have to agree on it first."""
        return self.signal is not None and self._machine.world_size == 1

    def exit_code(self) -> int | None:
        """What the command returns: the code of the signal that any process got, None where none did."""
        codes = self._machine.gather(self.signal and EXIT_CODES[self.signal])
        return next((code for code in codes if code is not None), None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
