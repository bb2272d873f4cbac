"""Accuracy of a network on labelled images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.layers import to_2tuple
from timm.models import get_model_input_config
from timm.task.evaluator import ClassificationEvaluator
from torch import nn

from t2t_vit.data.images import ImageSet
from t2t_vit.data.loading import DrawnImages, NormalizedLoader, evaluation_batches, make_loader
from t2t_vit.data.sources import Evaluation, open_evaluation, other_classes
from t2t_vit.data.transforms import Normalize, eval_transform
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.inference.config import EvalConfig
from t2t_vit.models.weights import build_model
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import Machine, find_machine, one_of_several


@dataclass(frozen=True)
class Accuracy:
    """What an evaluation found.

    Attributes:
        top1_percent: share of images whose likeliest class is right.
        top5_percent: share of images whose class is among the five likeliest.
        loss: mean cross-entropy.
        num_images: images evaluated.
        unreadable: a sentence for each image that could not be read.
    """

    top1_percent: float
    top5_percent: float
    loss: float
    num_images: int
    unreadable: tuple[str, ...] = ()


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: NormalizedLoader,
    machine: Machine,
    display: Display,
    *,
    label: str = "evaluating",
    stop: Callable[[], bool] = lambda: False,
) -> Accuracy:
    """Measures a network on every image of a loader; of several processes, each has a part and all get the whole.

    Args:
        model: the network; its mode is set to evaluation and restored.
        loader: batches of images.
        machine: where and in which precision.
        display: shows the progress.
        label: what the progress is called.
        stop: asked after each batch; when true, the rest is left out. All processes must answer alike.
    """
    was_training = model.training
    model.eval()
    evaluator = ClassificationEvaluator(machine.device)
    unreadable: list[str] = []
    with display.steps(label, len(loader)) as steps:
        for batch in loader:
            unreadable += batch.unreadable
            if len(batch.images):
                with machine.autocast():
                    logits = model(batch.images)
                evaluator.update(logits, batch.targets.to(machine.device, non_blocking=True))
            steps.advance()
            if stop():
                break
    model.train(was_training)
    found = evaluator.compute(distributed=machine.world_size > 1)
    of_all = machine.gather((evaluator.num_samples, unreadable))
    return Accuracy(
        top1_percent=found["top1"],
        top5_percent=found["top5"],
        loss=found["loss"],
        num_images=sum(count for count, _ in of_all),
        unreadable=tuple(sentence for _, sentences in of_all for sentence in sentences),
    )


def evaluation_loader(
    images: ImageSet, data_config: dict[str, Any], *, batch_size: int, machine: Machine, workers: int | None
) -> NormalizedLoader:
    """Every image once, over all processes, resized, cropped and normalised as the data configuration says."""
    loader = make_loader(
        DrawnImages(images, eval_transform(data_config)),
        evaluation_batches(len(images), batch_size=batch_size, rank=machine.rank, world_size=machine.world_size),
        workers=workers,
        pin_memory=machine.device.type == "cuda",
    )
    return NormalizedLoader(loader, Normalize(data_config, machine.device))


def data_config_of(model: nn.Module, **known: Any) -> dict[str, Any]:
    """How images are prepared for a network: timm's input_size, mean, std, crop_pct and interpolation.

    Args:
        model: the network; its size and channels count, its pretrained configuration fills the rest.
        known: entries that take precedence, such as a checkpoint's; None leaves an entry open.
    """
    size = {"input_size": get_model_input_config(model)["input_size"]}
    config = resolve_model_data_config(
        model, args=size | {key: value for key, value in known.items() if value is not None}
    )
    return {key: config[key] for key in ("input_size", "mean", "std", "crop_pct", "interpolation")}


@one_of_several()
def evaluate_command(config: EvalConfig) -> None:
    """`t2t-vit eval`: loads a checkpoint and prints its accuracy, the last line as the official code prints it.

    Raises:
        UserError: for data or a checkpoint that cannot be used, or images that cannot be read.
    """
    half = config.amp or config.amp_dtype == "float16"
    machine = find_machine(config.device, amp=half, amp_dtype=config.amp_dtype)
    display = Display(silent=not machine.is_main_process)
    size = {} if config.img_size is None else {"img_size": to_2tuple(config.img_size)}
    model, checkpoint = machine.main_process_first(
        lambda: build_model(config.checkpoint, model=config.model, use_ema=config.use_ema, **size)
    )
    display.say(str(checkpoint.report))
    evaluation = machine.main_process_first(
        lambda: open_evaluation(config.data, data_dir=config.data_dir, trained_split=checkpoint.extra.get("split"))
    )
    display.say(f"{len(evaluation.images):,} images of {len(evaluation.class_names)} classes: {evaluation.part}")
    _refuse_other_classes(model, checkpoint.class_names, evaluation)

    known = {key: value for key, value in (checkpoint.data_config or {}).items() if key != "input_size"}
    loader = evaluation_loader(
        evaluation.images,
        data_config_of(model, **known),
        batch_size=config.batch_size,
        machine=machine,
        workers=config.workers,
    )
    found = evaluate(model.to(machine.device), loader, machine, display)
    if found.unreadable and not config.skip_unreadable:
        raise UserError(
            f"{len(found.unreadable)} of {len(evaluation.images)} images cannot be read: "
            f"{abbreviate(found.unreadable, separator='; ')}. Replace them, or leave them out with --skip-unreadable."
        )
    left_out = f", {len(found.unreadable)} unreadable left out" if found.unreadable else ""
    display.say(
        f"{found.num_images:,} images on {machine}: loss {found.loss:.4f}, top-5 {found.top5_percent:.2f} %{left_out}"
    )
    display.say(f"Top-1 accuracy of the model is: {found.top1_percent:.1f}%")


def _refuse_other_classes(model: nn.Module, class_names: list[str] | None, evaluation: Evaluation) -> None:
    found = list(evaluation.class_names)
    if model.num_classes != len(found):
        raise UserError(
            f"The checkpoint tells {model.num_classes} classes apart, {evaluation.part} has {len(found)}: "
            "evaluate on the data that it was trained for."
        )
    if class_names is not None and (different := other_classes(found, class_names)):
        raise UserError(
            f"The classes of {evaluation.part} are not the checkpoint's: {different}. "
            "Rename the folders as they were in training."
        )
