"""Softmax attention, by the kernel that is quickest where it runs."""

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor


@torch.fx.wrap
@register_notrace_function
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, drop: float = 0.0, max_tokens: int = 1024) -> Tensor:
    """softmax(scale q k^T) v.

    PyTorch's fused kernels store no weights of attention, and on a GPU nothing is quicker. On a CPU in bfloat16 two
    plain products are, until the memory that the weights take has made up for it at about 3,000 tokens (docs/log.md).

    Args:
        q: queries, (B, heads, N, D).
        k: keys, (B, heads, N, D).
        v: values, (B, heads, N, D).
        scale: of the products.
        drop: probability that a weight is dropped.
        max_tokens: N up to which it is computed by products where these are quicker.

    Returns:
        (B, heads, N, D).
    """
    if q.is_cpu and q.dtype == torch.bfloat16 and q.shape[2] <= max_tokens:
        B, num_heads, N, D = q.shape
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)  # (B * heads, N, D)
        logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
        return torch.bmm(F.dropout(logits.softmax(dim=-1), drop), v).reshape(B, num_heads, N, D)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=drop, scale=scale)
