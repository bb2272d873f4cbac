"""Stops runs at chosen points and lets them go on: do they end with the weights of a run that never stopped?

    python benchmarks/resume_table.py --csv benchmarks/results/resume-table-MACHINE.csv

Every setting trains once without a stop; then for each point and signal a run is stopped there and resumed. One process
is a fork of this one. Two are started by torchrun, which gets the SIGTERM as a scheduler would send it; of SIGKILL one
of the two dies, and torchrun starts both again. Half an hour on two cores.
"""

import argparse
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import sklearn.datasets
import torch
from kill_storm import final_hashes, fork
from PIL import Image

from t2t_vit.cli import main as t2t_vit
from t2t_vit.runtime.files import write_csv
from t2t_vit.training import loop, setup
from t2t_vit.training.checkpointer import Checkpointer
from t2t_vit.training.learner import Learner
from t2t_vit.training.plan import Speed

COMMON = ["--model", "t2t_vit_7", "--img-size", "32", "--eval-share", "1", "--warmup-epochs", "0", "--batch-size", "16",
          "--checkpoint-every", "4", "--device", "cpu", "--resume"]  # fmt: skip
PLAIN = ["--no-amp", "--no-model-ema", "--drop-path", "0"]
ALL = ["--mixup", "0.8", "--cutmix", "1", "--drop", "0.1", "--drop-path", "0.2", "--grad-accum-steps", "3",
       "--aug-repeats", "2", "--clip-grad", "1"]  # fmt: skip
