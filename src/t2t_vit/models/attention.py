"""Softmax attention, by the fastest kernel for the device and the precision."""

from typing import Final

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, use_fused_attn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUERIES_AT_A_TIME = 512
MAX_STORED_TOKENS = 4096
"""The most tokens whose attention weights are kept for the backward pass."""


@torch.fx.wrap
@register_notrace_function
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, drop: float = 0.0) -> Tensor:
    """softmax(scale q k^T) v.

    PyTorch's fused kernels store no attention weights. On a CPU in bfloat16 two plain matrix products are faster
    (docs/log.md); they take a part of the queries at a time. Up to MAX_STORED_TOKENS tokens they keep the attention
    weights for the backward pass; above, the backward pass computes the weights again, so that memory stays linear in
    the tokens.

    Args:
        q, k, v: (B, heads, N, D), as is the result.
        scale: factor of the products q k^T.
        drop: probability that an attention weight is dropped.
    """
    if torch.jit.is_scripting():
        return F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=scale)
    if q.is_cpu and torch.is_autocast_enabled("cpu") and q.dtype != torch.float64:  # like the fused kernel
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if not (q.is_cpu and q.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=scale)
    shape = q.shape
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (B * heads, N, D)
    parts = torch.split(q, QUERIES_AT_A_TIME, dim=1)
    if shape[2] <= MAX_STORED_TOKENS:
        mixed = [_products(part, k, v, scale, drop) for part in parts]
    else:
        mixed = [checkpoint(_products, part, k, v, scale, drop, use_reentrant=False) for part in parts]
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)).reshape(shape)


def _products(q: Tensor, k: Tensor, v: Tensor, scale: float, drop: float) -> Tensor:
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(F.dropout(logits.softmax(dim=-1), drop), v)


class SoftmaxAttention(nn.Module):
    """What every softmax attention here has in common; the linear layers around it are its subclasses'.

    Attributes:
        fused_attn: timm's switch. Where it is off, the weights pass through `attn_drop`, where a hook finds them, and
            are the node `softmax` of a traced network: both of this module, as `timm.utils.AttentionExtract` looks for
            them.
    """

    fused_attn: Final[bool]

    def __init__(self, num_heads: int, scale: float, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = scale
        self.fused_attn = use_fused_attn()
        self.attn_drop = nn.Dropout(attn_drop)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mixes values over tokens: three of (B, N, C) to one."""
        B, N, C = q.shape
        heads = (B, N, self.num_heads, C // self.num_heads)
        q, k, v = (q.reshape(heads), k.reshape(heads), v.reshape(heads))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, N, C / heads)
        if self.fused_attn:
            x = attention(q, k, v, scale=self.scale, drop=self.attn_drop.p if self.training else 0.0)
        else:
            attn = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
            x = self.attn_drop(attn) @ v
        return x.transpose(1, 2).reshape(B, N, C)
