"""Labels that look wrong, by confident learning (Northcutt, Jiang & Chuang, 2021).

A classifier that is trained in seconds gives every image its probabilities, by folds that it was not fitted on. A class
is confidently predicted where its probability is at least the mean of that class over the images that bear its label.
An image looks mislabelled where the likeliest such class is another than its label, and clearly likelier.
"""

from typing import NamedTuple

import numpy as np

from t2t_vit.data.agreement import CLEARLY, Answers

NUM_FOLDS = 5
MARGIN = 0.5
"""How much likelier than its own label another one must be."""
NUM_COMPONENTS, NUM_LANDMARKS = 64, 500
CELLS, DIRECTIONS = 4, 8
"""Cells along a side in which gradients are counted, and their directions."""


class Doubt(NamedTuple):
    """An image whose label looks wrong: its position, the likelier label, and the probabilities of that and its own."""

    position: int
    label: int
    probability: float
    own_probability: float


def doubtful_labels(copies: np.ndarray, labels: np.ndarray) -> list[Doubt] | None:
    """The images whose labels look wrong, the surest first; None if images or classes are too few or too hard to tell.

    Args:
        copies: small copies, (N, 32, 32, C), from 0 to 255.
        labels: (N,).
    """
    classes, counts = np.unique(labels, return_counts=True)
    classes = classes[counts >= NUM_FOLDS]
    rows = np.flatnonzero(np.isin(labels, classes))
    if len(classes) < 2:
        return None
    own = np.searchsorted(classes, labels[rows])
    probabilities = held_out_probabilities(describe(copies[rows]), own)
    answers = probabilities.argmax(axis=1)
    if Answers(own, answers).errors_above_chance < CLEARLY:
        return None
    confident = np.array([probabilities[own == label, label].mean() for label in range(len(classes))])
    likeliest = np.where(probabilities >= confident, probabilities, 0).argmax(axis=1)
    all_rows = np.arange(len(rows))
    theirs, its_own = probabilities[all_rows, likeliest], probabilities[all_rows, own]
    is_doubtful = (likeliest != own) & (theirs >= confident[likeliest]) & (theirs - its_own > MARGIN)
    found = [
        Doubt(int(rows[row]), int(classes[likeliest[row]]), float(theirs[row]), float(its_own[row]))
        for row in np.flatnonzero(is_doubtful)
    ]
    return sorted(found, key=lambda doubt: doubt.own_probability - doubt.probability)


def held_out_probabilities(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probabilities of the classes, (N, K), for each image from a classifier that was fitted on other images.

    Args:
        features: (N, F).
        labels: (N,), from 0 to K - 1, each at least `NUM_FOLDS` times.
    """
    from sklearn.decomposition import PCA  # here, because they take a second to import
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = len(labels) * (NUM_FOLDS - 1) // NUM_FOLDS
    classifier = make_pipeline(
        StandardScaler(),
        PCA(min(NUM_COMPONENTS, features.shape[1], fitted - 1), random_state=0),
        Nystroem(gamma=1 / features.shape[1], n_components=min(NUM_LANDMARKS, fitted // 2), random_state=0),
        StandardScaler(with_std=False),
        LogisticRegression(C=10, max_iter=200),
    )
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(classifier, features, labels, cv=folds, method="predict_proba")


def describe(copies: np.ndarray) -> np.ndarray:
    """What a simple classifier can tell images by: directions of edges, and colours by place.

    Args:
        copies: (N, 32, 32, C), from 0 to 255.

    Returns:
        (N, F), float32. Of F, 4 x 4 x 8 are the shares of directions of the grey gradient in cells (as in Dalal &
        Triggs, 2005), 8 x 8 x C the colours of an even smaller copy, the rest means and deviations.
    """
    return np.concatenate([_describe(copies[first : first + 1000]) for first in range(0, len(copies), 1000)])


def _describe(copies: np.ndarray) -> np.ndarray:
    images = copies.astype(np.float32) / 255
    count, side, _, channels = images.shape
    down, right = np.gradient(images.mean(axis=-1), axis=(1, 2))
    strength = np.hypot(down, right)
    turn = np.arctan2(down, right) / (2 * np.pi) % 1 * DIRECTIONS
    before = np.floor(turn).astype(int)
    share = turn - before
    edges = np.zeros((count, side, side, DIRECTIONS), np.float32)
    places = np.indices(strength.shape, sparse=True)
    edges[(*places, before % DIRECTIONS)] = strength * (1 - share)
    edges[(*places, (before + 1) % DIRECTIONS)] += strength * share
    cell = side // CELLS
    edges = edges.reshape(count, CELLS, cell, CELLS, cell, DIRECTIONS).sum(axis=(2, 4)).reshape(count, -1)
    edges = np.sqrt(edges / (edges.sum(axis=1, keepdims=True) + 1e-3))
    colours = images.reshape(count, 8, side // 8, 8, side // 8, channels).mean(axis=(2, 4)).reshape(count, -1)
    whole = [images.mean(axis=(1, 2)), images.std(axis=(1, 2)), strength.mean(axis=(1, 2))[:, None]]
    return np.concatenate([edges, colours, *whole], axis=1)
