"""What every test lives with: one thread, and no network beyond this machine."""

import os
import socket
from typing import Any

import pytest

# Before torch is imported, and inherited by every process that a test starts. Several test processes share the cores,
# and sums come out in the same order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to another machine fails, in this process."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
