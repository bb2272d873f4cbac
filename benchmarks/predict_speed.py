"""`predict` over a folder beside the network alone: what reading, decoding and writing cost.

    python benchmarks/predict_speed.py --checkpoint runs/FOLDER --images FOLDER/val

Rounds in turn, in one process: the network on normalised images that are there already, as `t2t-vit benchmark` times it,
and `Predictor` over the files, whose rows go into a CSV. Both compute in batches of the same size. Workers are started
before the clock is, so that it tells of long lists.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from t2t_vit.deploy.rows import CsvRows, columns_of
from t2t_vit.inference.inputs import find_images
from t2t_vit.inference.predictor import Predictor
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.hardware import hardware_name


def network_speed(predictor: Predictor, batch_size: int, count: int) -> float:
    """Images per second of the network alone."""
    images = torch.randn(batch_size, *predictor.data_config["input_size"])
    with torch.inference_mode():
        predictor.network(images)
        start, done = time.perf_counter(), 0
        while done < count:
            predictor.network(images)
            done += batch_size
    return done / (time.perf_counter() - start)


def folder_speed(predictor: Predictor, paths: Sequence[Path | str], batch_size: int, count: int) -> float:
    """Images per second from files to rows of a CSV, after the first batch."""
    many = [paths[row % len(paths)] for row in range(count + batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        rows = CsvRows(Path(folder, "rows.csv"), columns_of(1, embed=False))
        for number, prediction in enumerate(predictor(many, 1, batch_size=batch_size)):
            if number == batch_size:
                start = time.perf_counter()
            rows.add(prediction)
        return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--count", type=int, default=640, help="images of a round")
    parser.add_argument("--rounds", type=int, default=5)
    words = parser.parse_args()
    predictor, paths = Predictor(words.checkpoint, device="cpu"), find_images(words.images)
    alone, folder = list[float](), list[float]()
    for _ in range(words.rounds):
        alone.append(network_speed(predictor, words.batch_size, words.count))
        folder.append(folder_speed(predictor, paths, words.batch_size, words.count))
    table = new_table("", "images/s", "least, most", num_words=1)
    for name, speeds in (("network alone", alone), ("predict", folder)):
        table.add_row(name, f"{statistics.median(speeds):.1f}", f"{min(speeds):.1f}, {max(speeds):.1f}")
    print_table(table)
    share = statistics.median(theirs / ours for ours, theirs in zip(alone, folder, strict=True))
    print(f"predict has {share:.2f} of it; {hardware_name(torch.device('cpu'))}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
