"""The picture of accuracy against labels, read off its parts."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from t2t_vit.pictures.label_curves import APART, draw_label_curves, labels_figure


@pytest.fixture
def axes():
    return Figure().add_axes((0, 0, 1, 1))


def names_of(axes):
    """The names beside the lines, each with its height from 0 to 1."""
    return {text.get_text(): text.xy[1] for text in axes.texts}


def test_a_line_goes_through_the_means_and_a_dot_stands_for_each_run(axes):
    draw_label_curves(axes, {"model": {100: [90.0, 94.0], 50: [80.0]}})
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[50, 20], [100, 8]]  # errors
    dots = np.concatenate([found.get_offsets() for found in axes.collections[1:]])
    assert dots.tolist() == [[50, 20], [100, 10], [100, 6]]
    band = axes.collections[0].get_paths()[0].vertices
    at_100 = band[band[:, 0] == 100][:, 1]
    assert (at_100.min(), at_100.max()) == pytest.approx((8 - 8**0.5, 8 + 8**0.5))
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "50"]


def test_names_beside_the_lines_stand_apart_in_the_order_of_their_ends(axes):
    draw_label_curves(axes, {name: {50: [top1]} for name, top1 in {"a": 97.0, "b": 97.01, "c": 97.02, "d": 80}.items()})
    heights = names_of(axes)
    assert heights["d"] < heights["a"] < heights["b"] < heights["c"]
    assert all(above - below > APART - 0.001 for below, above in itertools.pairwise(sorted(heights.values())))


def test_numbers_of_labels_that_would_stand_on_one_another_are_left_out(axes):
    draw_label_curves(axes, {"model": {count: [90.0] for count in (50, 100, 850, 898)}})
    assert [label.get_text() for label in axes.get_xticklabels()] == ["898", "100", "50"]


def test_no_error_and_a_band_beyond_it_have_their_place(axes):
    draw_label_curves(axes, {"model": {50: [100.0, 60.0], 100: [100.0, 100.0]}})
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1] > 0).all()
    assert "100" in [label.get_text() for label in axes.get_yticklabels()]


def test_the_picture_is_written(tmp_path):
    labels_figure({"model": {50: [90.0]}}, tmp_path / "a.png", title="Top-1 on digits, %", note="one seed")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1280, 800)
