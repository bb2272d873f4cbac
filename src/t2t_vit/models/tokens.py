"""From pixels to tokens: the tokens-to-token module (section 3.1 of the paper), and what it is compared with."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_vit.errors import UserError, closest
from t2t_vit.models.mixers import PerformerMixer, TransformerMixer

Split = tuple[int, int, int]
"""Kernel, stride and padding of a soft split, in pixels of the map it splits."""

PAPER_SPLITS: tuple[Split, ...] = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
MIXERS = {"performer": PerformerMixer, "transformer": TransformerMixer}
TOKEN_KINDS = (*MIXERS, "convolution", "patch")


class SoftSplit(nn.Module):
    """Unfolds a map into overlapping patches, a token each.

    Args:
        kernel: side of a patch.
        stride: step from one patch to the next.
        padding: zeros added at each border.
    """

    def __init__(self, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Splits a map.

        Args:
            x: (B, C, H, W).

        Returns:
            Tokens, (B, N, C * kernel * kernel), row by row, channels outermost within a token.
        """
        return F.unfold(x, self.kernel, padding=self.padding, stride=self.stride).transpose(1, 2)

    def next_size(self, size: int) -> int:
        """How many patches fit along a side of `size`."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"kernel={self.kernel}, stride={self.stride}, padding={self.padding}"


class TokensToToken(nn.Module):
    """Images to tokens, re-structured step by step so that a token knows its neighbours.

    Each soft split but the last is followed by a token transformer whose tokens are laid out as a map again; the last
    split's tokens are projected to the width of the backbone. It stands alone: any network may take its tokens.

    Args:
        in_chans: channels of the image.
        embed_dim: width of the tokens it makes.
        tokens: "performer" or "transformer": the kind of token transformer.
        token_dim: width of the tokens inside the module.
        splits: kernel, stride and padding of the three soft splits.
        token_drop_rate: dropout in the token transformers; None takes the official code's (0.1 for the performer, 0
            for the transformer).

    Raises:
        UserError: for an unknown kind of token transformer, or other than three splits.
    """

    def __init__(
        self,
        in_chans: int = 3,
        embed_dim: int = 384,
        *,
        tokens: str = "performer",
        token_dim: int = 64,
        splits: Sequence[Sequence[int]] = PAPER_SPLITS,
        token_drop_rate: float | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if tokens not in MIXERS:
            raise UserError(closest(tokens, MIXERS, "kind of token transformer"))
        self.splits = checked_splits(splits)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        drop = {} if token_drop_rate is None else {"drop": token_drop_rate}
        self.soft_split0, self.soft_split1, self.soft_split2 = (SoftSplit(*split) for split in self.splits)
        kernels = [split[0] for split in self.splits]
        self.attention1 = MIXERS[tokens](in_chans * kernels[0] ** 2, token_dim, **drop, **factory)
        self.attention2 = MIXERS[tokens](token_dim * kernels[1] ** 2, token_dim, **drop, **factory)
        self.project = nn.Linear(token_dim * kernels[2] ** 2, embed_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Makes tokens.

        Args:
            x: images, (B, in_chans, H, W), normalised.

        Returns:
            Tokens, (B, h * w, embed_dim), row by row of the grid that `grid_size` tells.
        """
        height, width = self.soft_split0.next_size(x.shape[-2]), self.soft_split0.next_size(x.shape[-1])
        x = self.attention1(self.soft_split0(x))  # (B, height * width, token_dim)
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)
        height, width = self.soft_split1.next_size(height), self.soft_split1.next_size(width)
        x = self.attention2(self.soft_split1(x))
        x = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)
        return self.project(self.soft_split2(x))


