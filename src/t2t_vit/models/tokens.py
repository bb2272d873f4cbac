"""From pixels to tokens: the T2T module (section 3.1 of the paper), and the modules that it is compared with."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2t_vit.errors import UserError, closest
from t2t_vit.models.mixers import PerformerMixer, TransformerMixer
from t2t_vit.models.splits import (
    PAPER_SPLITS,
    Split,
    checked_splits,
    linear_over_patches,
    num_patches,
    to_map,
    to_tokens,
)

MIXERS = {"performer": PerformerMixer, "transformer": TransformerMixer}
TOKEN_KINDS = (*MIXERS, "convolution", "patch")


class TokensToToken(nn.Module):
    """The tokens-to-token module: from images to tokens that know their neighbours, for any network.

    A token transformer follows each soft split but the last, and its tokens become a map again. A linear layer projects
    the last split's tokens to `embed_dim`.

    Args:
        in_chans: channels of the images.
        embed_dim: width of the resulting tokens.
        tokens: the kind of token transformer, "performer" or "transformer".
        token_dim: width of the tokens inside the module.
        splits: kernel, stride and padding of the three soft splits.
        token_drop_rate: dropout in the token transformers; None takes the official code's, 0.1 in performers and 0 in
            transformers.

    Raises:
        UserError: the kind of token transformer is unknown, or there are not three splits.
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
        drop: dict[str, Any] = {} if token_drop_rate is None else {"drop": token_drop_rate}
        self.attention1 = MIXERS[tokens](in_chans, token_dim, self.splits[0], of_pixels=True, **drop, **factory)
        self.attention2 = MIXERS[tokens](token_dim, token_dim, self.splits[1], **drop, **factory)
        self.project = nn.Linear(token_dim * self.splits[2][0] ** 2, embed_dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, (B, h * w, embed_dim), row by row; with the paper's splits h is about H / 16, and w W / 16.

        Args:
            x: images, (B, in_chans, H, W), normalised.
        """
        height, width = num_patches(x.shape[-2], self.splits[0]), num_patches(x.shape[-1], self.splits[0])
        x = to_map(self.attention1(x), height, width)  # (B, token_dim, height, width)
        height, width = num_patches(height, self.splits[1]), num_patches(width, self.splits[1])
        x = to_map(self.attention2(x), height, width)
        return linear_over_patches(x, self.project.weight, self.project.bias, self.splits[2])


class ConvolutionTokens(nn.Module):
    """Three convolutions in place of the soft splits (table 7); the official code builds but cannot run them."""

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
        return to_tokens(self.project(self.soft_split1(self.soft_split0(x))))


class PatchTokens(nn.Module):
    """Hard patches instead of T2T, as in the paper's ablation. A patch's side is the product of the strides."""

    def __init__(self, in_chans: int, embed_dim: int, *, splits: Sequence[Sequence[int]], **factory: Any) -> None:
        super().__init__()
        side = math.prod(stride for _, stride, _ in checked_splits(splits))
        self.splits: tuple[Split, ...] = ((side, side, 0),)
        self.project = nn.Conv2d(in_chans, embed_dim, side, side, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to tokens (B, h * w, embed_dim)."""
        return to_tokens(self.project(x))


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
    """The module that makes a network's tokens; a `UserError` for an unknown kind, or for dropout that it lacks."""
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
