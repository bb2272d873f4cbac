"""The classifier of the best weights, fitted anew after training to the features of the training images."""

import numpy as np
import torch
from torch import Tensor, nn

from t2t_vit.inference.predictions import predict_all
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.training.loop import CLEARLY, measure
from t2t_vit.training.setup import Run

MAX_IMAGES = 5000
"""Images that a classifier is fitted to at most: features of more take long, and add little."""


def refit_best(run: Run) -> None:
    """Fits the head of a finished run's best weights anew, and keeps it unless it is clearly worse in validation.

    All processes call this together. A run that ends in the middle of it does it again when it is resumed.
    """
    best, kind = run.progress.best, run.config.best_by
    if not run.config.refit_head or not run.is_finished() or best is None or best.refitted:
        return
    model = run.load_best()
    if problem := refit(run, model):
        run.display.say(f"warning: the head is not fitted anew: {problem}")
        return
    run.val_batches.choose(range(len(run.source.val)))
    found = measure(run, model, "validating the head")
    anew = best._replace(top1=found.top1, balanced=found.balanced, num_images=found.num_images, refitted=True)
    was, now = best.score(kind), anew.score(kind)
    change = f"{was:.2f} % before, {now:.2f} % after"
    if was - now > CLEARLY * best.standard_error(kind):
        run.display.say(f"the head is not fitted anew, as that is worse: {change}")
        return
    run.display.say(
        f"head fitted anew to the features of the training images: {change}, on {found.num_images:,} images"
    )
    run.checkpointer.keep_best(anew, model.state_dict())
    run.progress.best = anew
    run.save()


def refit(run: Run, model: nn.Module) -> str | None:
    """Replaces the head of a network by a classifier of its features of the training images, not augmented.

    A head learns from augmented images, with smoothed labels, while its features move. Fitted when they stand still it
    is better (Kirichenko et al. 2022, arXiv 2204.02937, on last layers). It is a linear discriminant analysis, whose
    covariance is shrunk as far as Ledoit and Wolf (2004) say, so that nothing has to be chosen.

    Returns:
        Why it cannot be done; None where it was.
    """
    images = run.source.train
    if len(images) > MAX_IMAGES:
        images = images.subset(sorted(np.random.default_rng(0).permutation(len(images))[:MAX_IMAGES].tolist()))
    predictor = Predictor(model, machine=run.machine, data_config=run.data_config, class_names=run.source.class_names)
    loader = evaluation_loader(images, run.data_config, batch_size=64, machine=run.machine, workers=run.config.workers)
    found = predict_all(predictor, loader, run.display, label="reading features")
    head = model.get_classifier()  # type: ignore[operator]  # of timm's networks
    if not isinstance(head, nn.Linear) or head.in_features != found.embeddings.shape[1]:
        return f"{run.model_name} has no single linear layer for one"
    num_classes = len(run.source.class_names)
    if not np.isfinite(found.embeddings).all():
        return "its features are not finite"
    counts = np.bincount(found.labels, minlength=num_classes)
    if counts.min() == 0:
        return f"of {run.source.class_names[int(counts.argmin())]} no training image could be read"
    if counts.max() == 1:
        return "there is one training image of each class"
    weight, bias = discriminant(found.embeddings, found.labels, balanced=run.config.balance)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return None


def discriminant(features: np.ndarray, labels: np.ndarray, *, balanced: bool = False) -> tuple[Tensor, Tensor]:
    """A linear discriminant analysis as the weights of a linear layer.

    Args:
        features: (N, D).
        labels: (N,), each of 0 to K - 1 at least once, one of them twice.
        balanced: classes are equally likely, however many images they have.

    Returns:
        Weight, (K, D), and bias, (K,), whose products with features are logits.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # here, because it takes a second to import

    num_classes = int(labels.max()) + 1
    priors = np.full(num_classes, 1 / num_classes) if balanced else None
    analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors)
    analysis.fit(features.astype(np.float64), labels)
    weight, bias = torch.from_numpy(analysis.coef_), torch.from_numpy(analysis.intercept_)
    if num_classes == 2:  # one row, for the second class
        weight, bias = (torch.cat([-row / 2, row / 2]) for row in (weight, bias))
    return weight.float(), bias.float()
