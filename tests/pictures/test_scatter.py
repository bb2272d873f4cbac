"""Points, lines and labels of the pictures of accuracy over costs, read off their parts."""

import itertools

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from t2t_vit.pictures.colours import LINE_COLOURS
from t2t_vit.pictures.scatter import Point, Series, accuracy_figure, draw_series, label_points

TITLE = "GMACs"


def series_of(*places, name="ours", look=0, **style):
    """A series of points, each given by its cost and its accuracy."""
    points = [Point(f"{name} {number}", top1, {TITLE: cost}) for number, (cost, top1) in enumerate(places)]
    return Series(name, points, look, **style)


@pytest.fixture
def axes():
    return Figure(figsize=(5, 5), dpi=100).add_axes((0.1, 0.1, 0.8, 0.8))


def boxes_of(axes):
    """The boxes of the labels, by their text."""
    return {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}


def test_points_are_drawn_where_they_are_on_a_logarithmic_axis(axes):
    draw_series(axes, [series_of((1, 70), (10, 80), connected=True), series_of((3, 75), look=1, hollow=True)], TITLE)
    ours, other = axes.lines
    assert axes.get_xscale() == "log"
    assert ours.get_xydata().tolist() == [[1, 70], [10, 80]]
    assert (ours.get_linestyle(), other.get_linestyle()) == ("-", "None")
    assert (to_hex(ours.get_color()), to_hex(other.get_color())) == tuple(LINE_COLOURS[:2])
    assert to_hex(other.get_markerfacecolor()) == "#ffffff"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "5", "10"]


def test_a_point_without_this_cost_is_left_out(axes):
    unmeasured = Point("unmeasured", 75, {"images per second": 3.0})
    one = Series("ours", [*series_of((1, 70), (10, 80)).points, unmeasured], 0)
    draw_series(axes, [one], TITLE)
    label_points(axes, [one], TITLE)
    assert len(axes.lines[0].get_xydata()) == 2
    assert "unmeasured" not in boxes_of(axes)


def test_labels_cover_neither_each_other_nor_points_nor_lines(axes):
    crowd = [(4 + 0.3 * (number % 4), 79 + 0.15 * number) for number in range(14)]
    series = [series_of((1, 70), (2, 76), (9, 82), connected=True), series_of(*crowd, name="crowd", look=1)]
    draw_series(axes, series, TITLE)
    label_points(axes, series, TITLE)
    labels = boxes_of(axes)
    assert {"ours 0", "ours 1", "ours 2"} < set(labels)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(labels.values(), 2))
    places = axes.transData.transform([place for line in axes.lines for place in line.get_xydata()])
    assert not any(box.contains(*place) for box in labels.values() for place in places)
    path = axes.lines[0].get_path().transformed(axes.transData)
    assert not any(path.intersects_bbox(box, filled=False) for box in labels.values())


def test_a_label_far_from_its_point_has_a_line_to_it(axes):
    crowd = series_of(*[(4 + 0.1 * number, 80) for number in range(5)])
    draw_series(axes, [series_of((1, 70), (9, 90), name="corner", look=1), crowd], TITLE)
    label_points(axes, [crowd], TITLE)
    assert any(text.arrow_patch for text in axes.texts if not text.get_text())


def test_the_picture_has_two_panels_in_a_row(tmp_path):
    one = Series("ours", [Point("a", 70, {"x": 1, "y": 2, "z": 3}), Point("b", 80, {"x": 2, "y": 3, "z": 4})], 0)
    sizes = []
    for titles in (["x", "y"], ["x", "y", "z"]):
        accuracy_figure([one], titles, tmp_path / "picture.png", note="as published")
        with Image.open(tmp_path / "picture.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.7 * sizes[0][1]
