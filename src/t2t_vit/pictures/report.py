"""What a run's report is made of: the run, and the predictions of its best weights for validation images."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t2t_vit.data.images import ImageSet
from t2t_vit.inference.calibration import Calibration, softmax
from t2t_vit.inference.evaluate import Accuracy
from t2t_vit.inference.predictions import Predictions
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.files import write_text


class Answer(NamedTuple):
    """The class that the network gives an image, with its probability, and that of the image's label."""

    image_index: int
    label: int
    predicted: int
    probability: float
    in_top5: bool
    label_probability: float

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
        refitted: whether their head was fitted anew after training.
        start_share: how far they went back then to the weights that the run started from.
    """

    step: int
    epoch: int
    weights: str
    top1: float
    num_images: int
    balanced: float = math.nan
    refitted: bool = False
    start_share: float = 0.0

    def __str__(self) -> str:
        return f"the {self.weights}{self.afterwards and f', {self.afterwards}'}"

    @property
    def afterwards(self) -> str:
        """What was done to the weights after training, empty if nothing was."""
        back = f"{100 * self.start_share:g} % of the way back to the start, " if self.start_share else ""
        return f"{back}with a head fitted anew" if self.refitted else ""

    def score(self, best_by: str) -> float:
        """What the best are chosen by: "top1" or "balanced"."""
        return self.balanced if best_by == "balanced" else self.top1

    def standard_error(self, best_by: str) -> float:
        """Of that score in percent points, as of a share of the images, with one right and one wrong added to them."""
        share = (self.score(best_by) / 100 * self.num_images + 1) / (self.num_images + 2)
        return 100 * math.sqrt(share * (1 - share) / self.num_images)


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
        stopped_at: the steps that are done and those of the whole run, where it was stopped.
        test: accuracy on the images of test/, None without them.
        best_by: what the best weights were chosen by, "top1" or "balanced".
        linear_percent: the accuracy of a linear classifier on tiny copies of validation images, where that is of
            interest.
        augmented: file of the sheet of training images as the network gets them, if there is one.
    """

    title: str
    about: str
    metrics: Sequence[Mapping[str, Any]]
    best: Best
    images: ImageSet
    class_names: Sequence[str]
    stopped_at: tuple[int, int] | None = None
    test: Accuracy | None = None
    best_by: str = "top1"
    linear_percent: float | None = None
    augmented: Path | None = None


def answers_of(predictions: Predictions, temperature: float = 1.0) -> list[Answer]:
    """The answer for each image that can be read, with calibrated probabilities."""
    probabilities = softmax(predictions.logits, temperature)
    order = (-probabilities).argsort(axis=1, kind="stable")
    rows = np.arange(len(order))
    columns = (
        predictions.indices,
        predictions.labels,
        order[:, 0],
        probabilities[rows, order[:, 0]],
        (order[:, :5] == predictions.labels[:, None]).any(axis=1),
        probabilities[rows, predictions.labels],
    )
    return list(map(Answer, *(column.tolist() for column in columns)))


def write_report(
    path: Path,
    summarize: Callable[[], RunSummary],
    predictions: Predictions,
    calibration: Calibration | None,
    *,
    display: Display,
) -> None:
    """Writes the report of a run. The run is safe by then: what goes wrong here is told, and nothing is raised.

    Args:
        path: the HTML file.
        summarize: tells what is known without the weights.
        predictions: of the best weights, for the images of the summary.
        calibration: of these; None if there are no images.
        display: tells what goes wrong.
    """
    try:
        from t2t_vit.pictures.page import page  # matplotlib is imported where a page is drawn

        answers = answers_of(predictions, calibration.temperature if calibration else 1.0)
        write_text(path, page(summarize(), answers, calibration=calibration, embeddings=predictions.embeddings))
    except Exception as error:
        display.say(f"warning: {path} is not written: {type(error).__name__}: {error}")
    else:
        display.say(f"report: {path}")
