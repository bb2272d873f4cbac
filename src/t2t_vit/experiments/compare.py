"""Models side by side: what they cost and, given data, how well each learns it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2t_vit.data.pixels import PixelFormat, as_seen
from t2t_vit.data.sources import open_evaluation
from t2t_vit.experiments.config import CompareConfig, starts_in_words, train_config
from t2t_vit.experiments.costs import compare_costs
from t2t_vit.experiments.grid import PICTURE, TABLE, run_grid
from t2t_vit.inference.predictor import Predictor
from t2t_vit.insight.complexity import count_macs, count_parameters
from t2t_vit.models.names import resolve_name
from t2t_vit.pictures.figures import Sample, comparison_figure, sheet_shape
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv
from t2t_vit.training.train import TrainResult, run_training


def compare(config: CompareConfig) -> int | None:
    """Prints what models cost; given data, trains each on it with the same settings, one after the other.

    Training leaves a folder with a run directory for each model, the table as CSV, and a picture of the learning
    curves beside predicted images. With several seeds or numbers of labels, `run_grid` does it.

    Returns:
        The exit code of a comparison that was interrupted.

    Raises:
        UserError: as training does; an unknown model, before the first one is trained.
    """
    if config.data is None:
        compare_costs(config)
        return None
    if config.is_grid:
        return run_grid(config)
    names, output = list(dict.fromkeys(resolve_name(name) for name in config.models)), config.folder
    starts = starts_in_words(config)
    results: dict[str, TrainResult] = {}
    for name in names:
        results[name] = run_training(train_config(config, model=name, output=output / name))
        if results[name].interrupted is not None:
            return results[name].interrupted

    # Each predicts with its best weights, in the precision that its run was evaluated in.
    predictors = {
        name: Predictor(result.output / "best.pt", device=config.device, amp=None) for name, result in results.items()
    }
    rows = [_row(name, result, predictors[name]) for name, result in results.items()]
    write_csv(output / TABLE, rows)
    best = max(rows, key=lambda row: row["top1_percent"])["model"]
    _draw(results, best, predictors[best], config, output / PICTURE)
    _print_rows(rows)
    print(
        *starts,
        f"Table:   {output / TABLE}",
        f"Picture: {output / PICTURE}",
        f"Runs:    {output}{os.sep}MODEL",
        sep="\n",
    )
    return None


def _row(name: str, result: TrainResult, predictor: Predictor) -> dict[str, Any]:
    """A row of the table: parameters with the frozen tables, MACs of one image at the size that was trained at."""
    input_size = predictor.data_config["input_size"]
    return {
        "model": name,
        "top1_percent": result.best_top1,
        "img_size": tuple(input_size[1:]),
        "parameters": count_parameters(predictor.network)[1],
        "macs": count_macs(predictor.network, input_size),
        "seconds": result.seconds,
    }


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    table = new_table("Model", "Top-1 %", "Pixels", "Params M", "GMACs", "Seconds")
    for name, top1_percent, (height, width), parameters, macs, seconds in (row.values() for row in rows):
        pixels = str(height) if height == width else f"{height}x{width}"
        costs = f"{parameters / 1e6:.2f}", f"{macs / 1e9:.3f}", f"{seconds:.0f}"
        table.add_row(name, f"{top1_percent:.2f}", pixels, *costs)
    print()
    print_table(table)


def _draw(results: dict[str, TrainResult], best: str, predictor: Predictor, config: CompareConfig, path: Path) -> None:
    """Draws the learning curves of all models, and the predictions of the best one for validation images."""
    # Of the better ones of raw and averaged weights; a head that is fitted anew comes after the last step.
    curves = {
        name: {row["step"]: max(row["val_top1"], row.get("ema_top1", 0.0)) for row in result.metrics}
        for name, result in results.items()
    }
    trained_split = predictor.checkpoint.extra["split"]
    evaluation = open_evaluation(str(config.data), data_dir=config.data_dir, trained_split=trained_split)
    images = evaluation.images.in_format(PixelFormat.of(predictor.data_config))
    predictions = predictor(images, top_k=1, batch_size=64, workers=config.workers)
    predicted = {index: answer.labels[0][0] for index, answer in enumerate(predictions) if answer.error is None}
    labels = [evaluation.class_names[label] for label in images.labels]
    columns, rows = sheet_shape(evaluation.class_names)
    samples = [
        Sample(as_seen(images.load(index)), predicted[index], labels[index])
        for index in choose_images(predicted, labels, count=columns * rows)
    ]
    comparison_figure(
        curves,
        samples,
        path,
        sheet_title=f"{best} on validation images",
        sheet_note=_describe_sheet(samples, predicted, labels),
    )


def choose_images(predicted: dict[int, str], labels: Sequence[str], *, count: int) -> list[int]:
    """Images for the sheet, in order: evenly spaced over all, with every mistake if mistakes are few."""
    readable = sorted(predicted)
    mistakes = [index for index in readable if predicted[index] != labels[index]]
    must = mistakes if len(mistakes) <= count // 4 else []
    others = [index for index in readable if index not in must]
    places = np.linspace(0, len(others) - 1, min(count - len(must), len(others))).round().astype(int)
    return sorted([*must, *(others[place] for place in places)])


def _describe_sheet(samples: Sequence[Sample], predicted: dict[int, str], labels: Sequence[str]) -> str:
    mistakes = sum(label != labels[index] for index, label in predicted.items())
    shown = sum(sample.predicted != sample.label for sample in samples)
    among = "all of them" if shown == mistakes else f"{shown} of them"
    found = f"{mistakes} mistakes, {among} framed here" if mistakes else "no mistake"
    return f"{len(samples)} of {len(predicted)} images; {found}"
