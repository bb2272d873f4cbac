"""What came of a run, how sure that is, and what to do next."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from t2t_vit.errors import abbreviate
from t2t_vit.pictures.report import Answer, RunSummary

WIDE_PERCENT = 15.0
"""Width of a confidence interval from which on the images are too few to tell much."""
LAST_PART, STILL_FALLING, RISEN = 0.2, 0.97, 1.15
"""A loss below 0.97 of what it was a fifth of the run before still falls; one above 1.15 of its least has risen."""
FEWEST_EVALUATIONS = 5
FEW_PASSES, UNDECIDED_PERCENT = 20, 80.0
"""Passes over the images after which a network is hardly trained, unless it may be right for more than 80 %."""


def confidence_interval(num_right: int, total: int) -> tuple[float, float]:
    """Where the accuracy on all such images lies with 95 % confidence, in percent (Wilson's score interval, 1927).

    Args:
        num_right: images whose prediction is right.
        total: images, at least 1.
    """
    from scipy.stats import binomtest  # as slow to import

    interval = binomtest(num_right, total).proportion_ci(0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def balanced_accuracy(predictions: Sequence[Answer]) -> float:
    """The mean over the classes of how many of their images are right, in percent. Rare classes count as all others."""
    from sklearn.metrics import recall_score  # as slow to import as the rest of a page

    labels, predicted = zip(*((prediction.label, prediction.predicted) for prediction in predictions), strict=True)
    return 100 * recall_score(labels, predicted, labels=sorted(set(labels)), average="macro")


def headline(summary: RunSummary, predictions: Sequence[Answer]) -> str:
    """The accuracy, its confidence interval, and what it is to be compared with."""
    total, right = len(predictions), sum(prediction.is_right for prediction in predictions)
    label, count = _largest_class(predictions)
    rivals = f"always answering {summary.class_names[label]} would be right for {100 * count / total:.1f} %"
    if summary.linear_percent is not None:
        rivals += f", a linear classifier of 16 x 16 pixels for {summary.linear_percent:.0f} %"
    images = "validation images, by which the best weights were chosen,"
    if summary.test is not None and summary.test.num_images:
        total, images = summary.test.num_images, "images of test/, by which nothing was chosen,"
        right = round(total * summary.test.top1 / 100)
    low, high = confidence_interval(right, total)
    return (
        f"{100 * right / total:.1f} % of {total:,} {images} are right. "
        f"With 95 % confidence it is {low:.1f} to {high:.1f} % of all such images; {rivals}."
    )


def choice(summary: RunSummary) -> str:
    """Which weights were kept and why: those of which step, raw or averaged, and what the others had."""
    best, name = summary.best, {"top1": "top-1", "balanced": "balanced accuracy"}[summary.best_by]
    columns = {"averaged": f"ema_{summary.best_by}", "last": f"val_{summary.best_by}"}
    row = next((row for row in summary.metrics if row["step"] == best.step), {})
    own = row.get(columns[best.weights.split()[0]], best.score(summary.best_by))
    is_highest = all(own >= other.get(column, 0) for other in summary.metrics for column in columns.values())
    why = f"they have the highest {name} of all evaluations" if is_highest else "no others are clearly better"
    sentence = f"Kept: the {best.weights} of step {best.step:,}, as {why}."
    if "ema_top1" in row:
        both = [f"the {kind} weights had {row[column]:.2f} %" for kind, column in columns.items()]
        sentence += f" There {' and '.join(both)}, on {row['val_images']:,} images."
    if best.afterwards:
        found = f"{best.score(summary.best_by):.2f} %, on {best.num_images:,} images"
        sentence += f" {best.afterwards.capitalize()} they have {found}."
    return sentence


def advice(summary: RunSummary, predictions: Sequence[Answer]) -> list[str]:
    """A sentence for each thing that stands in the way of a better or a surer result; none where nothing stands out."""
    names, total = summary.class_names, len(predictions)
    low, high = confidence_interval(sum(prediction.is_right for prediction in predictions), total)
    guessing_percent = 100 * _largest_class(predictions)[1] / total
    sentences = []
    if summary.stopped_at is not None:
        done, whole = summary.stopped_at
        sentences.append(
            f"The run was stopped after step {done:,} of {whole:,}. t2t-vit train --resume goes on with it."
        )
    if summary.linear_percent is not None and summary.linear_percent > high:
        sentences.append(
            "Even a linear classifier of 16 x 16 pixels is better: the network has hardly learnt what is plain to see. "
            "Train for more --steps, or start from pretrained weights with t2t-vit transfer."
        )
    elif low <= guessing_percent:
        sentences.append(
            "This may be no better than guessing. Look at the images with t2t-vit data; if they are right, train for "
            "more --steps, or start from pretrained weights with t2t-vit transfer."
        )
    predicted = {prediction.predicted for prediction in predictions}
    never = [names[label] for label in sorted({prediction.label for prediction in predictions} - predicted)]
    if never:
        sentences.append(f"Never predicted: {abbreviate(never)}. Are there enough training images of them?")
    losses = {row["step"]: row["val_loss"] for row in summary.metrics}
    passes = summary.metrics[-1]["epoch"] + 1
    is_over = summary.stopped_at is None
    if is_over and (change := _change_at_the_end(losses)):
        sentences.append(change)
    elif is_over and passes < FEW_PASSES and high < UNDECIDED_PERCENT:
        sentences.append(f"Each training image was seen about {passes} times: more --steps are likely to help.")
    if high - low > WIDE_PERCENT:
        sentences.append(
            f"{total:,} images say little: a difference of a few percent between two runs may be chance. "
            "More images to validate on make it surer."
        )
    return sentences


def _largest_class(predictions: Sequence[Answer]) -> tuple[int, int]:
    """The label that most images have, and how many have it."""
    return Counter(prediction.label for prediction in predictions).most_common(1)[0]


def _change_at_the_end(losses: Mapping[int, float]) -> str | None:
    """The sentence on a validation loss, by step, that was still falling at the end, or had risen for long.

    A loss is the mean of three evaluations here, of which a single one may be low by chance.
    """
    steps = sorted(losses)
    if len(steps) < FEWEST_EVALUATIONS:
        return None
    smooth = {step: fmean(losses[near] for near in steps[i : i + 3]) for i, step in enumerate(steps[2:])}
    last, best = steps[-1], min(smooth, key=lambda step: smooth[step])
    before = max(step for step in smooth if step <= max(steps[2], (1 - LAST_PART) * last))
    if best == last and smooth[last] < STILL_FALLING * smooth[before]:
        return (
            f"The validation loss was still falling at the end, from {smooth[before]:.3g} around step {before:,} to "
            f"{smooth[last]:.3g}: more --steps are likely to help."
        )
    if smooth[last] > RISEN * smooth[best]:
        return (
            f"The validation loss rose from {smooth[best]:.3g} around step {best:,} to {smooth[last]:.3g}: "
            "the network learns its training images by heart. More images, stronger augmentation "
            "(--aa, --mixup, --reprob), or pretrained weights (t2t-vit transfer) are likely to help."
        )
    return None
