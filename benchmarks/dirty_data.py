"""What --balance and --exclude suspects.csv change, by training on uneven and on faulty digits.

    python benchmarks/dirty_data.py balance    # five digits with 80 training images each, five with 4
    python benchmarks/dirty_data.py suspects   # of 300 images 20 % have a wrong label, and 10 % are there twice

Each seed draws its own images and trains every arm on them: `train` with the recipe `small` and 600 steps of the chosen
batch. Accuracy is that of best.pt, chosen on validation images, on others that nothing was chosen by. Rows are added to
a CSV, and rows that are there are not run again.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from t2t_vit.data.config import DataConfig
from t2t_vit.pictures.inspection import data_command
from t2t_vit.training.train import train

STEPS = 600
ARMS = {"balance": ("none", "balance"), "suspects": ("faulty", "without suspects", "without faults")}


def write(folder: Path, part: str, label: int, name: str, pixels: np.ndarray) -> str:
    """Writes a digit and returns its name below the folder."""
    path = folder / part / str(label) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(path)
    return path.relative_to(folder).as_posix()


def uneven(folder: Path, seed: int) -> None:
    """Training images 80 to 4, 20 of each class to validate, the others to test."""
    data, rng = load_digits(), np.random.default_rng(seed)
    rare = set(rng.permutation(10)[:5].tolist())
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(data.target == label)).tolist()
        count = 4 if label in rare else 80
        for part, chosen in (("train", rows[:count]), ("val", rows[80:100]), ("test", rows[100:])):
            for row in chosen:
                write(folder, part, label, f"{row:04d}", data.images[row])


def faulty(folder: Path, seed: int) -> list[str]:
    """300 digits with faults to train and validate on, the others to test; returns the faulty ones."""
    data, rng = load_digits(), np.random.default_rng(seed)
    rows = rng.permutation(len(data.target)).tolist()
    faults = []
    for place, row in enumerate(rows):
        label, name = int(data.target[row]), f"{row:04d}"
        if place >= 300:
            write(folder, "test", label, name, data.images[row])
            continue
        part = "val" if place % 5 == 0 else "train"
        if place < 60:
            label = (label + int(rng.integers(1, 10))) % 10
            faults.append(write(folder, part, label, name, data.images[row]))
            continue
        write(folder, part, label, name, data.images[row])
        if 60 <= place < 90:  # a copy in the other part
            other = "train" if part == "val" else "val"
            faults.append(write(folder, other, label, f"{name}again", data.images[row]))
    return faults


def run(study: str, arm: str, seed: int) -> dict[str, object]:
    """Trains one arm and tests it."""
    with tempfile.TemporaryDirectory() as directory:
        folder, settings = Path(directory) / "digits", {}
        if study == "balance":
            uneven(folder, seed)
            settings = {"balance": True} if arm == "balance" else {"best_by": "balanced"}
        else:
            faults = faulty(folder, seed)
            if arm == "without suspects":  # the list as it is written: nobody has looked through it
                data_command(DataConfig(data=str(folder), output=directory))
                settings = {"exclude": f"{directory}/suspects.csv"}
            elif arm == "without faults":
                (Path(directory) / "faults.txt").write_text("\n".join(faults))
                settings = {"exclude": f"{directory}/faults.txt"}
        result = train(str(folder), output=f"{directory}/run", steps=STEPS, seed=seed, **settings)
    assert result.test is not None
    return {
        "study": study, "arm": arm, "seed": seed, "val_top1": result.best_top1, "test_top1": result.test.top1,
        "test_balanced": result.test.balanced, "test_loss": result.test.loss, "seconds": round(result.seconds),
    }  # fmt: skip


def main() -> None:
    """Runs what is missing, and prints means and standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=ARMS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("dirty-data.csv"))
    chosen = parser.parse_args()
    rows = list(csv.DictReader(chosen.output.open())) if chosen.output.exists() else []
    done = {(row["study"], row["arm"], int(row["seed"])) for row in rows}
    for seed in range(chosen.seeds):
        for arm in ARMS[chosen.study]:
            if (chosen.study, arm, seed) in done:
                continue
            row = run(chosen.study, arm, seed)
            with chosen.output.open("a", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(row))
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
    rows = [row for row in csv.DictReader(chosen.output.open()) if row["study"] == chosen.study]
    for arm in ARMS[chosen.study]:
        for column in ("val_top1", "test_top1", "test_balanced"):
            values = [float(row[column]) for row in rows if row["arm"] == arm]
            print(f"{arm:18}{column:15}{np.mean(values):7.2f} +- {np.std(values, ddof=1):.2f}  ({len(values)} seeds)")


if __name__ == "__main__":
    main()
