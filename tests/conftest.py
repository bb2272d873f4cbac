"""What every test lives with: one thread, no network beyond this machine; and a run that takes a second."""

import contextlib
import http.server
import os
import signal
import socket
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Before torch is imported, and inherited by every process that a test starts. Several test processes share the cores,
# and sums come out in the same order on every machine.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork processes which train come first: torch may refuse that in a process that has trained itself."""
    items.sort(key=lambda item: "test_processes" not in item.nodeid)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to another machine fails, in this process."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_interrupts():
    """Ctrl-C raises KeyboardInterrupt, also where the tests are a shell's background job, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server on loopback: its `url`, the `files` it has, and the `requests` for them. torch.hub's cache is empty.

    A file whose name says so is cut off, or slow. Whatever it is, it is said to be plain text.
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    files: dict[str, bytes] = {}
    requests: list[str] = []
    stopped = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            if self.path not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(files[self.path]) + (100 if "cut" in self.path else 0)))
            self.end_headers()
            for byte in files[self.path] if "slow" in self.path else ():
                self.wfile.write(bytes([byte]))
                if stopped.wait(0.05):
                    return
            self.wfile.write(files[self.path])

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the reader has left
                super().handle()

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", files=files, requests=requests)
    stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


def _draw(path: Path, label: int, seed: int) -> None:
    """A noisy bar, upright and red for label 0, lying and blue for label 1."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
    place = rng.integers(8, 20)
    if label == 0:
        pixels[:, place : place + 6] = 220, 30, 30
    else:
        pixels[place : place + 6] = 30, 30, 220
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """train/ with 24 images and val/ with 8, of two classes."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count, offset in (("train", 12, 0), ("val", 4, 100)):
        for label, name in enumerate(("upright", "lying")):
            for i in range(count):
                _draw(root / part / name / f"{i}.png", label, offset + 2 * i + label)
    return root


@pytest.fixture(scope="session")
def tiny_config_in(picture_folder):
    """Settings of a quick run in a directory; changes are given by name. For runs that several tests look at."""

    # here, for the tests of what imports nothing
    from t2t_vit.options import configure
    from t2t_vit.training.config import TrainConfig

    def make(directory, **changes):
        settings = {
            "data": str(picture_folder),
            "model": "t2t_vit_7",
            "img_size": 32,
            "epochs": 2,
            "eval_share": 1.0,
            "hflip": 0.5,
            "warmup_epochs": 0,
            "batch_size": 8,
            "output": str(directory),
            "device": "cpu",
            "amp": False,
            "workers": 0,
            "affine": 0.0,
            "scale": (0.08, 1.0),
            "ratio": (0.75, 1.3333),
            "refit_head": False,
        }
        return configure(TrainConfig, **settings | changes)

    return make


@pytest.fixture
def tiny_config(tiny_config_in, tmp_path):
    """Settings of a quick run in a directory of this test; changes are given by name."""
    return partial(tiny_config_in, tmp_path / "run")


@pytest.fixture(scope="session")
def write_small_checkpoint():
    """Writes a checkpoint of a network that tells classes apart in milliseconds; returns its path."""

    import timm
    import torch

    def write(path, *, num_classes=3, in_chans=3, **contents):
        model_args = {"embed_dim": 32, "depth": 1, "num_heads": 2, "token_dim": 16, "img_size": 32}
        model_args |= {"num_classes": num_classes, "in_chans": in_chans}
        torch.manual_seed(0)
        model = timm.create_model("t2t_vit_7_32px", **model_args)
        with torch.no_grad():
            for parameter in model.parameters():  # far from the start, where all classes are nearly alike
                parameter.add_(torch.randn_like(parameter) * 0.3)
        head = {"format": "t2t_vit", "version": 1, "model": "t2t_vit_7_32px", "model_args": model_args}
        torch.save({**head, "state_dict": model.state_dict(), **contents}, path)
        return path

    return write


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory, write_small_checkpoint):
    """The checkpoint of a network that knows ants, bees and cats on images of 32 pixels."""
    data_config = {
        "input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "crop_pct": 1.0,
        "interpolation": "bicubic",
    }  # fmt: skip
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    return write_small_checkpoint(path, class_names=["ant", "bee", "cat"], data_config=data_config)
