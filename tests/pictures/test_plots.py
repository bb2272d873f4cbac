"""What the pictures say, read off their parts."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from t2t_vit.pictures.plots import (
    LINE_COLOURS,
    WRONG_COLOUR,
    Bar,
    Sample,
    comparison_figure,
    draw_bars,
    draw_curves,
    draw_sheet,
    sheet_shape,
    speed_figure,
    spread,
)


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def tick_texts_of(axes):
    return [tick.get_text() for tick in axes.get_yticklabels()]


def sample(predicted, label):
    return Sample(Image.new("L", (8, 6), 40), predicted, label)


def test_each_line_ends_with_its_name_and_best_accuracy():
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_curves(axes, {"t2t_vit_7": [30.0, 99.2, 99.0], "twin": [20.0, 80.0, 96.7]})
    assert texts_of(axes) == ["99.2 %", "t2t_vit_7", "96.7 %", "twin"]
    line, dot, *_ = axes.lines
    start, best, end = line.get_ydata()
    assert start < end < best
    assert [coordinate.item() for coordinate in map(np.asarray, dot.get_data())] == [2, best]
    assert [to_hex(axes.texts[place].get_color()).upper() for place in (0, 2)] == list(LINE_COLOURS[:2])
    assert axes.texts[0].get_position()[1] > axes.texts[2].get_position()[1]


def test_heights_are_told_by_accuracy():
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_curves(axes, {"model": [80.0, 98.9, 99.5]})
    ticks = dict(zip(tick_texts_of(axes), axes.get_yticks(), strict=True))
    assert list(ticks)[:5] == ["99.5", "99", "98", "95", "90"]
    assert axes.lines[0].get_ydata()[[0, 2]] == pytest.approx([ticks["80"], ticks["99.5"]])
    assert axes.get_ylim() == (0, 1)


@pytest.mark.parametrize("top1", [[50.0, 100.0], [100.0], [0.0, 100.0, 99.7]])
def test_no_error_at_all_still_has_a_place(top1):
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_curves(axes, {"model": top1})
    assert tick_texts_of(axes)[0] == "100"
    assert np.isfinite(axes.lines[0].get_ydata()).all()
    assert texts_of(axes)[0] == "100.0 %"


def test_spread_keeps_order_and_gap():
    assert spread([0.9, 0.2], gap=0.1) == [0.9, 0.2]
    assert spread([0.5, 0.52, 0.51], gap=0.1) == pytest.approx([0.32, 0.52, 0.42])
    assert spread([0.0, 0.01, 0.0], gap=0.1) == pytest.approx([0.1, 0.2, 0.0])


def test_mistakes_are_framed_and_told():
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_sheet(axes, [sample("3", "3"), sample("7", "1"), sample("0", "0")])
    assert texts_of(axes) == ["3", "7, is 1", "0"]
    (frame,) = axes.patches
    assert to_hex(frame.get_edgecolor()) == WRONG_COLOUR.lower()
    left, right, _, _ = axes.images[1].get_extent()
    assert (left, right) == pytest.approx((frame.get_x(), frame.get_x() + frame.get_width()))


def test_long_labels_get_wider_thumbnails_and_are_cut():
    labels = ["golden retriever", "tabby"]
    assert sheet_shape(["0", "9"]) == (8, 5)
    assert sheet_shape(labels) == (5, 3)
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_sheet(axes, [sample("golden retriever", "tabby"), sample("tabby", "golden retriever")])
    assert texts_of(axes) == ["golden retri…\nis tabby", "tabby\nis golden re…"]


def test_the_picture_is_written(tmp_path):
    path = tmp_path / "comparison.png"
    comparison_figure({"model": [50.0, 60.0]}, [sample("3", "3")] * 40, path, sheet_title="model", sheet_note="all")
    with Image.open(path) as image:
        assert image.size == (1760, 832)
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20)}
    assert {(255, 255, 255), (40, 40, 40)} <= colours  # the paper, and the thumbnails


BARS = [
    Bar("t2t_vit_7", "float32", 1234.5, 1200.0, 1300.0, 1.0, ""),
    Bar("resnet18", "float32", 617.2, 600.0, 650.0, 0.5, ""),
    Bar("vit_giant", "float32", None, None, None, None, "out of memory"),
]


def test_bars_tell_speed_spread_and_ratio():
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_bars(axes, BARS, {"t2t_vit_7": "#0077bb", "resnet18": "#ee7733", "vit_giant": "#009988"})
    assert texts_of(axes) == [
        "t2t_vit_7   float32", "1,234   x 1.00", "resnet18   float32", "617.2   x 0.50",
        "vit_giant   float32", "out of memory",
    ]  # fmt: skip
    assert [bar.get_width() for bar in axes.patches] == [1234.5, 617.2]
    assert [list(line.get_xdata()) for line in axes.lines] == [[1200.0, 1300.0], [600.0, 650.0]]
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == ["#0077bb", "#ee7733"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_speeds_are_drawn(tmp_path, suffix):
    path = tmp_path / f"speed.{suffix}"
    speed_figure({"Inference": BARS, "Training": BARS[2:]}, path, note="abacus")
    assert path.read_bytes()[:5] == {"png": b"\x89PNG\r", "svg": b"<?xml"}[suffix]


def test_no_global_backend_is_chosen():
    code = "import sys, t2t_vit.pictures.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
