"""Accuracy of a network on labelled images."""

import json
import operator
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import reduce
from statistics import fmean
from typing import Any

import numpy as np
import torch
from timm.layers import to_2tuple
from timm.task.evaluator import ClassificationEvaluator
from torch import Tensor
from torch.utils.data import DataLoader

from t2t_vit.data.loading import Batch
from t2t_vit.data.sources import Evaluation, open_evaluation, other_classes
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.inference.calibration import Reliability
from t2t_vit.inference.config import EvalConfig
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.options import configure
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import Machine, find_machine, one_of_several


@dataclass(frozen=True)
class Accuracy:
    """The result of an evaluation.

    Attributes:
        top1: percentage of images whose likeliest class is right.
        top5: percentage of images whose class is among the five likeliest.
        loss: mean cross-entropy.
        num_images: number of images evaluated.
        recalls: for each class the percentage of its images whose likeliest class is right, None without images of it.
        calibration_error: expected calibration error of the probabilities in percent; 0 if they mean what they say.
        unreadable: a sentence for each image that cannot be read.
    """

    top1: float
    top5: float
    loss: float
    num_images: int
    recalls: tuple[float | None, ...] = ()
    calibration_error: float = 0.0
    unreadable: tuple[str, ...] = ()

    @property
    def balanced(self) -> float:
        """Balanced accuracy: the mean of the classes' recalls, in percent. Rare classes count as all others."""
        known = [recall for recall in self.recalls if recall is not None]
        return fmean(known) if known else 0.0

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers by name, with the balanced accuracy and the number of unreadable images."""
        numbers = {**asdict(self), "recalls": list(self.recalls), "balanced": self.balanced}
        numbers["num_unreadable"] = len(numbers.pop("unreadable"))
        return numbers


def evaluate(data: str, *, checkpoint: str, **settings: Any) -> Accuracy:
    """Measures a checkpoint's accuracy on labelled images, as the command `eval` does.

    Args:
        data: a folder, or the name of a data set such as digits.
        checkpoint: a path, a run's folder or an http(s) URL of weights in any known format.
        settings: the flags of the command, such as `batch_size=64` or `use_ema=False`.

    Returns:
        The accuracy and the loss.

    Raises:
        UserError: the data or the checkpoint cannot be used, or images cannot be read.
    """
    config = configure(EvalConfig, data=data, checkpoint=checkpoint, **settings)
    return _evaluate(config, _machine_of(config), Display(silent=True))


@one_of_several()
def evaluate_command(config: EvalConfig) -> None:
    """`t2t-vit eval`: prints the accuracy of a checkpoint, the last line as the official code prints it, or as JSON."""
    machine = _machine_of(config)
    display = Display(silent=not machine.is_main_process, stderr=config.json)
    found = _evaluate(config, machine, display)
    left_out = f", {len(found.unreadable)} unreadable left out" if found.unreadable else ""
    display.say(f"balanced accuracy {found.balanced:.2f} %, calibration error {found.calibration_error:.2f} %")
    display.say(f"{found.num_images:,} images on {machine}: loss {found.loss:.4f}, top-5 {found.top5:.2f} %{left_out}")
    if not config.json:
        display.say(f"Top-1 accuracy of the model is: {found.top1:.1f}%")
    elif machine.is_main_process:
        print(json.dumps(found.metrics))


def measure_accuracy(
    predictor: Predictor,
    loader: "DataLoader[Batch]",
    display: Display,
    *,
    label: str = "evaluating",
    stop: Callable[[], bool] = lambda: False,
) -> Accuracy:
    """Measures a network on every image of a loader. Each process takes its part; all get the result of the whole.

    Args:
        display, label, stop: as for `Predictor.stream`.
    """
    machine = predictor.machine
    evaluator = ClassificationEvaluator(machine.device)
    unreadable: list[str] = []
    answers: list[Tensor] = []
    for batch, logits, _ in predictor.stream(loader, display=display, label=label, stop=stop):
        unreadable += batch.unreadable
        targets = batch.targets.to(machine.device, non_blocking=True)
        evaluator.update(logits, targets)
        confidences, predicted = predictor.probabilities(logits).max(dim=-1)  # (B,) each
        answers.append(torch.stack([confidences, predicted == targets, targets]))
    confidences, is_right, labels = (torch.cat(answers, dim=1) if answers else torch.zeros(3, 0)).cpu().numpy()
    num_classes = len(predictor.class_names)
    right, total = (np.bincount(labels.astype(int), weights, num_classes) for weights in (is_right, None))
    of_all = machine.gather((Reliability.of(confidences, is_right), right, total, unreadable))
    reliability, right, total = (reduce(operator.add, parts) for parts in list(zip(*of_all, strict=True))[:3])
    return Accuracy(
        **evaluator.compute(distributed=machine.world_size > 1),
        num_images=int(total.sum()),
        recalls=tuple(100 * r / t if t else None for r, t in zip(right.tolist(), total.tolist(), strict=True)),
        calibration_error=reliability.error_percent,
        unreadable=tuple(sentence for *_, sentences in of_all for sentence in sentences),
    )


def _machine_of(config: EvalConfig) -> Machine:
    return find_machine(config.device, amp=config.amp, amp_dtype=config.amp_dtype)


def _evaluate(config: EvalConfig, machine: Machine, display: Display) -> Accuracy:
    size = {} if config.img_size is None else {"img_size": to_2tuple(config.img_size)}
    predictor = Predictor(
        config.checkpoint,
        machine=machine,
        background=config.background,
        runtime=config.runtime,
        trust_code=config.trust_code,
        model=config.model,
        use_ema=config.use_ema,
        **size,
    )
    display.say(str(predictor.checkpoint.report))
    trained_split = predictor.checkpoint.extra.get("split")
    evaluation = machine.main_process_first(
        lambda: open_evaluation(config.data, data_dir=config.data_dir, trained_split=trained_split)
    )
    images = evaluation.images
    display.say(f"{len(images):,} images of {len(evaluation.class_names)} classes: {evaluation.part}")
    _refuse_other_classes(predictor, evaluation)
    loader = evaluation_loader(
        images, predictor.data_config, batch_size=config.batch_size, machine=machine, workers=config.workers
    )
    found = measure_accuracy(predictor, loader, display)
    if found.unreadable and not config.skip_unreadable:
        raise UserError(
            f"{len(found.unreadable)} of {len(images)} images cannot be read: "
            f"{abbreviate(found.unreadable, separator='; ')}. Replace them, or leave them out with --skip-unreadable."
        )
    return found


def _refuse_other_classes(predictor: Predictor, evaluation: Evaluation) -> None:
    found, trained = evaluation.class_names, predictor.checkpoint.class_names
    if len(predictor.class_names) != len(found):
        raise UserError(
            f"The checkpoint tells {len(predictor.class_names)} classes apart, {evaluation.part} has {len(found)}: "
            "evaluate on the data that it was trained for."
        )
    if trained is not None and (different := other_classes(found, trained)):
        raise UserError(
            f"The classes of {evaluation.part} are not the checkpoint's: {different}. "
            "Rename the folders as they were in training."
        )
