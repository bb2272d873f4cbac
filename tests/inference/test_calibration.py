"""Probabilities that mean what they say."""

import numpy as np
import pytest

from t2t_vit.inference.calibration import Reliability, calibrate, fit_temperature, reliability, softmax


def answers(count, temperature, seed=0):
    """Logits of three classes, and labels that follow their probabilities at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (count, 3)).astype(np.float32)
    chances = softmax(logits, temperature).cumsum(axis=1)
    labels = (rng.random((count, 1)) > chances).sum(axis=1).clip(max=2)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_many_images_is_found(temperature):
    logits, labels = answers(5000, temperature)
    found = calibrate(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.after.error_percent < 3
    if temperature != 1:
        assert found.before.error_percent > 2 * found.after.error_percent
    assert found.to_plain()["num_images"] == 5000


def test_few_images_move_it_little():
    logits = np.array([[9.0, 0], [0, 9.0]] * 3)
    assert 0.3 < fit_temperature(logits, np.array([0, 1] * 3)) < 1  # all right and sure: without a prior it would be 0
    assert fit_temperature(np.empty((0, 2)), np.empty(0, int)) == pytest.approx(1, abs=1e-3)


def test_the_error_is_the_distance_of_confidence_and_accuracy():
    confidences, is_right = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55]), np.array([1, 1, 1, 0, 1, 0], bool)
    found = Reliability.of(confidences, is_right)
    # In one bin 0.95 and 3 of 4 are right, in the other 0.55 and 1 of 2.
    assert found.error_percent == pytest.approx(100 * (4 * 0.2 + 2 * 0.05) / 6)
    halves = [Reliability.of(confidences[part], is_right[part]) for part in ([0, 5], [1, 2, 3, 4])]
    assert (halves[0] + halves[1]).error_percent == pytest.approx(found.error_percent)
    assert Reliability.of(np.array([1.0]), np.array([True])).error_percent == 0  # a certainty has a bin too
    assert Reliability.of(np.empty(0), np.empty(0, bool)).error_percent == 0


def test_a_temperature_changes_no_answer():
    logits, labels = answers(100, 1.0)
    assert (softmax(logits, 5.0).argmax(axis=1) == logits.argmax(axis=1)).all()
    assert reliability(logits, labels, 5.0).right.sum() == reliability(logits, labels, 1.0).right.sum()
    np.testing.assert_allclose(softmax(logits).sum(axis=1), 1, rtol=1e-5)


def test_what_is_not_finite_is_left_out():
    logits, labels = answers(50, 1.0)
    logits[::2] = np.nan
    assert calibrate(logits, labels).to_plain()["num_images"] == 25
    assert calibrate(np.full((3, 2), np.nan), np.zeros(3, int)) is None
    assert Reliability.of(np.array([np.nan, 1.0]), np.array([False, True])).counts.tolist() == [1] + [0] * 13 + [1]
