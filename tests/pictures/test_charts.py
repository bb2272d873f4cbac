"""What the charts show, read off their SVG."""

import itertools
import math
from xml.etree import ElementTree

import pytest

from t2t_vit.pictures.charts import ErrorScale, accuracy_chart, loss_chart


def lines_of(chart):
    """For each line its points (x, y)."""
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in ElementTree.fromstring(chart).iter("polyline")
    ]


def dots_of(chart):
    return [(float(dot.get("cx")), float(dot.get("cy"))) for dot in ElementTree.fromstring(chart).iter("circle")]


def ticks_of(chart):
    """Heights of what stands at the left, by its text."""
    texts = ElementTree.fromstring(chart).iter("text")
    return {
        text.text: float(text.get("y")) - 4  # the text's base line
        for text in texts
        if text.get("text-anchor") == "end" and text.text != "epochs"
    }


def test_equal_ratios_of_errors_are_equal_heights():
    scale = ErrorScale([[0.0, 90.0], [99.0]])
    steps = [scale.height(better) - scale.height(worse) for worse, better in ((0, 90), (90, 99), (67, 96.7))]
    assert steps == pytest.approx([steps[0]] * 3)
    assert scale.height(0) == 0
    assert 0.9 < scale.height(99) < 1


@pytest.mark.parametrize("top1", [(10.0, 98.9, 99.5), (0.0, 10.0), (60.0, 100.0), (99.9, 99.99)])
def test_a_tick_is_at_the_height_of_its_accuracy_and_none_on_another(top1):
    scale = ErrorScale([top1])
    ticks = scale.ticks(gap=0.05)
    heights = [height for height, _ in ticks]
    assert heights == [scale.height(float(text)) for _, text in ticks]
    assert all(above - below > 0.05 for above, below in itertools.pairwise(heights))
    assert 0 <= min(heights) <= max(heights) <= 1
    assert len(ticks) >= 3


def test_lines_and_ticks_are_drawn_at_the_same_heights():
    chart = accuracy_chart({"validation": [50.0, 95.0, 99.0, 98.0]})
    ticks, (line,) = ticks_of(chart), lines_of(chart)
    for (_, y), accuracy in zip(line, ("50", "95", "99", "98"), strict=True):
        assert ticks[accuracy] == pytest.approx(y, abs=0.2)
    assert ticks["99"] < ticks["98"] < ticks["95"] < ticks["50"]
    assert dots_of(chart) == [line[2]]


def test_a_tick_is_at_the_height_of_its_loss():
    chart = loss_chart({"training": [2.0, 2.0], "validation": [1.0, 1.0]})
    ticks, (training, validation) = ticks_of(chart), lines_of(chart)
    assert ticks["2"] == pytest.approx(training[0][1], abs=0.2)
    assert ticks["1"] == pytest.approx(validation[0][1], abs=0.2)
    assert ticks["0"] == 224


@pytest.mark.parametrize("top1", [[100.0], [0.0], [85.0], [50.0, 100.0], [100.0, 100.0]])
def test_one_epoch_and_no_error_have_their_place(top1):
    chart = accuracy_chart({"validation": top1})
    assert all(12 <= y <= 224 for line in lines_of(chart) for _, y in line)
    assert len(dots_of(chart)) == 1
    assert ("100" in ticks_of(chart)) == (100.0 in top1)
    assert len(dots_of(loss_chart({"training": top1}))) == (len(top1) == 1)  # a line of one point is not seen


def test_a_loss_that_is_not_finite_leaves_a_gap():
    chart = loss_chart({"training": [1.0, 1.0, math.inf], "validation": [0.5, math.nan, 0.5]})
    assert [len(line) for line in lines_of(chart)] == [2, 2]
