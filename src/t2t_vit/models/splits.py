"""Soft splits: overlapping patches of a map, and linear layers over the patches without cutting them out.

The paper defines a soft split of a map x, (B, C, H, W), as

    F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)

that is tokens (B, N, C * kernel * kernel), row by row, channels outermost within a token. The functions here compute a
linear layer over these tokens, with or without a norm before it, and never store the tokens themselves.
"""

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor

from t2t_vit.errors import UserError

Split = tuple[int, int, int]
"""Kernel, stride and padding of a soft split, in pixels of its map."""

PAPER_SPLITS: tuple[Split, ...] = ((7, 4, 2), (3, 2, 1), (3, 2, 1))


def to_tokens(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as tokens (B, H * W, C), row by row; a view if channels are last in memory."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H * W, C) as a map (B, C, H, W), a view with channels last in memory."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)


def linear_over_patches(x: Tensor, weight: Tensor, bias: Tensor | None, split: Split) -> Tensor:
    """linear(soft_split(x)), by a convolution whose filters are the rows of the linear layer.

    Args:
        x: (B, C, H, W).
        weight: (D, C * kernel * kernel).
        bias: (D,).

    Returns:
        Tokens, (B, N, D), a view of a map with channels last in memory.
    """
    return to_tokens(convolve(x, weight, bias, split))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, split: Split) -> Tensor:
    """`linear_over_patches` as a map, (B, D, h, w), with channels last in memory but while it is exported."""
    kernel, stride, padding = split
    filters = weight.reshape(weight.shape[0], x.shape[1], kernel, kernel)
    is_exporting = False
    if not torch.jit.is_scripting():
        is_exporting = torch.compiler.is_exporting()
    if not is_exporting:  # other runtimes have layouts of their own; ExecuTorch's operators take one alone
        # both, as a single image may look as if its channels were not the last
        x = x.contiguous(memory_format=torch.channels_last)
        filters = filters.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, filters, bias, stride, padding)


@torch.fx.wrap
@register_notrace_function
def norm_linear_over_patches(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    split: Split,
    of_pixels: bool,
) -> Tensor:
    """linear(layer_norm(soft_split(x))), by a convolution and the variances of the patches.

    With a patch p of mean mu and variance s^2, W and b of the linear,

        W (gamma (p - mu) / sqrt(s^2 + eps) + beta) + b = W' p / sqrt(s^2 + eps) + (W beta + b),

    where W' is W gamma with each row's mean subtracted. Its rows sum to zero, so that mu cancels.

    Args:
        x: (B, C, H, W).
        gamma, beta, eps: of the norm; gamma and beta are (C * kernel * kernel,).
        weight, bias: of the linear layer, (D, C * kernel * kernel) and (D,).
        of_pixels: whether x is an image, which is convolved in float32 even under autocast: in a smooth part of an
            image mu is many times s, and rows of W' that are rounded to half precision do not cancel mu. (TorchScript
            cannot switch autocast off.)

    Returns:
        Tokens, (B, N, D).
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    filters = weight.to(wide) * gamma.to(wide)
    filters = filters - filters.mean(dim=1, keepdim=True)
    shift = (weight.to(wide) * beta.to(wide)).sum(dim=1)
    if bias is not None:
        shift = shift + bias.to(wide)
    scale = (variance_of_patches(x, split) + eps).rsqrt()  # (B, 1, h, w)
    if torch.jit.is_scripting() or not of_pixels:
        projected = convolve(x, filters.to(x.dtype), None, split)
    else:
        with without_autocast(x):
            projected = convolve(x.to(wide), filters, None, split)
    scale, shift = scale.to(projected.dtype), shift.to(projected.dtype)
    # in place, and not in a view: fresh memory costs more than the products
    return to_tokens(projected.mul_(scale).add_(shift[:, None, None])).to(weight.dtype)


def variance_of_patches(x: Tensor, split: Split) -> Tensor:
    """The variance of each patch of x, (B, C, H, W), over its channels and pixels: (B, 1, h, w), float32 or wider.

    It applies the law of total variance over the channels, then the rows, then the columns: the mean of the variances
    plus the variance of the means. E[p^2] - E[p]^2 of a smooth patch would be mere rounding errors.
    """
    kernel, stride, padding = split
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    mean, variance = F.pad(mean, [padding] * 4), F.pad(variance, [padding] * 4)
    for dim in (3, 2):
        means = mean.unfold(dim, kernel, stride)  # a view with the pixels of each window in a last dimension
        mean = means.mean(dim=-1)
        spread = (means - mean.unsqueeze(-1)).square().mean(dim=-1)
        variance = variance.unfold(dim, kernel, stride).mean(dim=-1) + spread
    return variance


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Switches autocast off on a tensor's device; the meta device has none."""
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def checked_splits(splits: Sequence[Sequence[int]]) -> tuple[Split, ...]:
    """Three soft splits as tuples; a `UserError` if they are not three of (kernel, stride, padding)."""
    if len(splits) != 3 or any(len(split) != 3 for split in splits):
        raise UserError(f"Expected three splits of (kernel, stride, padding), got {splits}.")
    return tuple((kernel, stride, padding) for kernel, stride, padding in splits)


def grid_size(img_size: tuple[int, int], splits: Sequence[Split]) -> tuple[int, int]:
    """The grid of tokens, (h, w), of images of (H, W) pixels; a `UserError` if they are too small for the splits."""
    smallest = smallest_size(splits)
    if min(img_size) < smallest:
        raise UserError(
            f"An image of {img_size[0]} x {img_size[1]} pixels is too small for the splits {tuple(splits)}: "
            f"the smallest size is {smallest} x {smallest}."
        )
    height, width = img_size
    for split in splits:
        height, width = num_patches(height, split), num_patches(width, split)
    return height, width


def num_patches(size: int, split: Split) -> int:
    """The number of patches along a side of `size` pixels."""
    kernel, stride, padding = split
    return (size + 2 * padding - kernel) // stride + 1


def smallest_size(splits: Sequence[Split]) -> int:
    """The side in pixels of the smallest image that the splits can take."""
    size = 1
    for kernel, stride, padding in reversed(splits):  # the smallest map that gives `size` patches a side
        size = max(1, (size - 1) * stride + kernel - 2 * padding)
    return size
