"""A sheet of images with captions."""

import numpy as np
import pytest

from t2t_vit.pictures.sheet import draw_sheet


@pytest.mark.parametrize(("shape", "shown"), [((32, 32), (96, 96)), ((64, 96), (64, 96)), ((384, 192), (192, 96))])
def test_images_are_enlarged_or_shrunk_to_be_seen(shape, shown):
    images = np.zeros((10, *shape, 3), np.uint8)
    images[3] = (200, 100, 50)
    sheet = draw_sheet(images, ["cat"] * 10)
    cell = shown[1] + 12, shown[0] + 18 + 12
    assert sheet.size == (8 * cell[0] + 12, 2 * cell[1] + 12)
    pixels = np.asarray(sheet)
    left = 12 + 3 * cell[0]
    assert (pixels[12 : 12 + shown[0], left : left + shown[1]] == (200, 100, 50)).all()
    assert (pixels[:12] == 255).all()


def test_captions_are_cut_where_they_do_not_fit_and_may_be_anything():
    images = np.zeros((3, 32, 32, 3), np.uint8)
    one = np.asarray(draw_sheet(images, ["a very long name of a class that goes on", "写真", "caf\udce9"]))
    below = one[12 + 96 : 12 + 96 + 18]
    assert (below[:, 12 + 96 : 12 + 96 + 11] == 255).all()  # the gap between the first and the second
    assert (below[:, 12 : 12 + 96] < 255).any()
