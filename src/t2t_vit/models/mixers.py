"""Token transformers: each makes a soft split of a map and mixes its tokens.

A single head reduces a patch to a narrow token. As the width changes, the skip connection starts from the values:
y = v + proj(attention(q, k, v)), then z = y + mlp(norm(y)). `splits` computes the norm and the projection to q, k and v
without unfolding the patches.
"""

import math
from typing import Any

import torch
from timm.layers import Mlp, register_notrace_function
from torch import Tensor, nn

from t2t_vit.models.attention import SoftmaxAttention
from t2t_vit.models.splits import Split, norm_linear_over_patches, without_autocast


@torch.fx.wrap
@register_notrace_function
def performer_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor, out: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention approximated by positive random features, in time linear in the tokens (Performers, FAVOR+).

    phi(x) = exp(w x - |x|^2 / 2) / sqrt(m)
    y_i = phi(q_i) . (sum_j phi(k_j) v_j^T) out^T / (phi(q_i) . sum_j phi(k_j) + eps) + bias

    It always runs in float32: in half precision exp overflows, or eps rounds to zero, and the official code yields NaN.
    And it is stabilised: one maximum per token is subtracted from the exponents of q, one per image from those of k.
    Numerator and denominator then both shrink by exp(-max_q - max_k), and eps is scaled by it too. (A maximum per token
    of k would change the result.) The value does not depend on the maxima, so no gradient flows through them.

    Args:
        q, k, v: (B, N, D).
        w: random features, (m, D).
        out: weight of a linear layer over the result, (E, D), multiplied with m rows here instead of N.
        bias: bias of that layer, (E,).

    Returns:
        (B, N, E) in the type of `v`.
    """
    if torch.jit.is_scripting():  # TorchScript cannot switch autocast off, but autocast leaves float64 alone
        return _performer_attention(q, k, v, w, out, bias, torch.float64)
    with without_autocast(v):
        return _performer_attention(q, k, v, w, out, bias, torch.promote_types(v.dtype, torch.float32))


def _performer_attention(
    q: Tensor, k: Tensor, v: Tensor, w: Tensor, out: Tensor, bias: Tensor, exact: torch.dtype
) -> Tensor:
    given = v.dtype
    q, k, v, w, out, bias = q.to(exact), k.to(exact), v.to(exact), w.to(exact), out.to(exact), bias.to(exact)
    phi_q, phi_k, total = _features(q, k, w)
    context = phi_k.transpose(1, 2) @ v @ out.t()  # (B, m, E)
    return (phi_q @ context / total).add_(bias).to(given)


def performer_features(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The features whose products are the attention of `performer_attention`: A = phi_q phi_k^T / total.

    A, (B, N, N), takes memory quadratic in the tokens; A r of a vector r takes two thin products.

    Args:
        q, k, w: those of `performer_attention`.

    Returns:
        phi_q, phi_k and total, (B, N, m), (B, N, m) and (B, N, 1), in float32 or wider.
    """
    exact = torch.promote_types(q.dtype, torch.float32)
    with without_autocast(q):
        return _features(q.to(exact), k.to(exact), w.to(exact))