class ConvolutionTokens(nn.Module):
    """Three plain convolutions of the soft splits' geometry: the paper's comparison (table 7).

    The official code builds these layers and cannot run them.
    """

    def __init__(
        self, in_chans: int, embed_dim: int, *, token_dim: int, splits: Sequence[Sequence[int]], **factory: Any
    ) -> None:
        super().__init__()
        self.splits = checked_splits(splits)
        self.soft_split0 = nn.Conv2d(in_chans, token_dim, *self.splits[0], **factory)
        self.soft_split1 = nn.Conv2d(token_dim, token_dim, *self.splits[1], **factory)
        self.project = nn.Conv2d(token_dim, embed_dim, *self.splits[2], **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to tokens (B, h * w, embed_dim)."""
        return self.project(self.soft_split1(self.soft_split0(x))).flatten(2).transpose(1, 2)


class PatchTokens(nn.Module):
    """Hard patches, no T2T: the paper's ablation, and ViT's own. A patch's side is the product of the strides."""

    def __init__(self, in_chans: int, embed_dim: int, *, splits: Sequence[Sequence[int]], **factory: Any) -> None:
        super().__init__()
        side = math.prod(stride for _, stride, _ in checked_splits(splits))
        self.splits: tuple[Split, ...] = ((side, side, 0),)
        self.project = nn.Conv2d(in_chans, embed_dim, side, side, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to tokens (B, h * w, embed_dim)."""
        return self.project(x).flatten(2).transpose(1, 2)


def build_tokens(
    kind: str,
    in_chans: int,
    embed_dim: int,
    *,
    token_dim: int,
    splits: Sequence[Sequence[int]],
    token_drop_rate: float | None,
    **factory: Any,
) -> TokensToToken | ConvolutionTokens | PatchTokens:
    """The module that makes a network's tokens.

    Args:
        kind: "performer" or "transformer" (`TokensToToken`), "convolution" or "patch".

    Raises:
        UserError: for an unknown kind, or dropout where there is none.
    """
    if kind in MIXERS:
        return TokensToToken(
            in_chans,
            embed_dim,
            tokens=kind,
            token_dim=token_dim,
            splits=splits,
            token_drop_rate=token_drop_rate,
            **factory,
        )
    if kind not in TOKEN_KINDS:
        raise UserError(closest(kind, TOKEN_KINDS, "kind of tokens"))
    if token_drop_rate is not None:
        raise UserError(f"token_drop_rate has no effect on {kind!r} tokens: leave it out.")
    if kind == "convolution":
        return ConvolutionTokens(in_chans, embed_dim, token_dim=token_dim, splits=splits, **factory)
    return PatchTokens(in_chans, embed_dim, splits=splits, **factory)


def checked_splits(splits: Sequence[Sequence[int]]) -> tuple[Split, ...]:
    """Three soft splits as tuples.

    Raises:
        UserError: when they are not three of (kernel, stride, padding).
    """
    if len(splits) != 3 or any(len(split) != 3 for split in splits):
        raise UserError(f"Expected three splits of (kernel, stride, padding), got {splits}.")
    return tuple((kernel, stride, padding) for kernel, stride, padding in splits)


def grid_size(img_size: tuple[int, int], splits: Sequence[Split]) -> tuple[int, int]:
    """The grid of tokens, (h, w), that images of (H, W) pixels become.

    Raises:
        UserError: when the image is too small for the splits.
    """
    smallest = smallest_size(splits)
    if min(img_size) < smallest:
        raise UserError(
            f"An image of {img_size[0]} x {img_size[1]} pixels is too small for the splits {tuple(splits)}: "
            f"the smallest size is {smallest} x {smallest}."
        )
    height, width = img_size
    for kernel, stride, padding in splits:
        height = (height + 2 * padding - kernel) // stride + 1
        width = (width + 2 * padding - kernel) // stride + 1
    return height, width


def smallest_size(splits: Sequence[Split]) -> int:
    """The side of the smallest image that every split can take, in pixels."""
    size = 1
    for kernel, stride, padding in reversed(splits):  # the smallest map that gives `size` patches a side
        size = max(1, (size - 1) * stride + kernel - 2 * padding)
    return size
