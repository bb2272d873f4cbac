"""The report of a run as one HTML file that needs no network, no script and no other file."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from t2t_vit.inference.calibration import Calibration
from t2t_vit.pictures.figures import (
    confusion_svg,
    curves_svg,
    draw_accuracies,
    draw_losses,
    embedding_svg,
    reliability_svg,
)
from t2t_vit.pictures.html import data_address, readable, render, thumbnail
from t2t_vit.pictures.report import Answer, RunSummary
from t2t_vit.pictures.verdict import advice, balanced_accuracy, choice, confidence_interval, headline
from t2t_vit.runtime.durations import format_duration
from t2t_vit.runtime.stopwatch import shares_in_words

MAX_CLASSES = 200  # up to here there is a confusion matrix, and every class is listed
NUM_MISTAKES, NUM_LOSSES, NUM_PAIRS, NUM_EXTREMES = 24, 16, 10, 20
NUM_EXAMPLES, NUM_SHOWN_PAIRS = 4, 6  # images of a confused pair, and pairs that have some
MAX_MAPPED, MIN_MAPPED = 1000, 20  # images in the map of embeddings: its time grows faster than their number
IMBALANCED = 1.5  # times as many images of one class as of another


def page(
    summary: RunSummary,
    predictions: Sequence[Answer],
    *,
    calibration: Calibration | None = None,
    embeddings: np.ndarray | None = None,
) -> str:
    """Returns the report as HTML.

    Args:
        summary: the run.
        predictions: for its validation images.
        calibration: of the probabilities.
        embeddings: of these images, (N, D).
    """
    content: dict[str, Any] = {"summary": summary, "title": summary.title, "num_predictions": len(predictions)}
    content |= {"tiles": _tiles(summary, predictions), "charts": _charts(summary)}
    if predictions:
        content |= {"headline": headline(summary, predictions), "advice": advice(summary, predictions)}
        content |= {"choice": choice(summary)} | _mistakes(summary, predictions) | _confusions(summary, predictions)
        content |= _classes(summary, predictions) | {"calibration": _calibration(calibration)}
        content |= {"map": _map(summary, predictions, embeddings)}
    content["augmented"] = None
    if summary.augmented is not None:
        with Image.open(summary.augmented) as sheet:
            content["augmented"] = (data_address(sheet, "png"), *sheet.size)
    return render("report.html.j2", **content)


def _tiles(summary: RunSummary, predictions: Sequence[Answer]) -> list[tuple[str, str, str]]:
    """The numbers below the title: names, values and notes."""
    last, total = summary.metrics[-1], len(predictions)
    right = {"top-1": sum(prediction.is_right for prediction in predictions)}
    if len(summary.class_names) > 5:
        right["top-5"] = sum(prediction.in_top5 for prediction in predictions)
    accuracies = [
        (
            name,
            f"{100 * count / total:.2f} %",
            f"{total - count:,} of {total:,} images wrong; {_interval(count, total)}",
        )
        for name, count in right.items()
        if predictions
    ]
    sizes = Counter(prediction.label for prediction in predictions).values()
    if predictions and max(sizes) > IMBALANCED * min(sizes):
        accuracies.insert(1, ("balanced", f"{balanced_accuracy(predictions):.2f} %", "mean accuracy of the classes"))
    if summary.test is not None:  # the headline: nothing was chosen by these images
        count = round(summary.test.top1 / 100 * summary.test.num_images)
        interval = f"; {_interval(count, summary.test.num_images)}" if summary.test.num_images else ""
        note = f"{summary.test.num_images:,} images of test/, by which nothing was chosen{interval}"
        accuracies.insert(0, ("top-1 on test", f"{summary.test.top1:.2f} %", note))
    return [
        *accuracies,
        ("best step", f"{summary.best.step:,}", f"of {last['step']:,}: {summary.best}"),
        ("time", format_duration(last["elapsed_s"]), _time_in_words(summary)),
        ("images a second", f"{last['images_per_second']:,.0f}", shares_in_words(last)),
    ]


def _interval(num_right: int, total: int) -> str:
    return "{:.1f}-{:.1f} % with 95 % confidence".format(*confidence_interval(num_right, total))


def _time_in_words(summary: RunSummary) -> str:
    """What the time went to, besides steps."""
    if any("steps_s" not in row for row in summary.metrics):  # of a version that did not measure it
        return "evaluations included"
    share = sum(row["steps_s"] for row in summary.metrics) / summary.metrics[-1]["elapsed_s"]
    return f"{100 * share:.0f} % of it steps, the rest evaluations and checkpoints"


def _charts(summary: RunSummary) -> dict[str, Markup]:
    """The learning curves by their titles."""

    def curves(**keys: str) -> dict[str, dict[int, float]]:
        return {
            name.replace("_", " "): {row["step"]: math.nan if row[key] is None else row[key] for row in summary.metrics}
            for name, key in keys.items()
        }

    accuracies = curves(validation="val_top1")
    if "ema_top1" in summary.metrics[0]:
        accuracies = curves(moving_average="ema_top1", last_weights="val_top1")
    losses = curves(training="train_loss", validation="val_loss")
    title = "Top-1 on validation images, %"
    return {title: curves_svg(title, draw_accuracies, accuracies), "Loss": curves_svg("Loss", draw_losses, losses)}


def _mistakes(summary: RunSummary, predictions: Sequence[Answer]) -> dict[str, Any]:
    """The mistakes that the network is surest of, and how many mistakes there are."""
    wrong = [prediction for prediction in predictions if not prediction.is_right]
    wrong.sort(key=lambda prediction: -prediction.probability)
    surest = wrong[:NUM_MISTAKES]
    losses = sorted(set(predictions) - set(surest), key=lambda prediction: prediction.label_probability)[:NUM_LOSSES]
    return {
        "mistakes": _shown(summary, surest),
        "num_mistakes": len(wrong),
        "losses": _shown(summary, losses),
    }


def _shown(summary: RunSummary, predictions: Sequence[Answer]) -> list[dict[str, Any]]:
    """These images with their predictions, but for those that can no longer be read."""
    return [shown for prediction in predictions if (shown := _mistake(summary, prediction))]


def _mistake(summary: RunSummary, prediction: Answer) -> dict[str, Any] | None:
    """An image with its prediction and its label; None if the image can no longer be read."""
    shown = thumbnail(summary.images, prediction.image_index)
    return shown and {
        **shown._asdict(),
        "name": summary.images.names[prediction.image_index],
        "predicted": summary.class_names[prediction.predicted],
        "label": summary.class_names[prediction.label],
        "percent": f"{100 * prediction.probability:.0f}",
        "label_percent": f"{100 * prediction.label_probability:.1f}",
        "is_right": prediction.is_right,
    }


def _confusions(summary: RunSummary, predictions: Sequence[Answer]) -> dict[str, Any]:
    """The confusion matrix, unless there are too many classes, and the most confused pairs."""
    names = summary.class_names
    counts = Counter((prediction.label, prediction.predicted) for prediction in predictions if not prediction.is_right)
    pairs: list[tuple[str, str, int, list[dict[str, Any]]]] = []
    for (label, answer), count in counts.most_common(NUM_PAIRS):
        examples = _examples(summary, predictions, label, answer) if len(pairs) < NUM_SHOWN_PAIRS else []
        pairs.append((names[label], names[answer], count, examples))
    matrix = None
    if len(names) <= MAX_CLASSES:
        labels = [prediction.label for prediction in predictions]
        predicted = [prediction.predicted for prediction in predictions]
        matrix = confusion_svg(labels, predicted, [readable(name) for name in names])
    return {"matrix": matrix, "pairs": pairs}


def _examples(summary: RunSummary, predictions: Sequence[Answer], label: int, predicted: int) -> list[dict[str, Any]]:
    """The surest mistakes of one kind."""
    wrong = [answer for answer in predictions if (answer.label, answer.predicted) == (label, predicted)]
    return _shown(summary, sorted(wrong, key=lambda answer: -answer.probability)[:NUM_EXAMPLES])


def _calibration(calibration: Calibration | None) -> dict[str, Any] | None:
    """How sure answers are and how often they are right, before and after the temperature."""
    if calibration is None:
        return None
    before, after = calibration.before, calibration.after
    return {
        "svg": reliability_svg(before, after),
        "temperature": calibration.temperature,
        "before": before.error_percent,
        "after": after.error_percent,
    }


def _map(summary: RunSummary, predictions: Sequence[Answer], embeddings: np.ndarray | None) -> Markup | None:
    """The images as points, near to each other where the network finds them alike; None for few images."""
    if embeddings is None or len(embeddings) < MIN_MAPPED or not np.isfinite(embeddings).all():
        return None
    from sklearn.manifold import TSNE  # as slow to import

    rows = np.sort(np.random.default_rng(0).permutation(len(embeddings))[:MAX_MAPPED])
    perplexity = min(30, (len(rows) - 1) / 3)
    points = TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(embeddings[rows].astype(np.float32))
    shown = [predictions[row] for row in rows.tolist()]
    labels, is_right = [answer.label for answer in shown], [answer.is_right for answer in shown]
    return embedding_svg(points, labels, is_right, [readable(name) for name in summary.class_names])


def _classes(summary: RunSummary, predictions: Sequence[Answer]) -> dict[str, Any]:
    """The accuracy of each class or, of many classes, of the worst and the best."""
    totals = Counter(prediction.label for prediction in predictions)
    wrong = Counter(prediction.label for prediction in predictions if not prediction.is_right)
    order = sorted(totals, key=lambda label: (-wrong[label] / totals[label], -totals[label], label))
    rows = []
    for label in order:
        right, total = totals[label] - wrong[label], totals[label]
        rows.append((summary.class_names[label], right, total, confidence_interval(right, total)))
    lists = {"": rows}
    if len(summary.class_names) > MAX_CLASSES:
        lists = {f"The {NUM_EXTREMES} worst": rows[:NUM_EXTREMES], f"The {NUM_EXTREMES} best": rows[-NUM_EXTREMES:]}
    return {"class_lists": lists, "num_absent": len(summary.class_names) - len(totals)}
