"""Whether probabilities mean what they say: of the answers given with 80 %, four in five should be right.

The expected calibration error is the mean distance between confidence and accuracy, over `NUM_BINS` bins of confidence,
weighted by their images. A temperature, which divides the logits, is the one number that is fitted to lessen it. It
changes no answer (Guo, Pleiss, Sun & Weinberger, 2017).
"""

import math
from dataclasses import dataclass

import numpy as np

NUM_BINS = 15
SPREAD = 0.5
"""Standard deviation of log T where nothing is known: it keeps the temperature of a few images near 1."""


@dataclass(frozen=True)
class Reliability:
    """How often answers are right where they are how sure.

    Attributes:
        counts: images by confidence, in `NUM_BINS` bins of equal width from 0 to 1.
        confidences: sum of the confidences in each bin.
        right: number of right answers in each bin.
    """

    counts: np.ndarray
    confidences: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, confidences: np.ndarray, is_right: np.ndarray) -> "Reliability":
        """That of answers, by the probability of each, (N,), and whether it is right, (N,). NaN counts as 0."""
        confidences = np.nan_to_num(confidences)
        bins = np.minimum((confidences * NUM_BINS).astype(int), NUM_BINS - 1)
        return cls(*(np.bincount(bins, weights, NUM_BINS) for weights in (None, confidences, is_right)))

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(self.counts + other.counts, self.confidences + other.confidences, self.right + other.right)

    @property
    def error_percent(self) -> float:
        """The expected calibration error."""
        return 100 * float(np.abs(self.confidences - self.right).sum() / max(self.counts.sum(), 1))


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it brings.

    Attributes:
        temperature: what logits are divided by.
        before, after: reliability without it, and with it on images that it was not fitted on: each half of them with
            the temperature of the other half.
    """

    temperature: float
    before: Reliability
    after: Reliability

    def to_plain(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {
            "temperature": self.temperature,
            "error_percent_before": self.before.error_percent,
            "error_percent_after": self.after.error_percent,
            "num_images": int(self.before.counts.sum()),
        }


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration | None:
    """Fits a temperature on the images whose logits are finite; None where there are none.

    Args:
        logits: (N, K).
        labels: (N,).
    """
    finite = np.isfinite(logits).all(axis=1)
    logits, labels = logits[finite], labels[finite]
    if len(labels) == 0:
        return None
    half = np.random.default_rng(0).permutation(len(labels)) % 2 == 0
    before = reliability(logits, labels, 1.0)
    parts = [
        reliability(logits[part], labels[part], fit_temperature(logits[~part], labels[~part])) for part in (half, ~half)
    ]
    return Calibration(fit_temperature(logits, labels), before, parts[0] + parts[1])


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which the labels are likeliest, with a prior of log T around 0."""
    from scipy.optimize import minimize_scalar  # as slow to import as the rest of a report

    rows = np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / math.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        likelihood = (scaled[rows, labels] - np.log(np.exp(scaled).sum(axis=1))).sum()
        return (log_temperature / SPREAD) ** 2 / 2 - float(likelihood)

    return math.exp(float(minimize_scalar(cost, bounds=(-3, 3), method="bounded").x))


def reliability(logits: np.ndarray, labels: np.ndarray, temperature: float) -> Reliability:
    """That of logits, (N, K), divided by a temperature, for labels, (N,)."""
    probabilities = softmax(logits, temperature)
    return Reliability.of(probabilities.max(axis=1, initial=0), probabilities.argmax(axis=1) == labels)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, (N, K), float32, of logits divided by a temperature."""
    scaled = logits.astype(np.float32) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)