SETTINGS: dict[str, tuple[int, list[str]]] = {
    "no average, no mixup": (1, [*PLAIN, "-j", "0"]),
    "average": (1, ["--no-amp", "--drop-path", "0", "-j", "0"]),
    "mixup and CutMix": (1, [*PLAIN, "--mixup", "0.8", "--cutmix", "1", "-j", "0"]),
    "dropout and drop path": (1, ["--no-amp", "--no-model-ema", "--drop", "0.1", "--drop-path", "0.2", "-j", "0"]),
    "accumulation": (1, [*PLAIN, "--grad-accum-steps", "3", "-j", "0"]),
    "bfloat16": (1, ["--amp", "--no-model-ema", "--drop-path", "0", "-j", "0"]),
    **{f"all, {workers} workers": (1, [*ALL, "--no-amp", "-j", str(workers)]) for workers in (0, 1, 2)},
    "all, bfloat16": (1, [*ALL, "--amp", "-j", "1"]),
    "steps": (1, [*PLAIN, "--steps", "16", "-j", "0"]),
    "time, all": (1, [*ALL, "--no-amp", "-j", "0", "--max-time", "2s"]),
    "2 processes, all": (2, [*ALL, "--no-amp", "-j", "0"]),
    "2 processes, all, 1 worker, bfloat16": (2, [*ALL, "--amp", "-j", "1"]),
    "2 processes, all, 2 workers": (2, [*ALL, "--no-amp", "-j", "2"]),
}
POINTS = ("before a checkpoint", "between checkpoints", "half a file written", "last.pt without best.pt", "validation")
STOP = "--stop-at"
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def main() -> int:
    """Returns the exit code: 1 where any run ended with other weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--csv", type=Path, help="one row a stopped run")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process that has used OpenMP threads cannot be forked
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # or gloo does not start again

    work = Path(tempfile.mkdtemp(prefix="resume-table-"))
    write_digits(work / "digits")
    rows: list[dict[str, Any]] = []
    print(f"{'':36} " + "  ".join(f"{point:>23}" for point in POINTS) + "   (SIGKILL, SIGTERM)")
    for number, (name, (processes, words)) in enumerate(SETTINGS.items()):
        if options.only not in name:
            continue
        print(f"{name:36}", end="", flush=True)
        budget = [] if {"--steps", "--max-time"} & {*words} else ["--epochs", "2"]
        words = ["train", str(work / "digits"), *COMMON, *budget, *words]
        whole = work / f"{number}-whole"
        train([*words, "--output", str(whole)], processes)
        expected = final_hashes(whole)
        for point in POINTS:
            cells = []
            for sign in SIGNALS:
                run = work / f"{number}-{POINTS.index(point)}-{sign.name}"
                went_on_at = stop_and_go_on([*words, "--output", str(run)], processes, point, sign)
                found = final_hashes(run)
                cells.append("same" if found == expected else "DIFFERS")
                rows.append(
                    {"setting": name, "processes": processes, "point": point, "signal": sign.name,
                     "went_on_at": went_on_at, "identical": found == expected,
                     "weights_sha256": found["weights"], "uninterrupted_sha256": expected["weights"]}
                )  # fmt: skip
                shutil.rmtree(run)
            print(f"  {', '.join(cells):>23}", end="", flush=True)
        print()
    if options.csv:
        write_csv(options.csv, rows)
    different = sum(not row["identical"] for row in rows)
    print(f"{len(rows)} stopped runs, {different} ended otherwise than the uninterrupted one.")
    shutil.rmtree(work)
    return 1 if different or not rows else 0


def write_digits(folder: Path) -> None:
    """Class folders with 10 digits of each to train on and 3 to validate."""
    digits = sklearn.datasets.load_digits()
    for label in range(10):
        for i, pixels in enumerate(digits.images[digits.target == label][:13]):
            path = folder / ("train" if i < 10 else "val") / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(path)


def train(words: list[str], processes: int, stop: list[str] | None = None) -> int:
    """Runs the command in one process or several; returns the exit code, which is 0 where nothing is to stop it."""
    log = log_of(words)
    if processes == 1:
        code = os.waitstatus_to_exitcode(os.waitpid(fork(lambda: child(words, stop), log), 0)[1])
    else:
        script = [__file__, STOP, *stop] if stop else ["-m", "t2t_vit"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
        with log.open("a") as file:
            code = subprocess.call([*torchrun, *script, *words], stdout=file, stderr=file)
    if code and not stop:
        sys.exit(f"A run ended with exit code {code}:\n{log.read_text()[-5000:]}")
    return code


def log_of(words: list[str]) -> Path:
    output = Path(words[words.index("--output") + 1])
    return output.with_name(f"{output.name}.log")


def stop_and_go_on(words: list[str], processes: int, point: str, sign: signal.Signals) -> str:
    """Stops a run at a point and resumes it; returns where it went on."""
    code = train(words, processes, [point, sign.name])
    if processes == 1:
        assert code == (-sign if sign == signal.SIGKILL else 128 + sign), (point, sign, code)
    else:  # torchrun has started both again when one was killed; its own end is no success
        assert (code == 0) == (sign == signal.SIGKILL), (point, sign, code)
    if code:
        train(words, processes)
    starts = re.findall(r"starts fresh|step \d+ of \d+(?=\.$)", log_of(words).read_text(), re.MULTILINE)
    assert len(starts) == 2, (point, sign, starts)
    return starts[1]


def child(words: list[str], stop: Sequence[str] | None) -> int:
    """A training process, which may be told where to stop the run.

    A time limit is planned for one speed and corrected for another, which are the same for all runs.
    """
    if "--max-time" in words:
        setup.measure_speed = lambda *_: Speed(step_s=0.05, image_s=0.001)
        setup.Run.elapsed_s = lambda run: 0.08 * run.progress.step
    if stop and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        point, name = stop
        stop_at(point, signal.Signals[name])
    return t2t_vit(words)


def stop_at(point: str, sign: signal.Signals) -> None:
    """Changes the loop of this process: at the point it sends the signal, to itself or to the torchrun above it."""
    rank = int(os.environ.get("RANK", -1))

    def stop() -> None:
        if sign == signal.SIGKILL or rank == -1:
            os.kill(os.getpid(), sign)
        elif rank == 0:
            os.kill(os.getppid(), sign)

    def save_half(contents: dict[str, Any], file: BinaryIO) -> None:
        whole = io.BytesIO()
        torch_save(contents, whole)
        half = len(whole.getvalue()) // 2
        file.write(whole.getvalue()[:half])
        file.flush()
        stop()
        file.write(whole.getvalue()[half:])

    torch_save = torch.save
    if point == "half a file written":
        saves = itertools.count()
        torch.save = lambda *args: save_half(*args) if next(saves) == 2 else torch_save(*args)
    elif point == "last.pt without best.pt":
        Checkpointer._file_evaluation = before_call(0, stop, Checkpointer._file_evaluation)
    elif rank != 0 or sign == signal.SIGTERM:  # of two processes, the second dies of SIGKILL
        if point == "validation":
            loop.measure_accuracy = before_call(0, stop, loop.measure_accuracy)
        else:
            Learner.learn = before_call(
                {"before a checkpoint": 2, "between checkpoints": 10}[point], stop, Learner.learn
            )


def before_call(number: int, do: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, before whose n-th call, from 0, something is done."""
    calls = itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            do()
        return function(*args, **kwargs)

    return call


if __name__ == "__main__":
    if sys.argv[1:2] == [STOP]:
        sys.exit(child(sys.argv[4:], sys.argv[2:4]))
    sys.exit(main())
