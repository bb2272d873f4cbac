"""Models side by side: what they cost and, given data, how well each learns it."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch

from t2t_vit.data.sources import ImageSet, open_evaluation
from t2t_vit.errors import UserError
from t2t_vit.experiments.config import CompareConfig
from t2t_vit.inference.evaluate import evaluation_loader
from t2t_vit.insight.complexity import (
    count_macs,
    count_parameters,
    describe,
    print_complexity,
)
from t2t_vit.models.variants import resolve_any_name
from t2t_vit.models.weights import build_model
from t2t_vit.options import configure
from t2t_vit.pictures.plots import Sample, comparison_figure, sheet_shape
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv
from t2t_vit.runtime.machine import find_machine
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.train import TrainResult, run_training

TABLE, PICTURE = "comparison.csv", "comparison.png"


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """One model's row.

    Attributes:
        top1_percent: accuracy of its best checkpoint on the validation images.
        parameters: frozen tables included.
        macs: multiply-accumulates of one image, at the size that it was trained at.
        seconds: time spent training, evaluations included.
    """

    model: str
    top1_percent: float
    parameters: int
    macs: int
    seconds: float


def compare(config: CompareConfig) -> None:
    """Prints what models cost. Given data, trains each on it with the same settings, one after the other.

    Then the folder of the comparison holds a run directory for each model, the table as CSV, and a picture of the
    learning curves beside predicted images.

    Raises:
        UserError: as training does; for an unknown model before the first one is trained.
    """
    if config.data is None:
        print_complexity([describe(name, config.img_size) for name in config.models])
        return
    if timm.is_model(config.data.lower()) and not Path(config.data).exists():
        raise UserError(f"{config.data} is a model, and no data to train on: t2t-vit compare --models {config.data}")
    names = list(dict.fromkeys(resolve_any_name(name) for name in config.models))
    output = Path(config.output or f"runs/compare-{Path(config.data).resolve().name}")
    results = {name: run_training(train_config(config, model=name, output=output / name)) for name in names}

    rows = [_row(name, result) for name, result in results.items()]
    write_csv(output / TABLE, rows)
    best = max(rows, key=lambda row: row.top1_percent).model
    _draw(results, best, config, output / PICTURE)
    _print_rows(rows)
    print(f"Table:   {output / TABLE}", f"Picture: {output / PICTURE}", f"Runs:    {output}{os.sep}MODEL", sep="\n")


def train_config(config: CompareConfig, *, model: str, output: Path) -> TrainConfig:
    """The settings of one model's run: those of the comparison, and for what it leaves open the recipe's."""
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "models"}
    given = {name: value for name, value in shared.items() if value is not None}
    return configure(TrainConfig, **{**given, "model": model, "output": output})


def _row(name: str, result: TrainResult) -> ComparedModel:
    model, checkpoint = build_model(result.output / "best.pt")
    assert checkpoint.data_config is not None
    macs = count_macs(model, checkpoint.data_config["input_size"])
    return ComparedModel(name, result.best_top1, count_parameters(model)[1], macs, result.seconds)


def _print_rows(rows: Sequence[ComparedModel]) -> None:
    table = new_table("Model", "Top-1 %", "Params M", "GMACs", "Seconds")
    for row in rows:
        table.add_row(
            row.model,
            f"{row.top1_percent:.2f}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.macs / 1e9:.3f}",
            f"{row.seconds:.0f}",
        )
    print()
    print_table(table)


def _draw(results: dict[str, TrainResult], best: str, config: CompareConfig, path: Path) -> None:
    """The learning curves of all models, and what the best one says of validation images."""
    # Of the moving average where one is kept, as `best_top1` is.
    curves = {
        name: [row.get("ema_top1", row["val_top1"]) for row in result.metrics] for name, result in results.items()
    }
    images, class_names, predicted = _predictions(results[best].output / "best.pt", config)
    columns, rows = sheet_shape(class_names)
    shown = choose_images(predicted, images.labels, count=columns * rows)
    samples = [
        Sample(images.load(index), class_names[predicted[index]], class_names[images.label(index)]) for index in shown
    ]
    comparison_figure(
        curves,
        samples,
        path,
        sheet_title=f"{best} on validation images",
        sheet_note=_describe_sheet(samples, predicted, images.labels),
    )


def _predictions(checkpoint_path: Path, config: CompareConfig) -> tuple[ImageSet, Sequence[str], dict[int, int]]:
    """The validation images, the class names, and the class given to each image that can be read."""
    model, checkpoint = build_model(checkpoint_path)
    trained_split = checkpoint.extra.get("split")
    evaluation = open_evaluation(str(config.data), data_dir=config.data_dir, trained_split=trained_split)
    machine = find_machine(config.device)
    assert checkpoint.data_config is not None
    loader = evaluation_loader(
        evaluation.images, checkpoint.data_config, batch_size=64, machine=machine, workers=config.workers
    )
    model.to(machine.device).eval()
    predicted: dict[int, int] = {}
    with torch.inference_mode(), machine.autocast():
        for batch in loader:
            if len(batch.images):
                classes = model(batch.images.to(machine.device)).argmax(dim=-1)
                predicted.update(zip(batch.indices.tolist(), classes.tolist(), strict=True))
    return evaluation.images, evaluation.class_names, predicted


def choose_images(predicted: dict[int, int], labels: Sequence[int], *, count: int) -> list[int]:
    """Images for the sheet, in their order: evenly from all of them, and every mistake where mistakes are few."""
    readable = sorted(predicted)
    mistakes = [index for index in readable if predicted[index] != labels[index]]
    must = mistakes if len(mistakes) <= count // 4 else []
    others = [index for index in readable if index not in must]
    places = np.linspace(0, len(others) - 1, min(count - len(must), len(others))).round().astype(int)
    return sorted([*must, *(others[place] for place in places)])


def _describe_sheet(samples: Sequence[Sample], predicted: dict[int, int], labels: Sequence[int]) -> str:
    mistakes = sum(label != labels[index] for index, label in predicted.items())
    shown = sum(sample.predicted != sample.label for sample in samples)
    among = "all of them" if shown == mistakes else f"{shown} of them"
    found = f"{mistakes} mistakes, {among} framed here" if mistakes else "no mistake"
    return f"{len(samples)} of {len(predicted)} images; {found}"