def _features(q: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_q, log_k = _log_features(q, w), _log_features(k, w)  # (B, N, m)
    max_q = log_q.detach().amax(dim=-1, keepdim=True)  # (B, N, 1)
    max_k = log_k.detach().amax(dim=(1, 2), keepdim=True)  # (B, 1, 1)
    phi_q = log_q.sub_(max_q).exp_()
    phi_k = log_k.sub_(max_k).exp_()
    total = torch.linalg.vecdot(phi_q, phi_k.sum(dim=1, keepdim=True)).unsqueeze(-1)  # (B, N, 1)
    # eps is the official code's, times the factor m that both sums lack. Beyond e^60 the quotient is zero in float32
    # either way; below e^-60 the true denominator is zero for any sane w, and a floor keeps its gradient finite.
    scaled_eps = (math.log(1e-8 * w.shape[0]) - max_q - max_k).clamp(-60.0, 60.0).exp()
    return phi_q, phi_k, total + scaled_eps


def _log_features(x: Tensor, w: Tensor) -> Tensor:
    """w x - |x|^2 / 2, (B, N, m)."""
    return torch.baddbmm(x.square().sum(dim=-1, keepdim=True), x, w.t().expand(x.shape[0], -1, -1), beta=-0.5)


class PerformerMixer(nn.Module):
    """Token transformer with performer attention: the T2T module of T2T-ViT-7 to -24 (section 3.1, appendix).

    Args:
        in_chans: channels of the map.
        dim: width of the resulting tokens.
        split: kernel, stride and padding of the soft split.
        of_pixels: whether the map is an image.
        drop: dropout after the projection and the MLP, 0.1 in the official code.
    """

    def __init__(
        self, in_chans: int, dim: int, split: Split, *, of_pixels: bool = False, drop: float = 0.1, **factory: Any
    ) -> None:
        super().__init__()
        in_dim = in_chans * split[0] ** 2
        self.split = split
        self.of_pixels = of_pixels
        self.norm1 = nn.LayerNorm(in_dim, **factory)
        self.eps = self.norm1.eps  # TorchScript does not see the norm's
        self.kqv = nn.Linear(in_dim, 3 * dim, **factory)
        self.proj = nn.Linear(dim, dim, **factory)
        self.drop = nn.Dropout(drop)
        self.norm2 = nn.LayerNorm(dim, **factory)
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim, **factory), nn.GELU(), nn.Linear(dim, dim, **factory), nn.Dropout(drop)
        )
        self.w: Tensor
        self.register_buffer("w", torch.empty(dim // 2, dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new random features: orthogonal rows of norm sqrt(m)."""
        if self.w.is_meta:  # a network built for its shapes must not use up random numbers
            return
        num_features, dim = self.w.shape
        w = torch.empty(num_features, dim, device="cpu", dtype=torch.float32)  # QR exists in no half precision
        self.w.copy_(nn.init.orthogonal_(w) * math.sqrt(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Splits a map (B, in_chans, H, W) and mixes its tokens, (B, N, dim)."""
        norm, kqv = self.norm1, self.kqv
        x = norm_linear_over_patches(
            x, norm.weight, norm.bias, self.eps, kqv.weight, kqv.bias, self.split, self.of_pixels
        )
        k, q, v = x.chunk(3, dim=-1)
        x = v + self.drop(self.attend(q, k, v))
        return x + self.mlp(self.norm2(x))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mixes values over tokens and projects them: three of (B, N, dim) to one."""
        return performer_attention(q, k, v, self.w, self.proj.weight, self.proj.bias)


class SingleHeadAttention(SoftmaxAttention):
    """softmax(q k^T / sqrt(in_dim)) v with one head, and the skip connection over v.

    in_dim is the input's width (147 and 576), not the head's: the released weights of T2T-ViT_t need that.
    """

    def __init__(self, in_dim: int, dim: int, **factory: Any) -> None:
        super().__init__(num_heads=1, scale=in_dim**-0.5)
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False, **factory)
        self.proj = nn.Linear(dim, dim, **factory)

    def forward(self, qkv: Tensor) -> Tensor:
        """Attends with given queries, keys and values: (B, N, 3 * dim) to (B, N, dim)."""
        q, k, v = qkv.chunk(3, dim=-1)  # (B, N, dim) each
        return v + self.proj(self.attend(q, k, v))


class TransformerMixer(nn.Module):
    """Token transformer with softmax attention: the T2T module of T2T-ViT_t-14 to -24.

    Args: those of `PerformerMixer`; `drop` is the MLP's dropout, 0 in the official code.
    """

    def __init__(
        self, in_chans: int, dim: int, split: Split, *, of_pixels: bool = False, drop: float = 0.0, **factory: Any
    ) -> None:
        super().__init__()
        in_dim = in_chans * split[0] ** 2
        self.split = split
        self.of_pixels = of_pixels
        self.norm1 = nn.LayerNorm(in_dim, **factory)
        self.eps = self.norm1.eps  # TorchScript does not see the norm's
        self.attn = SingleHeadAttention(in_dim, dim, **factory)
        self.norm2 = nn.LayerNorm(dim, **factory)
        self.mlp = Mlp(dim, drop=drop, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Splits a map (B, in_chans, H, W) and mixes its tokens, (B, N, dim)."""
        norm, qkv = self.norm1, self.attn.qkv
        x = norm_linear_over_patches(
            x, norm.weight, norm.bias, self.eps, qkv.weight, qkv.bias, self.split, self.of_pixels
        )
        x = self.attn(x)
        return x + self.mlp(self.norm2(x))
