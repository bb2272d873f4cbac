"""What is done to the best weights after training: they go a part of the way back to those that the run started from,
and their head is fitted anew."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from t2t_vit.data.images import ImageSet
from t2t_vit.errors import UserError
from t2t_vit.inference.predictions import Predictions, predict_all
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.training.build import build_network, goes_back
from t2t_vit.training.loop import CLEARLY
from t2t_vit.training.plan import FITTED_IMAGES
from t2t_vit.training.setup import Run

T = TypeVar("T")

LARGEST_DIFFERENCE = 0.05
"""Between a network's logits and those of its head alone, as a share of the largest: half precision rounds."""


def refit_best(run: Run) -> None:
    """Fits the head of a finished run's best weights anew, and keeps it unless it is clearly worse in validation.

    All processes call this together. A run that ends in the middle of it does it again when it is resumed. The run is
    safe by then: what goes wrong is told, and not raised.
    """
    best = run.progress.best
    if not run.config.refit_head or not run.is_finished() or best is None or best.refitted:
        return
    model, failure = _in_all_processes(run, run.load_best)
    if model is None:
        run.display.say(f"warning: the head is not fitted anew: {failure}")
        return
    candidates = [(model, 0.0)]
    if goes_back(run.config, model):
        between, failure = _in_all_processes(run, lambda: part_of_the_way_back(run, model))
        if between is None:
            run.display.say(f"warning: the weights do not go back to those of the start: {failure}")
        else:
            candidates.insert(0, (between, run.config.start_share))
    try:
        _refit_and_keep(run, model, candidates)
    except Exception as error:
        run.display.say(f"warning: the head is not fitted anew: {error}")


def _in_all_processes(run: Run, read: Callable[[], T]) -> tuple[T | None, str | None]:
    """What `read` returns, or None and why it fails in any process: another machine may not see the files."""
    value, failure = None, None
    try:
        value = read()
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    failures = [one for one in run.machine.gather(failure) if one is not None]
    return (None, failures[0]) if failures else (value, None)


