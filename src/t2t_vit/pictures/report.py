"""The predictions of a finished run for its validation images, written as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from t2t_vit.data.loading import NormalizedLoader
from t2t_vit.data.sources import ImageSet
from t2t_vit.models.factory import load_model
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.files import write_text
from t2t_vit.runtime.machine import Machine


class Prediction(NamedTuple):
    """What the network says of one image; `probability` is that of the class it predicts."""

    image_index: int
    label: int
    predicted: int
    probability: float
    in_top5: bool

    @property
    def is_right(self) -> bool:
        return self.predicted == self.label


@dataclass(frozen=True)
class RunSummary:
    """The run that a report is about.

    Attributes:
        title: the heading.
        about: lines of text below it.
        metrics: rows of metrics.jsonl.
        best_epoch: the one whose weights predict, from 0.
        images: those that were predicted.
        class_names: label to name.
    """

    title: str
    about: str
    metrics: Sequence[Mapping[str, Any]]
    best_epoch: int
    images: ImageSet
    class_names: Sequence[str]


def write_report(
    path: Path,
    checkpoint: Path,
    loader: NormalizedLoader,
    summary: RunSummary,
    *,
    machine: Machine,
    display: Display,
) -> None:
    """Writes the report of a run. The run is safe by then: what goes wrong here is told, and nothing is raised.

    Args:
        path: the HTML file.
        checkpoint: the weights to look at.
        loader: batches of the images in the summary; of several processes, each has a part, and all call this.
        summary: what is known without the weights.
        machine: where and in which precision.
        display: shows the progress and tells what goes wrong.
    """
    try:
        mine: list[Prediction] | str = predict(checkpoint, loader, machine, display)
    except Exception as error:  # the other processes wait in gather
        mine = _describe(error)
    parts = machine.gather(mine)
    if not machine.is_main_process:
        return
    failures = [part for part in parts if isinstance(part, str)]
    if not failures:
        try:
            from t2t_vit.pictures.page import page  # matplotlib is imported where a page is drawn

            write_text(path, page(summary, sorted(prediction for part in parts for prediction in part)))
        except Exception as error:
            failures = [_describe(error)]
    display.say(f"warning: {path} is not written: {failures[0]}" if failures else f"report: {path}")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


@torch.inference_mode()
def predict(checkpoint: Path, loader: NormalizedLoader, machine: Machine, display: Display) -> list[Prediction]:
    """What the network of a checkpoint says of this process's images, those that can be read."""
    model = load_model(checkpoint)[0].to(machine.device).eval()
    predictions: list[Prediction] = []
    with display.steps("predicting for the report", len(loader)) as steps:
        for batch in loader:
            if len(batch.images):
                with machine.autocast():
                    logits = model(batch.images)
                likeliest = logits.float().softmax(dim=-1).cpu().topk(min(5, logits.shape[-1]))  # (B, 5)
                in_top5 = (likeliest.indices == batch.targets[:, None]).any(dim=-1)
                columns = (batch.indices, batch.targets, likeliest.indices[:, 0], likeliest.values[:, 0], in_top5)
                predictions += map(Prediction, *(column.tolist() for column in columns))
            steps.advance()
    return predictions
