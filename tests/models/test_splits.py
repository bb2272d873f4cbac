"""Linear layers over patches that are never cut out, beside the layers as the paper defines them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.models.splits import (
    PAPER_SPLITS,
    grid_size,
    linear_over_patches,
    norm_linear_over_patches,
    smallest_size,
    variance_of_patches,
)

SPLITS = [(7, 4, 2), (3, 2, 1), (3, 1, 0), (4, 4, 1)]
each_split = pytest.mark.parametrize("split", SPLITS, ids=str)


def soft_split(x, split):
    """The definition: a token for each patch."""
    kernel, stride, padding = split
    return F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)


def layers(split, chans, dim=24, *, bias=True):
    """A norm and a linear over patches, with weights that leave nothing out."""
    torch.manual_seed(0)
    width = chans * split[0] ** 2
    norm, linear = nn.LayerNorm(width), nn.Linear(width, dim, bias=bias)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    return norm, linear


def unfolded(x, split, norm, linear):
    return linear(norm(soft_split(x, split)))


def convolved(x, split, norm, linear, *, of_pixels=False):
    return norm_linear_over_patches(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias, split, of_pixels)


@each_split
def test_a_linear_over_patches_is_a_convolution(split):
    _, linear = layers(split, 5)
    x = torch.randn(2, 5, 17, 14)
    result = linear_over_patches(x, linear.weight, linear.bias, split)
    torch.testing.assert_close(result, linear(soft_split(x, split)), rtol=1e-5, atol=1e-5)


@each_split
@pytest.mark.parametrize("chans", [1, 3, 8])
@pytest.mark.parametrize("of_pixels", [True, False])
def test_so_is_a_norm_and_a_linear(split, chans, of_pixels):
    norm, linear = layers(split, chans, bias=chans != 8)
    x = 0.7 + torch.randn(2, chans, 17, 14)
    result = convolved(x, split, norm, linear, of_pixels=of_pixels)
    torch.testing.assert_close(result, unfolded(x, split, norm, linear), rtol=1e-5, atol=1e-5)


def test_its_gradients_are_those_of_the_definition():
    split = (3, 2, 1)
    norm, linear = (layer.double() for layer in layers(split, 4))
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 20, 24, dtype=torch.float64)
    inputs = [x, *norm.parameters(), *linear.parameters()]
    ours = torch.autograd.grad(convolved(x, split, norm, linear), inputs, upstream)
    theirs = torch.autograd.grad(unfolded(x, split, norm, linear), inputs, upstream)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-10)


def test_its_second_derivatives_are_right():
    split = (3, 2, 1)
    norm, linear = (layer.double() for layer in layers(split, 2))
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: convolved(x, split, norm, linear), x)


@each_split
def test_tokens_lie_in_memory_as_the_next_split_wants_its_map(split):
    norm, linear = layers(split, 3)
    assert convolved(torch.randn(2, 3, 17, 14), split, norm, linear).is_contiguous()


@each_split
@pytest.mark.parametrize("offset", [0.0, 2.5])
def test_the_variance_of_a_smooth_patch_is_not_a_rounding_error(split, offset):
    """One grey level of 255 around an offset, as in a clear sky: E[p^2] - E[p]^2 in float32 leaves nothing of it."""
    x = offset + 0.0175 * torch.randint(0, 2, (2, 3, 17, 14))
    expected = F.unfold(x.double(), split[0], padding=split[2], stride=split[1]).var(dim=1, correction=0)
    torch.testing.assert_close(variance_of_patches(x, split).flatten(1).double(), expected, rtol=2e-4, atol=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.0175])
def test_smooth_images_are_as_exact_as_others(level):
    split = (7, 4, 2)
    norm, linear = layers(split, 3)
    x = 2.5 + level * torch.randint(0, 2, (1, 3, 56, 56))
    exact = unfolded(x.double(), split, norm.double(), linear.double())
    result = convolved(x, split, norm.float(), linear.float(), of_pixels=True)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-3)  # 400 times what 2.5 is rounded by


def test_autocast_does_not_round_an_image():
    """In bfloat16 the filters' rows do not sum to zero: a smooth image would drown in what its mean leaves."""
    split = (7, 4, 2)
    norm, linear = layers(split, 3)
    x = 2.5 + 0.05 * torch.randn(1, 3, 56, 56)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, exact = (convolved(x, split, norm, linear, of_pixels=of_pixels) for of_pixels in (False, True))
        expected = unfolded(x, split, norm, linear).float()
    error, worse = ((result - expected).norm() / expected.norm() for result in (exact, rounded))
    assert error < 0.01
    assert worse > 10 * error


def test_autocast_rounds_tokens_no_more_than_the_definition():
    split = (3, 2, 1)
    norm, linear = layers(split, 64, dim=192)
    x = torch.randn(2, 64, 14, 14)
    exact = unfolded(x, split, norm, linear)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = convolved(x, split, norm, linear), unfolded(x, split, norm, linear)
    assert (ours - exact).norm() <= 1.5 * (theirs.float() - exact).norm()


def test_the_grid_is_rounded_as_each_split_rounds_it():
    assert grid_size((260, 224), PAPER_SPLITS) == (17, 14)  # 260 -> 65 -> 33 -> 17, where 260 // 16 would say 16


@pytest.mark.parametrize("splits", [PAPER_SPLITS, ((3, 1, 1),) * 3, ((7, 4, 0), (3, 2, 0), (3, 2, 0)), ((16, 16, 0),)])
def test_the_smallest_size_is_the_smallest_that_works(splits):
    size = smallest_size(splits)
    assert min(grid_size((size, size), splits)) >= 1
    if size > 1:
        with pytest.raises(
            UserError, match=f"{size - 1} x {size} pixels is too small .* smallest size is {size} x {size}"
        ):
            grid_size((size - 1, size), splits)
