"""Measures how far relevance maps can be believed, on digits that were not trained on.

Deletion, insertion, SaCo and the map's likeness to that of random weights, on single digits; and a pointing game with a
known answer: four different digits in a square of two by two, each asked for in turn. The score is the share of the
relevance that lies in the quadrant of the digit asked for; a map that knows nothing has 0.25.

    t2t-vit compare digits --models t2t_vit_7_64px resnet18 --output runs/faithfulness
    pip install 't2t-vit[explain]'
    python benchmarks/faithfulness.py runs/faithfulness/t2t_vit_7_64px runs/faithfulness/resnet18
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.sources import open_evaluation
from t2t_vit.errors import UserError
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.insight.faithfulness import RANDOM, interval, measure_faithfulness, share_inside
from t2t_vit.insight.relevance import METHODS, random_map
from t2t_vit.runtime.console import Display, new_table, print_table
from t2t_vit.runtime.files import write_csv

HERE = Path(__file__).parent


def digits(predictor: Predictor) -> tuple[Tensor, Tensor]:
    """The digits that training held out, normalised, (N, C, H, W), and their classes."""
    images = open_evaluation("digits", trained_split=predictor.checkpoint.extra.get("split")).images
    loader = evaluation_loader(
        images.in_format(PixelFormat.of(predictor.data_config)),
        predictor.data_config,
        batch_size=64,
        machine=predictor.machine,
        workers=0,
    )
    batches = list(loader)
    return torch.cat([predictor.normalize(batch.images) for batch in batches]), torch.cat(
        [batch.targets for batch in batches]
    )


def mosaics(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Squares of four digits of different classes, (count, C, 2 H, 2 W), and the class in each quadrant, (count, 4)."""
    rng = np.random.default_rng(0)
    pictures, classes = [], []
    for _ in range(count):
        chosen = rng.choice(10, 4, replace=False)
        a, b, c, d = (images[rng.choice(np.flatnonzero(labels.numpy() == label))] for label in chosen)
        pictures.append(torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1))
        classes.append(torch.from_numpy(chosen))
    return torch.stack(pictures), torch.stack(classes)


def fitting_methods(network: Any, image: Tensor, label: Tensor) -> dict[str, Any]:
    """The methods that a network has, by name."""
    found = {}
    for name, method in METHODS.items():
        try:
            method.run(network, image, label)
        except UserError:
            continue
        found[name] = method.run
    return found


def pointing(
    path: str, methods: dict[str, Any], images: Tensor, labels: Tensor, count: int, display: Display
) -> dict[str, list[float]]:
    """The shares of the relevance in the quadrant asked for, one for each mosaic, by method."""
    side = 2 * images.shape[-1]
    network = Predictor(path, device="cpu", img_size=side).network
    pictures, classes = mosaics(images, labels, count)
    shares: dict[str, list[float]] = {name: [] for name in methods}
    quadrants = torch.arange(4).reshape(2, 2).repeat_interleave(side // 2, 0).repeat_interleave(side // 2, 1)
    with display.steps("mosaics", count) as steps:
        for picture, four in zip(pictures, classes, strict=True):
            for name, method in methods.items():
                found = [
                    float(share_inside(method(network, picture[None], label[None]), (quadrants == quadrant)[None]))
                    for quadrant, label in enumerate(four)
                ]
                shares[name].append(float(np.mean(found)))
            steps.advance()
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run directories of networks trained on digits")
    parser.add_argument("--images", type=int, default=100, help="single digits")
    parser.add_argument("--mosaics", type=int, default=50, help="squares of four digits")
    parser.add_argument("--csv", type=Path, default=HERE / "results" / "faithfulness-digits.csv")
    words = parser.parse_args()
    rows, display = [], Display(stderr=True)
    for path in words.runs:
        predictor = Predictor(path, device="cpu")
        images, labels = digits(predictor)
        name = str(predictor.checkpoint.model)
        places = np.linspace(0, len(images) - 1, words.images).round().astype(int)
        methods = fitting_methods(predictor.network, images[:1], labels[:1])
        with display.steps(f"{name}, digits", len(methods) + 1) as steps:
            scores = measure_faithfulness(
                predictor.network, images[places], labels[places], methods, model_name=name, each=steps.advance
            )
        shares = pointing(path, {**methods, RANDOM: random_map}, images, labels, words.mosaics, display)
        for score in scores:
            low, high = interval(shares[score.method])
            mean = float(np.mean(shares[score.method]))
            rows.append({**dataclasses.asdict(score), "pointing": mean, "pointing_low": low, "pointing_high": high})
        write_csv(words.csv, rows)
    table = new_table("Network", "Method", "Deletion", "Insertion", "SaCo", "Random weights", "Pointing", num_words=2)
    for row in rows:
        cells = [
            f"{row[column]:.3f} ({row[f'{column}_low']:.3f} to {row[f'{column}_high']:.3f})"
            for column in ("deletion", "insertion", "saco", "pointing")
        ]
        after = "" if row["after_randomising"] is None else f"{row['after_randomising']:.2f}"
        table.add_row(row["model"], row["method"], *cells[:3], after, cells[3])
    print_table(table)


if __name__ == "__main__":
    main()
