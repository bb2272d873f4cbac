"""Where tokens and cells of maps lie on the image.

The centre of the first token of the paper's splits is pixel 1, not pixel 7.5 as of hard patches: a picture that spreads
the grid evenly over the image shifts everything by six pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.models.splits import Split, num_patches, without_autocast
from t2t_vit.models.t2t_vit import T2TViT


@dataclass(frozen=True)
class Grid:
    """A grid of tokens over an image of (image_height, image_width) pixels.

    Attributes:
        height, width: tokens of a column, and of a row.
        stride: pixels between the centres of two neighbours, (down, right).
        first: the centre of the first token, (y, x), where the centre of the first pixel is (0, 0).
        side: side in pixels of the patch that a token is made of; None where it is not known.
    """

    height: int
    width: int
    image_height: int
    image_width: int
    stride: tuple[float, float]
    first: tuple[float, float]
    side: int | None = None

    @classmethod
    def after(cls, splits: Sequence[Split], image_size: tuple[int, int]) -> "Grid":
        """The grid that soft splits leave of an image of (H, W): all three, or the first of them."""
        height, width = image_size
        first, side, stride = 0.0, 1, 1
        for split in splits:
            kernel, step, padding = split
            height, width = num_patches(height, split), num_patches(width, split)
            first += ((kernel - 1) / 2 - padding) * stride
            side += (kernel - 1) * stride
            stride *= step
        return cls(height, width, *image_size, (stride, stride), (first, first), side)

    @classmethod
    def spread(cls, map_size: tuple[int, int], image_size: tuple[int, int]) -> "Grid":
        """The grid of a map of which no more is known than that it covers the image evenly."""
        stride = image_size[0] / map_size[0], image_size[1] / map_size[1]
        return cls(*map_size, *image_size, stride, ((stride[0] - 1) / 2, (stride[1] - 1) / 2))

    def token_at(self, x: int, y: int) -> int:
        """The number of the token whose centre is the nearest to a pixel.

        Raises:
            UserError: the pixel lies outside the image.
        """
        if not (0 <= x < self.image_width and 0 <= y < self.image_height):
            raise UserError(
                f"The pixel {x},{y} lies outside the image, which has {self.image_width} x {self.image_height} pixels: "
                f"x is from 0 to {self.image_width - 1}, y from 0 to {self.image_height - 1}."
            )
        rows, columns = self.nearest(self.image_height, self.image_width)
        return int(rows[y]) * self.width + int(columns[x])

    def patch_of(self, token: int) -> tuple[int, int, int, int]:
        """The pixels that a token is made of, (left, top, right, bottom), the last two excluded; cut at the edges."""
        assert self.side is not None
        row, column = divmod(token, self.width)
        top = round(self.first[0] + row * self.stride[0] - (self.side - 1) / 2)
        left = round(self.first[1] + column * self.stride[1] - (self.side - 1) / 2)
        right, bottom = min(left + self.side, self.image_width), min(top + self.side, self.image_height)
        return max(left, 0), max(top, 0), right, bottom

    def to_pixels(self, values: Tensor) -> Tensor:
        """Values of the tokens, (..., h * w), at every pixel, (..., H, W), interpolated between the tokens' centres.

        Beyond the outermost centres a value stays as it is.
        """
        maps = values.reshape(*values.shape[:-1], self.height, self.width)
        down = _interpolation(self.image_height, self.height, self.stride[0], self.first[0]).to(maps)
        right = _interpolation(self.image_width, self.width, self.stride[1], self.first[1]).to(maps)
        with without_autocast(maps):
            return down @ maps @ right.t()

    def nearest(self, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
        """For each row and each column of the image at another size, the row and the column of the nearest tokens."""
        down = (torch.arange(num_rows) + 0.5) * self.image_height / num_rows - 0.5
        right = (torch.arange(num_columns) + 0.5) * self.image_width / num_columns - 0.5
        rows = ((down - self.first[0]) / self.stride[0] + 0.5).floor().clamp(0, self.height - 1)
        columns = ((right - self.first[1]) / self.stride[1] + 0.5).floor().clamp(0, self.width - 1)
        return rows.long(), columns.long()


def _interpolation(num_pixels: int, num_tokens: int, stride: float, first: float) -> Tensor:
    """The matrix, (num_pixels, num_tokens), that interpolates linearly between the tokens of a line."""
    place = ((torch.arange(num_pixels) - first) / stride).clamp(0, num_tokens - 1)
    below = place.floor().long().clamp(max=max(num_tokens - 2, 0))
    above = (below + 1).clamp(max=num_tokens - 1)
    matrix = torch.zeros(num_pixels, num_tokens)
    share = place - below
    matrix[torch.arange(num_pixels), below] = 1 - share
    matrix[torch.arange(num_pixels), above] += share
    return matrix


TOKEN_TRANSFORMERS = {"tokens_to_token.attention1": 1, "tokens_to_token.attention2": 2}
"""The layers before the last soft split, and the splits up to each. Their tokens have no class token among them."""
STAGES = {**TOKEN_TRANSFORMERS, "tokens_to_token.soft_split0": 1, "tokens_to_token.soft_split1": 2}
"""All layers before the last soft split, or the last convolution in its place."""


def num_class_tokens(model: nn.Module) -> int:
    """How many tokens before the grid are class tokens: two in a distilled network, none where all are registers."""
    has = [getattr(model, name, None) is not None for name in ("cls_token", "dist_token")]
    return min(sum(has), int(getattr(model, "num_prefix_tokens", 0)))


def grid_of(model: nn.Module, image_size: tuple[int, int], *, layer: str | None = None) -> Grid:
    """The grid of a network's tokens for images of (H, W).

    Args:
        model: a network of this package, or one of timm with hard patches.
        layer: the name of the module that returns the tokens; None stands for the backbone.

    Raises:
        UserError: the network has no tokens.
    """
    if isinstance(model, T2TViT):
        return Grid.after(model.tokens_to_token.splits[: STAGES.get(layer or "")], image_size)
    embed: Any = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    side = getattr(embed, "patch_size", None)
    if side is None or not isinstance(getattr(embed, "proj", None), nn.Conv2d) or embed.proj.stride != tuple(side):
        raise UserError(
            f"{type(model).__name__} has no tokens of patches whose places are known: networks of this package have, "
            "and those of timm with a patch_embed of hard patches."
        )
    height, width = embed.dynamic_feat_size(image_size)
    first = (side[0] - 1) / 2, (side[1] - 1) / 2
    return Grid(height, width, *image_size, (side[0], side[1]), first, side[0])
