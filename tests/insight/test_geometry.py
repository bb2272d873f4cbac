"""Where a token lies is where its pixels are: held to the gradients of plain convolutions."""

import pytest
import timm
import torch

from t2t_vit.errors import UserError
from t2t_vit.insight.geometry import Grid, grid_of
from t2t_vit.models.splits import PAPER_SPLITS

SIZE = (48, 80)


@pytest.mark.parametrize("name", ["t2t_vit_14_conv", "t2t_vit_7_no_t2t", "vit_tiny_patch16_224", "t2t_vit_7_64px"])
def test_a_patch_is_the_pixels_that_a_token_is_made_of(name: str):
    splits = timm.create_model(name).tokens_to_token.splits if "t2t" in name else ((16, 16, 0),)
    grid = Grid.after(splits, SIZE)
    image = torch.rand(1, 1, *SIZE, requires_grad=True)
    tokens = image
    for kernel, stride, padding in splits:
        tokens = torch.nn.functional.conv2d(tokens, torch.ones(1, 1, kernel, kernel), None, stride, padding)
    assert tokens.shape[2:] == (grid.height, grid.width)
    for token in range(grid.height * grid.width):
        (gradient,) = torch.autograd.grad(tokens.flatten()[token], image, retain_graph=True)
        rows, columns = gradient[0, 0].nonzero().unbind(1)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        assert grid.patch_of(token) == box


def test_the_first_centre_of_the_papers_splits_is_pixel_one():
    assert [Grid.after(PAPER_SPLITS[:number], (224, 224)).first for number in (1, 2, 3)] == [(1.0, 1.0)] * 3
    grid = Grid.after(PAPER_SPLITS, (224, 224))
    assert (grid.height, grid.width, grid.stride, grid.side) == (14, 14, (16, 16), 31)
    # Nearer to 17 than to 1 or to 33.
    assert grid.token_at(10, 24) == 14 + 1
    assert grid.token_at(223, 223) == 14 * 14 - 1


def test_values_stand_at_the_centres_and_between_them_linearly():
    grid = Grid.after(PAPER_SPLITS, SIZE)  # 3 x 5 tokens
    values = torch.arange(15.0)
    pixels = grid.to_pixels(values)
    assert pixels.shape == SIZE
    assert pixels[1, 1] == 0
    assert pixels[1, 17] == 1
    assert pixels[17, 1] == 5
    assert pixels[1, 9] == pytest.approx(0.5)
    assert pixels[0, 0] == 0  # beyond the centres nothing changes
    assert pixels[47, 79] == 14
    torch.testing.assert_close(grid.to_pixels(values.expand(2, 3, 15))[1, 2], pixels)


def test_cells_of_a_picture_are_the_nearest_tokens():
    grid = Grid.after(PAPER_SPLITS, SIZE)  # centres 1, 17, 33 ...
    rows, columns = grid.nearest(48, 80)
    assert columns.tolist() == [0] * 9 + [1] * 16 + [2] * 16 + [3] * 16 + [4] * 23
    assert rows[[0, 8, 9, 47]].tolist() == [0, 0, 1, 2]
    assert grid.nearest(24, 40)[1].tolist() == columns[::2].tolist()  # at half of the size


def test_a_line_of_one_token():
    grid = Grid.after(PAPER_SPLITS, (16, 64))
    assert (grid.height, grid.width) == (1, 4)
    assert torch.equal(grid.to_pixels(torch.tensor([3.0, 3, 3, 3])), torch.full((16, 64), 3.0))


def test_networks_without_tokens_of_patches_are_told():
    with pytest.raises(UserError, match=r"^ResNet has no tokens of patches whose places are known"):
        grid_of(timm.create_model("resnet18"), SIZE)


def test_the_stages_of_the_module_have_their_own_grids():
    model = timm.create_model("t2t_vit_7", img_size=SIZE)
    found = [grid_of(model, SIZE, layer=layer) for layer in ("tokens_to_token.attention1", "blocks.0", None)]
    assert [(grid.height, grid.width) for grid in found] == [(12, 20), (3, 5), (3, 5)]
