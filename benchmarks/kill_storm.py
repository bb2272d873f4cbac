"""Kills one training run with SIGKILL at random moments, many times; its final weights must be those of a run left alone.

    python benchmarks/kill_storm.py --csv benchmarks/results/kill-storm-MACHINE.csv

Each start is a fork of this process, which has imported all there is to import, so that a kill falls as often on
start-up, steps, validation or the writing of a checkpoint as these last. What dies is the whole process group, the data
loader's workers too. After every kill the files are read as they lie. A few minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 - for the children: the built-in digits need it
import torch

from t2t_vit.runtime.files import write_csv
from t2t_vit.training.checkpointer import read_training_state, read_weights
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.train import run_training

SETTINGS: dict[str, Any] = {
    "data": "digits",
    "model": "t2t_vit_7",
    "img_size": 32,
    "batch_size": 32,
    "eval_share": 1.0,  # else the speed at the start decides how often it is evaluated
    "warmup_epochs": 1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "aa": "rand-m9-mstd0.5-inc1",
    "reprob": 0.25,
    "drop_path": 0.2,
    "model_ema": True,
    "device": "cpu",
    "amp": False,
}
KEPT = ("epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "ema_top1")


@dataclass(frozen=True)
class Kill:
    """One kill, and what it left.

    Attributes:
        after_s: since the start that it ended.
        workers: processes that loaded images in that start.
        step: that the checkpoint stands at.
        won: steps that the start added to the checkpoint.
        moment: what it fell on, as far as the files tell.
    """

    number: int
    after_s: float
    workers: int
    step: int
    won: int
    moment: str


def main() -> int:
    """Returns the exit code: 1 where the final weights differ, or a file was lost or broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=30, help="of the run: it must outlast the kills")
    parser.add_argument("--checkpoint-every", type=int, default=3, help="steps")
    parser.add_argument(
        "--longest", type=float, default=3.0, help="seconds after which a start is killed at the latest"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--csv", type=Path, help="one row a kill")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process that has used OpenMP threads cannot be forked

    work = Path(tempfile.mkdtemp(prefix="kill-storm-"))
    settings = {**SETTINGS, "epochs": options.epochs, "checkpoint_every": options.checkpoint_every}
    began = time.monotonic()
    whole = TrainConfig(**settings, output=str(work / "whole"), workers=0)
    finish(start(whole, work / "whole.log"), work / "whole.log")
    print(f"uninterrupted: {options.epochs} epochs, {time.monotonic() - began:.0f} s", flush=True)

    stormy = TrainConfig(**settings, output=str(work / "stormy"), resume=True)
    kills = storm(stormy, options, log=work / "stormy.log")
    if options.csv:
        write_csv(options.csv, kills)
    for moment, count in Counter(kill.moment for kill in kills).most_common():
        print(f"{count:4d} kills {moment}")
    hashes = {name: final_hashes(work / name) for name in ("whole", "stormy")}
    width = max(map(len, hashes["whole"]))
    for part, expected in hashes["whole"].items():
        print(f"{part:{width}}  {expected}  {'identical' if hashes['stormy'][part] == expected else 'DIFFERS'}")
    identical = hashes["whole"] == hashes["stormy"]
    print(f"{len(kills)} kills: the run ended {'as' if identical else 'OTHERWISE than'} the uninterrupted one.")
    shutil.rmtree(work)
    return 0 if identical else 1


def storm(config: TrainConfig, options: argparse.Namespace, *, log: Path) -> list[Kill]:
    """Starts the run, kills it, and so on; then lets it end."""
    rng = random.Random(options.seed)
    kills: list[Kill] = []
    step = -1
    for number in range(1, options.kills + 1):
        workers, after_s = rng.choice((0, 1, 2)), rng.uniform(0, options.longest)
        pid = start(with_workers(config, workers), log)
        time.sleep(after_s)
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            sys.exit(f"The run ended before kill {number}, see {log}: give it more --epochs, or a smaller --longest.")
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        now, moment = look(Path(config.run_directory), before=step)
        kills.append(Kill(number, round(after_s, 3), workers, now, now - step, moment))
        step = now
        print(f"kill {number:3d} after {after_s:.2f} s, {workers} workers: step {step}, {moment}", flush=True)
    finish(start(with_workers(config, 1), log), log)
    return kills


def with_workers(config: TrainConfig, workers: int) -> TrainConfig:
    """The settings with another number of loading processes, which may change nothing."""
    return TrainConfig(**{**asdict(config), "workers": workers})


def start(config: TrainConfig, log: Path) -> int:
    """Trains in a process of its own, the leader of a group; returns its id, which is the group's."""
    return fork(lambda: run_training(config).interrupted or 0, log)


def fork(job: Callable[[], int], log: Path) -> int:
    """Runs a job that returns an exit code in a process of its own, the leader of a group; returns its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = job()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    while os.getpgid(pid) != pid:  # the group must be there before it is killed
        time.sleep(0.001)
    return pid


def finish(pid: int, log: Path) -> None:
    """Waits for a run that nobody kills."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        sys.exit(f"A run ended with exit code {code}:\n{log.read_text()[-3000:]}")


def look(run: Path, *, before: int) -> tuple[int, str]:
    """The step that a killed run's checkpoint stands at, -1 for none, and what the kill fell on.

    Leaves with an error where a file is broken, or less is there than before.
    """
    if (run / "metrics.jsonl").exists():
        for line in (run / "metrics.jsonl").read_text().splitlines():
            json.loads(line)
    if (run / "best.pt").exists():
        read_weights(run / "best.pt")
    step = -1
    if (run / "last.pt").exists():
        state = read_training_state(run / "last.pt")
        step = state["progress"]["step"]
        assert step == max(int(moment["step"]) for moment in state["optimizer"]["state"].values())
        assert all(row["step"] <= step for row in state["progress"]["metrics"])
    if step < before:
        sys.exit(f"Lost: the checkpoint stood at step {before}, now at {step}.")
    if (run / "last.pt.tmp").exists():
        return step, "while a checkpoint was written"
    return step, "after its start had saved" if step > before else "before its start had saved"


def final_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of each result of a finished run: weights, moving average, the optimiser's tensors, the metrics."""
    state = read_training_state(run / "last.pt")
    moments = {
        f"{index}.{key}": value
        for index, moment in state["optimizer"]["state"].items()
        for key, value in moment.items()
    }
    tensors = {"weights": state["state_dict"], "average": state.get("state_dict_ema", {}), "optimiser": moments}
    hashes = {part: hash_of(values) for part, values in tensors.items()}
    rows = [{key: row[key] for key in KEPT if key in row} for row in state["progress"]["metrics"]]
    return hashes | {"metrics": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}


def hash_of(values: dict[str, Any]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        sha256.update(name.encode())
        sha256.update(value.contiguous().numpy().tobytes() if torch.is_tensor(value) else repr(value).encode())
    return sha256.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
