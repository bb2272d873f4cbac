"""What the report says first."""

from dataclasses import replace

import pytest

from t2t_vit.inference.evaluate import Accuracy
from t2t_vit.pictures.report import Answer, Best, RunSummary
from t2t_vit.pictures.verdict import advice, balanced_accuracy, choice, confidence_interval, headline

FALLING = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]


def summary_of(val_losses=(0.5, 0.5), test=None, epoch=99, **more):
    metrics = [{"step": 10 * row + 10, "epoch": epoch, "val_loss": loss} for row, loss in enumerate(val_losses)]
    best, names = Best(10, 0, "last weights", 50.0, 4, 50.0), ["cat", "dog", "owl"]
    return RunSummary("title", "about", metrics, best, images=None, class_names=names, test=test, **more)


def answers(labels, predicted):
    return [
        Answer(row, label, found, 0.9, True, 0.9 if found == label else 0.1)
        for row, (label, found) in enumerate(zip(labels, predicted, strict=True))
    ]


GOOD = answers([0, 1, 2] * 100, [0, 1, 2] * 100)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(8, 10, 49.02, 94.33), (10, 10, 72.25, 100.0), (0, 1, 0.0, 79.35)]
)
def test_the_interval_is_wilsons(right, total, low, high):
    assert confidence_interval(right, total) == pytest.approx((low, high), abs=0.01)


def test_rare_classes_count_as_all_others():
    assert balanced_accuracy(answers([0] * 90 + [1] * 10, [0] * 100)) == 50


def test_the_headline_tells_the_number_its_certainty_and_the_simplest_rival():
    text = headline(summary_of(), answers([0, 0, 0, 1], [0, 0, 0, 0]))
    assert text.startswith("75.0 % of 4 validation images, by which the best weights were chosen, are right.")
    assert "30.1 to 95.4 %" in text
    assert text.endswith("always answering cat would be right for 75.0 %.")


def test_the_headline_is_that_of_the_test_images_where_there_are_some():
    text = headline(summary_of(test=Accuracy(90.0, 100.0, 0.1, 1000)), GOOD)
    assert text.startswith("90.0 % of 1,000 images of test/, by which nothing was chosen, are right.")


def test_nothing_is_advised_where_nothing_stands_out():
    assert advice(summary_of([0.5] * 8), GOOD) == []


def test_what_is_no_better_than_guessing_is_told():
    found = advice(summary_of(), answers([0] * 60 + [1] * 40, [0] * 100))
    assert found[0].startswith("This may be no better than guessing.")
    assert found[1].startswith("Never predicted: dog.")


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (FALLING, "still falling at the end, from 0.8 around step 40 to 0.6: more --steps"),
        ([1.0, 0.5, 0.5, 0.5, 0.8, 0.9, 1.0], "rose from 0.5 around step 40 to 0.9: the network learns its training"),
    ],
)
def test_the_end_of_the_curve_is_read(losses, told):
    (sentence,) = advice(summary_of(losses), GOOD)
    assert told in sentence


def test_a_curve_of_few_evaluations_tells_nothing():
    assert advice(summary_of(FALLING[:4]), GOOD) == []


def test_few_images_are_told():
    (sentence,) = advice(summary_of(), answers([0, 1] * 10, [0, 1] * 9 + [1, 1]))
    assert sentence.startswith("20 images say little")


def test_a_single_low_evaluation_is_no_turning_point():
    assert advice(summary_of([1.0, 0.9, 0.9, 0.5, 0.9, 0.9, 0.8]), GOOD) == []


def test_few_passes_are_told_where_little_was_learnt():
    poor = answers([0, 1, 2] * 100, [0, 1, 0] * 100)
    (sentence,) = advice(summary_of(epoch=3), answers([0, 1, 2] * 100, [0, 1, 2] * 50 + [1, 2, 0] * 50))
    assert sentence == "Each training image was seen about 4 times: more --steps are likely to help."
    assert advice(summary_of(epoch=3), GOOD) == []
    assert len(advice(summary_of(epoch=99), poor)) == 1


def test_test_images_of_which_none_can_be_read_are_no_headline():
    assert "validation images" in headline(summary_of(test=Accuracy(0.0, 0.0, 0.0, 0)), GOOD)


def test_a_linear_classifier_that_is_better_is_told():
    bad = answers([0] * 40 + [1] * 60, [0] * 40 + [1] * 10 + [0] * 50)
    assert "a linear classifier of 16 x 16 pixels for 61 %" in headline(summary_of(linear_percent=61.2), bad)
    (first, *_) = advice(summary_of(linear_percent=61.2), bad)
    assert first.startswith("Even a linear classifier of 16 x 16 pixels is better")
    (first, *_) = advice(summary_of(linear_percent=41.0), bad)
    assert first.startswith("This may be no better than guessing")


def test_the_kept_weights_are_told_with_the_others():
    summary = summary_of()
    summary.metrics[0].update(val_top1=50.0, ema_top1=40.0, val_balanced=60.0, ema_balanced=30.0, val_images=4)
    assert choice(summary) == (
        "Kept: the last weights of step 10, as they have the highest top-1 of all evaluations. "
        "There the averaged weights had 40.00 % and the last weights had 50.00 %, on 4 images."
    )
    assert "highest balanced accuracy of all evaluations. There the averaged weights had 30.00 %" in choice(
        replace(summary, best_by="balanced")
    )
    assert choice(summary_of()).endswith("highest top-1 of all evaluations.")  # without an average


def test_weights_that_are_kept_though_others_had_more_are_told_so():
    summary = summary_of()
    summary.metrics[1].update(val_top1=60.0)
    assert choice(summary) == "Kept: the last weights of step 10, as no others are clearly better."


def test_a_head_that_was_fitted_anew_is_told_with_what_it_has():
    summary = summary_of()
    anew = replace(summary, best=summary.best._replace(top1=75.0, refitted=True))
    assert choice(anew).endswith("all evaluations. With a head fitted anew they have 75.00 %, on 4 images.")


def test_a_stopped_run_says_so_first():
    (first, *others) = advice(summary_of(FALLING, stopped_at=(60, 200)), GOOD)
    assert first == "The run was stopped after step 60 of 200. t2t-vit train --resume goes on with it."
    assert others == []  # what falls at the end need not be told of one that has not ended