def part_of_the_way_back(run: Run, model: nn.Module) -> nn.Module:
    """A network on the straight line from a run's weights to those that it started from.

    Wortsman et al. 2022, https://arxiv.org/abs/2109.01903.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)  # as at the start and in all processes, for what no weights were loaded into
        start, *_ = build_network(run.config, run.model_name, class_names=run.source.class_names)
    start.to(run.machine.device)
    between = copy.deepcopy(model)
    with torch.no_grad():
        for own, first in zip(between.parameters(), start.parameters(), strict=True):
            own.lerp_(first, run.config.start_share)
    return between


def _refit_and_keep(run: Run, model: nn.Module, candidates: Sequence[tuple[nn.Module, float]]) -> None:
    """Keeps the first network that is not clearly worse with a head fitted anew; each has its share of the start."""
    best, kind, val = run.progress.best, run.config.best_by, run.source.val
    assert best is not None
    trained = _read(run, model, val)
    for candidate, share in candidates:
        refit(run, candidate)
        fitted = _read(run, candidate, val)
        is_right = fitted.logits.argmax(1) == fitted.labels
        of_class = 1 / np.bincount(fitted.labels)[fitted.labels]  # so that each class counts as much
        weights = of_class if kind == "balanced" else np.ones_like(of_class)
        if is_clearly_worse(trained.logits.argmax(1) == trained.labels, is_right, weights):
            continue
        top1, balanced = 100 * float(is_right.mean()), 100 * float(np.average(is_right, weights=of_class))
        anew = best._replace(top1=top1, balanced=balanced, num_images=len(is_right), refitted=True, start_share=share)
        run.checkpointer.keep_best(anew, candidate.state_dict())
        run.progress.best = anew
        run.save()
        change = f"{best.score(kind):.2f} % before, {anew.score(kind):.2f} % after"
        run.display.say(f"{anew}: {change}, in validation")
        return
    run.display.say("the trained head is kept: on the validation images the fitted one is worse")


def refit(run: Run, model: nn.Module) -> None:
    """Replaces the head of a network by a classifier of its features of the training images, not augmented.

    A head learns from augmented images, with smoothed labels, while its features move. Fitted when they stand still it
    is better (Kirichenko et al. 2022, arXiv 2204.02937, on last layers). It is a linear discriminant analysis, in which
    nothing has to be chosen. Training presses the features of each class together, of its own images alone, so that the
    analysis would be far too sure of others: its logits are made as large as those of the head before.

    Raises:
        UserError: it cannot be done.
    """
    head = model.get_classifier()  # type: ignore[operator]  # of timm's networks
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise UserError(f"{run.model_name} has no single linear layer with a bias for one.")
    images, names = run.source.train, run.source.class_names
    found = _read(run, model, images.subset(fair_share(images.labels)))
    counts = np.bincount(found.labels, minlength=len(names))
    if counts.min() == 0:
        raise UserError(f"of {names[int(counts.argmin())]} no training image could be read.")
    if counts.max() == 1:
        raise UserError("there is one training image of each class.")
    if not np.isfinite(found.embeddings).all():
        raise UserError("its features are not finite.")
    with torch.inference_mode(), run.machine.autocast():
        logits = head(torch.from_numpy(found.embeddings).to(run.machine.device)).float().cpu().numpy()
    if np.abs(logits - found.logits).max() > LARGEST_DIFFERENCE * np.abs(found.logits).max():
        raise UserError(f"{run.model_name} does more than its last linear layer with the features.")
    weight, bias = run.machine.ask_main_process(
        lambda: discriminant(found.embeddings, found.labels, balanced=run.config.balance)
    )
    before, after = spread(found.logits), spread(found.embeddings @ weight.numpy().T + bias.numpy())
    size = before / after if before and after else 1.0
    with torch.no_grad():
        head.weight.copy_(weight * size)
        head.bias.copy_(bias * size)


def _read(run: Run, model: nn.Module, images: ImageSet) -> Predictions:
    loader = evaluation_loader(images, run.data_config, batch_size=64, machine=run.machine, workers=run.config.workers)
    predictor = Predictor(model, machine=run.machine, data_config=run.data_config, class_names=run.source.class_names)
    return predict_all(predictor, loader, run.display, label="reading features")


def fair_share(labels: Sequence[int]) -> list[int]:
    """The rows of `FITTED_IMAGES` images, or of all if they are fewer: of each class one, and as large a share."""
    order = np.random.default_rng(0).permutation(len(labels))
    of_class = np.asarray(labels)[order]
    counts = np.bincount(of_class)
    place = np.empty(len(labels))
    for label in np.flatnonzero(counts):
        place[of_class == label] = np.arange(counts[label]) / counts[label]
    chosen = order[np.argsort(place, kind="stable")[:FITTED_IMAGES]]
    return sorted(chosen.tolist())


def is_clearly_worse(before: np.ndarray, after: np.ndarray, weights: np.ndarray) -> bool:
    """Whether of the same images so many fewer are right that it is no chance: McNemar's test (1947), with weights.

    Args:
        before, after: which images are right, (N,), bool.
        weights: how much each image counts, (N,); McNemar's are all one.
    """
    lost = weights * (before.astype(float) - after)
    return float(lost.sum()) > CLEARLY * math.sqrt(np.square(lost).sum())


def spread(logits: np.ndarray) -> float:
    """How far the logits, (N, K), of the classes of an image lie apart, as the root of their mean square."""
    return float((logits - logits.mean(axis=1, keepdims=True)).std())


def discriminant(features: np.ndarray, labels: np.ndarray, *, balanced: bool = False) -> tuple[Tensor, Tensor]:
    """A linear discriminant analysis as the weights of a linear layer.

    The covariance of each class is shrunk towards a sphere as far as Chen et al. (2010, IEEE Transactions on Signal
    Processing 58) say, so that two images of one class are enough.

    Args:
        features: (N, D).
        labels: (N,), each of 0 to K - 1 at least once, one of them twice.
        balanced: classes are equally likely, however many images they have.

    Returns:
        Weight, (K, D), and bias, (K,), float32, whose products with features are logits.

    Raises:
        UserError: the images of each class have the same features.
    """
    from sklearn.covariance import OAS  # here, because it takes a second to import
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    num_classes = int(labels.max()) + 1
    priors = np.full(num_classes, 1 / num_classes) if balanced else None
    analysis = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=OAS(), priors=priors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only one sample available")  # its class adds no covariance
        analysis.fit(features.astype(np.float64), labels)
    if not analysis.covariance_.any():
        raise UserError("the images of each class have the same features.")
    weight, bias = torch.from_numpy(analysis.coef_), torch.from_numpy(analysis.intercept_)
    if num_classes == 2:  # one row, for the second class
        weight, bias = (torch.cat([-row / 2, row / 2]) for row in (weight, bias))
    return weight.float(), bias.float()
