"""Colours of tokens: the same for the same tokens, over all images."""

import numpy as np
import torch

from t2t_vit.insight.components import colour_tokens


def _scene(seed: int, place: tuple[int, int]) -> torch.Tensor:
    """Tokens, (16, 8, 8): a background, and in it an object with two parts."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(3, 16, generator=torch.Generator().manual_seed(9))
    tokens = vectors[0][:, None, None].expand(16, 8, 8).clone()
    top, left = place
    tokens[:, top : top + 3, left : left + 2] = (-3 * vectors[0] + 2 * vectors[1])[:, None, None]
    tokens[:, top : top + 3, left + 2 : left + 4] = (-3 * vectors[0] - 2 * vectors[1])[:, None, None]
    return tokens + 0.05 * torch.randn(16, 8, 8, generator=generator)


def test_the_object_is_foreground_and_its_parts_have_one_colour_in_all_images():
    scenes = [_scene(1, (2, 2)), _scene(2, (4, 3))]
    (first, second), shares = colour_tokens(scenes)
    assert first.foreground[2:5, 2:6].all()
    assert first.foreground.sum() == 12
    left, right = first.colours[2:5, 2:4], first.colours[2:5, 4:6]
    assert abs(left[..., 0].mean() - right[..., 0].mean()) > 0.7
    np.testing.assert_allclose(second.colours[4:7, 3:5, 0].mean(), left[..., 0].mean(), atol=0.1)
    assert (first.colours[~first.foreground] == 0).all()
    assert shares[0] > 0.9


def test_colours_are_reproducible():
    once, again = (colour_tokens([_scene(1, (2, 2)), _scene(2, (4, 3))])[0] for _ in range(2))
    assert all(np.array_equal(a.colours, b.colours) for a, b in zip(once, again, strict=True))


def test_images_of_different_shapes_and_few_tokens():
    coloured, _ = colour_tokens([torch.randn(5, 1, 3), torch.randn(5, 2, 2)])
    assert [one.colours.shape for one in coloured] == [(1, 3, 3), (2, 2, 3)]
