"""Predictions shared among the actors of a local Ray cluster, of which one is killed."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_vit.cli import main
from t2t_vit.deploy import predict as module

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")


def is_worker(path):
    try:
        return path.read_bytes().startswith(b"ray::MapWorker")
    except OSError:  # it has ended meanwhile
        return False


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, log_to_driver=False, logging_level="error", include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_is_replaced_and_the_rows_are_the_same(cluster, small_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for row, array in enumerate(np.random.default_rng(0).integers(0, 256, (300, 40, 36, 3), dtype=np.uint8)):
        Image.fromarray(array).save(tmp_path / "photos" / f"{row:03}.png")
    (tmp_path / "photos" / "150.png").write_text("no image")
    words = ["predict", str(tmp_path / "photos"), "--checkpoint", str(small_checkpoint), "--device", "cpu", "-b", "2"]
    assert main([*words, "--csv", str(tmp_path / "alone.csv")]) == 2  # one cannot be read
    killed: list[int] = []
    add = module._Found.pick

    def kill_one_after_the_first_rows(self, predictions):
        for number, prediction in enumerate(add(self, predictions)):
            if number == 10:
                pids = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_worker(path)]
                assert len(pids) == 2
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
            yield prediction

    monkeypatch.setattr(module._Found, "pick", kill_one_after_the_first_rows)
    assert main([*words, "--ray", "2", "--csv", str(tmp_path / "shared.csv")]) == 2
    assert killed
    alone, shared = (list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("alone", "shared"))
    assert [row["name"] for row in shared] == [row["name"] for row in alone]
    for ours, theirs in zip(shared, alone, strict=True):
        assert (ours["label"], ours["error"]) == (theirs["label"], theirs["error"])
        if ours["probability"]:
            assert float(ours["probability"]) == pytest.approx(float(theirs["probability"]), abs=1e-4)
