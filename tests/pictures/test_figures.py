"""What the figures show, read off their parts."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from t2t_vit.pictures.colours import LIGHT, LINE_COLOURS
from t2t_vit.pictures.figures import (
    Bar,
    Sample,
    comparison_figure,
    curves_svg,
    draw_accuracies,
    draw_bars,
    draw_losses,
    draw_sheet,
    places_of,
    sheet_shape,
    speed_figure,
)


@pytest.fixture
def axes():
    return Figure().add_axes((0, 0, 1, 1))


def by_step(curves):
    """The curves of evaluations every 10 steps."""
    return {name: {10 * row: value for row, value in enumerate(values, 1)} for name, values in curves.items()}


def texts_of(artists):
    return [artist.get_text() for artist in artists]


def ticks_of(axes):
    """The accuracies beside the axes, each with its height from 0 to 1."""
    heights = axes.transAxes.inverted().transform(axes.transData.transform([(10, tick) for tick in axes.get_yticks()]))
    return dict(zip(texts_of(axes.get_yticklabels()), heights[:, 1].tolist(), strict=True))


def heights_of(axes, line):
    return axes.transAxes.inverted().transform(axes.transData.transform(line.get_xydata()))[:, 1].tolist()


def sample(predicted, label):
    return Sample(Image.new("L", (8, 6), 40), predicted, label)


def test_each_line_is_named_with_its_best_accuracy_and_has_a_dot_there(axes):
    draw_accuracies(axes, by_step({"t2t_vit_7": [30.0, 99.2, 99.0], "twin": [20.0, 80.0, 96.7]}))
    assert texts_of(axes.get_legend().get_texts()) == ["t2t_vit_7: 99.20 % at step 20", "twin: 96.70 % at step 30"]
    assert [line.get_markevery() for line in axes.lines] == [[1], [2]]
    assert {line.get_marker() for line in axes.lines} == {"o"}
    start, best, end = heights_of(axes, axes.lines[0])
    assert start < end < best


def test_equal_ratios_of_errors_are_equal_heights(axes):
    draw_accuracies(axes, by_step({"model": [0.0, 90.0, 99.0, 67.0, 96.7]}))
    zero, ninety, ninety_nine, before, after = heights_of(axes, axes.lines[0])
    assert zero == 0
    assert [ninety - zero, ninety_nine - ninety, after - before] == pytest.approx([ninety] * 3)
    assert ninety_nine < 1


@pytest.mark.parametrize("top1", [(10.0, 98.9, 99.5), (0.0, 10.0), (60.0, 100.0), (99.9, 99.99)])
def test_accuracies_stand_at_their_heights_and_none_on_another(axes, top1):
    draw_accuracies(axes, by_step({"model": [*top1, 90.0, 99.0]}))
    ticks, (*_, ninety, ninety_nine) = ticks_of(axes), heights_of(axes, axes.lines[0])
    assert (ticks["90"], ticks["99"]) == pytest.approx((ninety, ninety_nine))
    assert len(ticks) >= 3
    assert all(above - below > 0.06 for above, below in itertools.pairwise(ticks.values()))
    assert 0 <= min(ticks.values()) <= max(ticks.values()) <= 1


@pytest.mark.parametrize("top1", [[100.0], [0.0], [85.0], [50.0, 100.0], [0.0, 100.0, 99.7]])
def test_one_epoch_and_no_error_at_all_have_their_place(axes, top1):
    draw_accuracies(axes, by_step({"model": top1}))
    assert all(0 <= height <= 1 for height in heights_of(axes, axes.lines[0]))
    ticks = ticks_of(axes)
    assert ticks
    assert ("100" in ticks) == (100.0 in top1)


def test_losses_that_are_not_finite_leave_a_gap(axes):
    draw_losses(axes, by_step({"training": [1.0, 1.0, math.inf], "validation": [0.5, math.nan, 0.25]}))
    assert [np.isfinite(line.get_ydata()).tolist() for line in axes.lines] == [[True, True, False], [True, False, True]]
    assert texts_of(axes.get_legend().get_texts()) == ["training: inf at the end", "validation: 0.25 at the end"]
    assert axes.get_ylim()[0] == 0


def test_the_loss_of_one_epoch_is_a_dot(axes):
    draw_losses(axes, by_step({"training": [1.0]}))
    assert axes.lines[0].get_marker() == "o"


def test_a_page_takes_its_colours_and_no_id_twice():
    svgs = [curves_svg("x", draw, by_step({"a": [90.0, 99.0]})) for draw in (draw_accuracies, draw_losses)]
    assert all("stroke: var(--line0)" in svg and LINE_COLOURS[0] not in svg for svg in svgs)
    ids = [{part.split('"')[0] for part in svg.split(' id="')[1:]} for svg in svgs]
    assert all(ids)
    assert not ids[0] & ids[1]
    for svg, own in zip(svgs, ids, strict=True):
        assert {part.split('"')[0] for part in svg.split('href="#')[1:]} <= own
    assert svgs[0] == curves_svg("x", draw_accuracies, by_step({"a": [90.0, 99.0]}))


def test_mistakes_are_framed_and_told():
    figure = Figure()
    draw_sheet(figure, [sample("3", "3"), sample("7", "1"), sample("0", "0")])
    shown = figure.axes[:3]
    assert [axes.get_xlabel() for axes in shown] == ["3", "7, is 1", "0"]
    assert [axes.spines["left"].get_visible() for axes in shown] == [False, True, False]
    assert to_hex(shown[1].spines["left"].get_edgecolor()) == LIGHT["wrong"]
    assert not any(axes.axison for axes in figure.axes[3:])


def test_long_labels_get_wider_thumbnails_and_are_cut():
    assert sheet_shape(["0", "9"]) == (8, 5)
    assert sheet_shape(["golden retriever", "tabby"]) == (5, 3)
    figure = Figure()
    draw_sheet(figure, [sample("golden retriever", "tabby"), sample("tabby", "golden retriever")])
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["golden…riever\nis tabby", "tabby\nis gol…riever"]


def test_the_picture_is_written(tmp_path):
    path = tmp_path / "comparison.png"
    comparison_figure(
        by_step({"model": [50.0, 60.0]}), [sample("3", "3")] * 40, path, sheet_title="model", sheet_note="all"
    )
    with Image.open(path) as image:
        assert image.size == (1760, 832)
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {(255, 255, 255), (40, 40, 40)} <= colours  # the paper, and the thumbnails


BARS = [
    Bar("t2t_vit_7", "float32", 1234.5, 1200.0, 1300.0, 1.0, ""),
    Bar("resnet18", "float32", 617.2, 600.0, 650.0, 0.5, ""),
    Bar("vit_giant", "float32", None, None, None, None, "out of memory"),
]


def test_bars_tell_speed_spread_and_ratio(axes):
    draw_bars(axes, BARS)
    assert texts_of(axes.get_yticklabels()) == ["t2t_vit_7   float32", "resnet18   float32", "vit_giant   float32"]
    assert texts_of(axes.texts) == ["1,234", "617.2   0.50 x", "out of memory"]
    assert [bar.get_width() for bar in axes.patches] == [1234.5, 617.2, 0]
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == [LIGHT["line0"], LIGHT["line5"], LIGHT["line5"]]
    (spreads,) = axes.collections
    assert [segment[:, 0].tolist() for segment in spreads.get_segments()] == [[1200, 1300], [600, 650], [0, 0]]


def test_networks_compared_with_one_another_stand_together():
    gaps = np.diff(places_of([*BARS, *BARS])).tolist()
    assert gaps == pytest.approx([1, 1, 1.6, 1, 1])


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_speeds_are_drawn(tmp_path, suffix):
    path = tmp_path / f"speed.{suffix}"
    speed_figure({"Inference": BARS, "Training": BARS[2:]}, path, note="abacus")
    assert path.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<?xml"}[suffix]


def test_no_global_backend_is_chosen():
    code = "import sys, t2t_vit.pictures.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
