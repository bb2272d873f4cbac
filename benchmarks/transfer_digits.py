"""Transfer on real images: pre-train on the digits 0 to 4, learn 5 to 9 from few labels, against the same from scratch.

    python benchmarks/transfer_digits.py --csv benchmarks/results/transfer-digits-MACHINE.csv

scikit-learn's digits at 64 pixels. For each seed a network learns all 0 to 4; then, with few labels a class of 5 to 9,
one starts from nothing, one goes on by the transfer recipe (plain SGD, the backbone at 0.01 of the head's rate), and one
goes on with every rate and the optimiser of the run from nothing. All see the same images for the same number of epochs,
and the last epoch counts, on 450 images that no training saw. Nothing was tuned. Half an hour on two cores.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import torch
from PIL import Image

from t2t_vit.inference.evaluate import evaluate
from t2t_vit.options import configure
from t2t_vit.runtime.files import write_csv
from t2t_vit.training.config import TrainConfig, TransferConfig
from t2t_vit.training.train import run_training

OLD, NEW = range(5), range(5, 10)
NUM_TEST, NUM_VAL = 90, 10  # of each new class; what training validates on decides nothing
SHARED: dict[str, Any] = {
    "model": "t2t_vit_7", "img_size": 64, "device": "cpu", "amp": False, "workers": 0, "batch_size": 16, "scale": (0.8, 1.0),
    "ratio": (0.85, 1.18), "hflip": 0.0, "color_jitter": None, "crop_pct": 1.0, "crop_padding": None,
}  # fmt: skip
SCRATCH: dict[str, Any] = {"recipe": "digits"}
TRANSFER: dict[str, Any] = {"recipe": "transfer", "checkpoint": True}
STARTS: dict[str, dict[str, Any]] = {
    "scratch": SCRATCH,
    "transfer": TRANSFER,
    "fine-tune": {**SCRATCH, "checkpoint": True},
}


class Digits:
    """The digits as rows by class, in an order of our own, and the folders that are made of them."""

    def __init__(self, work: Path) -> None:
        digits = sklearn.datasets.load_digits()
        self.work, self.pixels = work, np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
        order = np.random.default_rng(0).permutation(len(self.pixels))
        self.rows = [order[digits.target[order] == label] for label in range(10)]

    def folder(self, name: str, parts: Mapping[str, Mapping[int, Iterable[int]]]) -> str:
        """Writes class folders: the images by part and label; "" is no part."""
        for part, classes in parts.items():
            for label, rows in classes.items():
                folder = self.work / name / part / str(label)
                folder.mkdir(parents=True)
                for row in rows:
                    Image.fromarray(self.pixels[row]).save(folder / f"{row:04d}.png")
        return str(self.work / name)

    def old(self) -> str:
        """All of 0 to 4, 10 a class for validation."""
        rows = {label: self.rows[label] for label in OLD}
        return self.folder(
            "old",
            {"train": {label: some[NUM_VAL:] for label, some in rows.items()},
             "val": {label: some[:NUM_VAL] for label, some in rows.items()}},
        )  # fmt: skip

    def test(self) -> str:
        return self.folder("test", {"": {label: self.rows[label][:NUM_TEST] for label in NEW}})

    def few(self, labels: int, seed: int) -> str:
        """So many labelled images of each of 5 to 9, drawn by the seed."""
        rng = np.random.default_rng(seed)
        drawn = {label: rng.permutation(self.rows[label][NUM_TEST:]) for label in NEW}
        return self.folder(
            f"few-{labels}-{seed}",
            {"train": {label: rows[NUM_VAL:][:labels] for label, rows in drawn.items()},
             "val": {label: rows[:NUM_VAL] for label, rows in drawn.items()}},
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, nargs="+", default=(10, 20), help="of each class")
    parser.add_argument("--epochs", type=int, default=40, help="of learning 5 to 9")
    parser.add_argument("--pretrain-epochs", type=int, default=10)
    parser.add_argument("--csv", type=Path, help="one row a run")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in the same order on every machine

    with tempfile.TemporaryDirectory(prefix="transfer-digits-") as work:
        digits = Digits(Path(work))
        rows: list[dict[str, Any]] = []
        old, test = digits.old(), digits.test()
        for seed in range(options.seeds):
            given = {"data": old, "recipe": "digits", "epochs": options.pretrain_epochs, "seed": seed}
            checkpoint = run(given, Path(work) / f"pretrained-{seed}")
            for labels in options.labels:
                data = digits.few(labels, seed)
                for name, values in STARTS.items():
                    given = {"data": data, "epochs": options.epochs, "seed": seed, **values}
                    if "checkpoint" in values:
                        given["checkpoint"] = str(checkpoint)
                    last = run(given, Path(work) / f"{name}-{labels}-{seed}")
                    top1 = measure(last, test)
                    rows.append({"labels_per_class": labels, "start": name, "seed": seed, "top1_percent": top1})
                    print(f"seed {seed}, {labels} labels a class, {name}: {top1:.2f} %", flush=True)
    print_table(rows)
    if options.csv:
        write_csv(options.csv, rows)
    return 0


def run(given: dict[str, Any], output: Path) -> Path:
    """Trains a network; returns its last checkpoint."""
    config = TransferConfig if given["recipe"] == "transfer" else TrainConfig
    interrupted = run_training(configure(config, **SHARED, **given, output=str(output))).interrupted
    if interrupted:
        sys.exit(interrupted)
    return output / "last.pt"


def measure(checkpoint: Path, data: str) -> float:
    """Top-1 accuracy in percent."""
    return evaluate(data, checkpoint=str(checkpoint), device="cpu", workers=0).top1


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds."""
    print(f"\n{'labels a class':>14}  {'start':40} {'top-1 %':>8}  {'spread':>6}  {'lowest':>6}  {'highest':>7}  seeds")
    for labels, start in dict.fromkeys((row["labels_per_class"], row["start"]) for row in rows):
        found = [row["top1_percent"] for row in rows if (row["labels_per_class"], row["start"]) == (labels, start)]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        print(
            f"{labels:14d}  {start:40} {statistics.mean(found):8.2f}  {spread:6.2f}  {min(found):6.2f}  "
            f"{max(found):7.2f}  {len(found)}"
        )


if __name__ == "__main__":
    sys.exit(main())
