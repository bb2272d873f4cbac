"""The predictions of a finished run for its validation images, written as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from t2t_vit.data.images import ImageSet
from t2t_vit.data.loading import Batch
from t2t_vit.inference.evaluate import Accuracy
from t2t_vit.inference.predictor import Predictor
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.files import write_text
from t2t_vit.runtime.machine import Machine


class Answer(NamedTuple):
    """The class that the network gives an image; `probability` is that of this class."""

    image_index: int
    label: int
    predicted: int
    probability: float
    in_top5: bool

    @property
    def is_right(self) -> bool:
        return self.predicted == self.label


class Best(NamedTuple):
    """The best weights of a run so far.

    Attributes:
        step: steps that were done when they were evaluated.
        epoch: the epoch of that step, from 0.
        weights: "last weights" or "averaged weights".
        top1: their accuracy in percent.
        num_images: on how many validation images.
        balanced: the mean accuracy of the classes in percent.
    """

    step: int
    epoch: int
    weights: str
    top1: float
    num_images: int
    balanced: float

    def score(self, best_by: str) -> float:
        """What the best are chosen by: "top1" or "balanced"."""
        return self.balanced if best_by == "balanced" else self.top1


@dataclass(frozen=True)
class RunSummary:
    """The run that a report is about.

    Attributes:
        title: the heading.
        about: lines of text below it.
        metrics: rows of metrics.jsonl.
        best: the weights that predict.
        images: those that were predicted.
        class_names: label to name.
        test: accuracy on the images of test/, None without them.
    """

    title: str
    about: str
    metrics: Sequence[Mapping[str, Any]]
    best: Best
    images: ImageSet
    class_names: Sequence[str]
    test: Accuracy | None = None


def write_report(
    path: Path,
    checkpoint: Path,
    loader: "DataLoader[Batch]",
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
        mine: list[Answer] | str = predict(Predictor(checkpoint, machine=machine), loader, display)
    except Exception as error:  # the other processes wait in gather
        mine = f"{type(error).__name__}: {error}"
    parts = machine.gather(mine)
    if not machine.is_main_process:
        return
    failures = [part for part in parts if isinstance(part, str)]
    if not failures:
        try:
            from t2t_vit.pictures.page import page  # matplotlib is imported where a page is drawn

            write_text(path, page(summary, sorted(answer for part in parts for answer in part)))
        except Exception as error:
            failures = [f"{type(error).__name__}: {error}"]
    display.say(f"warning: {path} is not written: {failures[0]}" if failures else f"report: {path}")


def predict(predictor: Predictor, loader: "DataLoader[Batch]", display: Display) -> list[Answer]:
    """The answers for this process's images, those that can be read."""
    answers: list[Answer] = []
    for batch, logits, _ in predictor.stream(loader, display=display, label="predicting for the report"):
        likeliest = logits.float().softmax(dim=-1).cpu().topk(min(5, logits.shape[-1]))  # (B, 5)
        in_top5 = (likeliest.indices == batch.targets[:, None]).any(dim=-1)
        columns = (batch.indices, batch.targets, likeliest.indices[:, 0], likeliest.values[:, 0], in_top5)
        answers += map(Answer, *(column.tolist() for column in columns))
    return answers
