"""Whether labels mean the same in the validation images as in the training images.

A linear classifier of tiny copies of the images trains in seconds. It need not be good: if it finds the labels of some
training images that it has not seen, it should find those of validation images about as often.
"""

from dataclasses import dataclass

import numpy as np

NUM_FOLDS = 4
MIN_VAL = 10
# Standard errors. A false alarm needs val to fall this far below held-out training images by chance.
CLEARLY, BARELY = 4.0, 2.5


@dataclass(frozen=True)
class Agreement:
    """How often a simple classifier that learnt from training images finds the labels.

    Attributes:
        train_percent: accuracy on training images that it was not fitted on.
        val_percent: accuracy on validation images.
        chance_percent: accuracy on validation images if the same answers were shuffled.
        verdict: "agree"; "unrelated" or "permuted", a reason to look at the data; or "unclear": the classifier is no
            better than guessing, or there are too few images to tell.
        renamed: if permuted, pairs of a validation label and the training label that its images look like.
    """

    train_percent: float
    val_percent: float
    chance_percent: float
    verdict: str
    renamed: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        unclear = ", too near to tell" if self.verdict == "unclear" else ""
        return (
            f"a linear classifier of tiny copies finds {self.train_percent:.0f} % of held-out training images, "
            f"{self.val_percent:.0f} % of validation images; guessing finds {self.chance_percent:.0f} %{unclear}"
        )


def check_agreement(
    train_copies: np.ndarray, train_labels: np.ndarray, val_copies: np.ndarray, val_labels: np.ndarray
) -> Agreement | None:
    """Fits the classifier on training images and compares; None if fewer than two classes have enough images.

    Args:
        train_copies: tiny copies, (N, D), in the order of the data set: neighbours may be alike, as frames of a video
            are, and must then be held out together.
        train_labels: (N,).
        val_copies: (M, 768).
        val_labels: (M,).
    """
    from sklearn.linear_model import RidgeClassifier  # here, because they take a second to import
    from sklearn.model_selection import cross_val_predict

    train_counts, val_counts = np.bincount(train_labels), np.bincount(val_labels)
    classes = np.intersect1d(np.flatnonzero(train_counts >= NUM_FOLDS), np.flatnonzero(val_counts))
    in_train, in_val = np.isin(train_labels, classes), np.isin(val_labels, classes)
    if len(classes) < 2 or in_val.sum() < MIN_VAL:
        return None
    x, y = train_copies[in_train] / 255, np.searchsorted(classes, train_labels[in_train])
    val_x, val_y = val_copies[in_val] / 255, np.searchsorted(classes, val_labels[in_val])
    classifier = RidgeClassifier(alpha=10)
    held_out = Answers(y, cross_val_predict(classifier, x, y, cv=NUM_FOLDS))
    val = Answers(val_y, classifier.fit(x, y).predict(val_x))

    verdict = "agree"
    renamed: tuple[tuple[int, int], ...] = ()
    if held_out.errors_above_chance < CLEARLY:
        verdict = "unclear"
    elif pairs := _permutation(val, held_out):
        verdict, renamed = "permuted", tuple((int(classes[old]), int(classes[new])) for old, new in pairs)
    elif val.errors_above_chance < BARELY and _errors_between(held_out, val) > CLEARLY:
        verdict = "unrelated"
    return Agreement(100 * held_out.share, 100 * val.share, 100 * val.chance, verdict, renamed)


class Answers:
    """Labels beside a classifier's answers, each (N,), from 0.

    Attributes:
        share: share of right answers.
        chance: share to expect if the same answers were shuffled.
        errors_above_chance: how far `share` is above `chance`, in standard errors of the shuffling.
    """

    def __init__(self, labels: np.ndarray, answers: np.ndarray) -> None:
        self.labels, self.answers = labels, answers
        n, num_classes = len(labels), int(max(labels.max(), answers.max())) + 1
        # The variance of a confusion table's trace, where all tables with the same margins are equally likely.
        rows, columns = (np.bincount(side, minlength=num_classes).astype(float) for side in (labels, answers))
        products = rows * columns
        variance = (n * (products * (n - rows - columns)).sum() + products.sum() ** 2) / (n**2 * (n - 1))
        self.share, self.chance = float((labels == answers).mean()), float(products.sum() / n**2)
        self.errors_above_chance = float((self.share - self.chance) * n / max(variance, 1e-9) ** 0.5)
        self.skill = (self.share - self.chance) / max(1 - self.chance, 1e-9)  # Cohen's kappa: 0 is chance, 1 perfect


def _errors_between(higher: Answers, lower: Answers) -> float:
    """How far one share is above another, in standard errors of their difference if both were equal."""
    sizes = len(higher.labels), len(lower.labels)
    share = (higher.share * sizes[0] + lower.share * sizes[1]) / sum(sizes)
    error = (share * (1 - share) * (1 / sizes[0] + 1 / sizes[1])) ** 0.5
    return (higher.share - lower.share) / max(error, 1e-9)


def _permutation(val: Answers, held_out: Answers) -> list[tuple[int, int]]:
    """The renamings of labels that make the answers right; none unless they clearly do.

    Some permutation fits any answers better than the labels do. So each half of the images tries the permutation that
    fits the other half.
    """
    from scipy.optimize import linear_sum_assignment

    num_classes = int(held_out.labels.max()) + 1
    half = np.arange(len(val.labels)) % 2
    renamed = np.empty_like(val.labels)
    found = []
    for side in (0, 1):
        table = np.zeros((num_classes, num_classes))
        np.add.at(table, (val.labels[half == side], val.answers[half == side]), 1)
        table += np.eye(num_classes) / 2  # without a reason to rename, it stays
        permutation = linear_sum_assignment(table, maximize=True)[1]
        renamed[half != side] = permutation[val.labels[half != side]]
        found.append(permutation)
    gains = int(((renamed == val.answers) & (val.labels != val.answers)).sum())
    losses = int(((renamed != val.answers) & (val.labels == val.answers)).sum())
    explained = Answers(renamed, val.answers)
    if gains - losses <= CLEARLY * (gains + losses) ** 0.5 or explained.skill < held_out.skill / 2:
        return []
    return [(old, int(new)) for old, new in enumerate(found[0]) if old != new == found[1][old]]
