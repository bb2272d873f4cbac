"""Backbone blocks: plain, the CNN-inspired ones that the paper compares (section 3.2, table 6), and a local one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from t2t_vit.errors import UserError, closest
from t2t_vit.models.attention import SoftmaxAttention
from t2t_vit.models.splits import to_map, to_tokens


class Block(nn.Module):
    """Pre-norm transformer block: y = x + attention(norm(x)), z = y + mlp(norm(y)).

    With `growth_rate` it is DenseNet's layer: a linear layer maps z to the growth, which is concatenated to x.

    Args:
        dim: width of a token.
        attn, mlp: modules from (B, N, dim) to (B, N, dim); the mlp takes the grid too.
        drop_path: probability that an image skips a residual branch.
        growth_rate: channels added; 0 for a residual block.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp: nn.Module, *, drop_path: float, growth_rate: int = 0, **factory: Any
    ) -> None:
        super().__init__()
        self.out_dim = dim + growth_rate
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **factory)
        self.mlp = mlp
        self.dense_linear = nn.Linear(dim, growth_rate, **factory) if growth_rate else None

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens to tokens, (B, N, dim) to (B, N, out_dim).

        Args:
            x: the tokens.
            grid: height and width of the map that the last tokens are; only local blocks need it.
        """
        if not torch.jit.is_scripting() and self._skips_dropped(x):
            y = self._add_where_kept(x, self.norm1, self.attn)
            y = self._add_where_kept(y, self.norm2, partial(self.mlp, grid=grid))
        else:
            y = x + self.drop_path(self.attn(self.norm1(x)))
            y = y + self.drop_path(self.mlp(self.norm2(y), grid))
        if self.dense_linear is not None:
            return torch.cat((x, self.dense_linear(y)), dim=2)
        return y

    @torch.jit.unused
    def _skips_dropped(self, x: Tensor) -> bool:
        """Whether only images that keep a branch go through it: on a CPU, unless compiled or traced.

        On a GPU the host would have to wait to know how many they are; and a graph has fixed shapes.
        """
        traced = torch.jit.is_tracing() or not isinstance(x, Tensor)  # type: ignore[no-untyped-call]
        skips = self.training and isinstance(self.drop_path, DropPath) and not torch.compiler.is_compiling()
        return skips and not traced and x.is_cpu

    @torch.jit.unused
    def _add_where_kept(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """x + drop_path(branch(norm(x))), computed only for the images that keep the branch."""
        assert isinstance(self.drop_path, DropPath)
        keep_prob = 1 - self.drop_path.drop_prob
        kept = x.new_empty(x.shape[0]).bernoulli_(keep_prob).nonzero().squeeze(1)
        added = branch(norm(x.index_select(0, kept)))
        return x.index_add(0, kept, added.to(x.dtype), alpha=1 / (keep_prob or 1))


class Transition(nn.Module):
    """Between two dense stages: GELU(linear(x)) halves the width."""

    def __init__(self, dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.linear = nn.Linear(dim, out_dim, **factory)
        self.act = nn.GELU()

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens to tokens, (B, N, dim) to (B, N, out_dim)."""
        return self.act(self.linear(x))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that the mean over the tokens sets: x * sigmoid(W2 relu(W1 mean(x)))."""

    def __init__(self, dim: int, *, reduction: int = 16, **factory: Any) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(dim, dim // reduction, bias=False, **factory),
            nn.ReLU(),
            nn.Linear(dim // reduction, dim, bias=False, **factory),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens, (B, N, dim)."""
        return x * self.fc(x.mean(dim=1, keepdim=True))


class ChannelScale(nn.Module):
    """Ghost's cheap operation: a learned factor per channel (a depth-wise convolution of one token)."""

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, 1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in [-1, 1], as PyTorch initialises a depth-wise convolution of one tap."""
        nn.init.uniform_(self.weight, -1.0, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens, (B, N, dim)."""
        return x * self.weight.flatten().to(x.dtype)


class Attention(SoftmaxAttention):
    """Multi-head attention, with a squeeze-excitation gate over its projected output where one is wanted."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        squeeze_excite: bool = False,
        **factory: Any,
    ) -> None:
        super().__init__(num_heads, (dim // num_heads) ** -0.5, attn_drop)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, **factory)
        self.se_layer = SqueezeExcite(dim, **factory) if squeeze_excite else nn.Identity()
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens, (B, N, dim)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj_drop(self.se_layer(self.proj(self.attend(q, k, v))))


class GhostAttention(SoftmaxAttention):
    """Multi-head attention whose queries, keys and values are half linear, half a per-channel scale of that half."""

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool, attn_drop: float, proj_drop: float, **factory: Any
    ) -> None:
        super().__init__(num_heads, (dim // num_heads) ** -0.5, attn_drop)
        half = dim // 2
        self.q = nn.Linear(dim, half, bias=qkv_bias, **factory)
        self.k = nn.Linear(dim, half, bias=qkv_bias, **factory)
        self.v = nn.Linear(dim, half, bias=qkv_bias, **factory)
        self.cheap_operation_q = ChannelScale(half, **factory)
        self.cheap_operation_k = ChannelScale(half, **factory)
        self.cheap_operation_v = ChannelScale(half, **factory)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens, (B, N, dim)."""
        q, k, v = self.q(x), self.k(x), self.v(x)  # (B, N, dim / 2) each
        q = torch.cat((q, self.cheap_operation_q(q)), dim=2)
        k = torch.cat((k, self.cheap_operation_k(k)), dim=2)
        v = torch.cat((v, self.cheap_operation_v(v)), dim=2)
        return self.proj_drop(self.proj(self.attend(q, k, v)))


class ResidualDepthwiseConv(nn.Module):
    """x + dwconv(x), where dwconv has 3 x 3 taps for each channel of the map that the last tokens are, padded by zeros.

    The taps start as zeros, so that training starts at a network without them; x alone gives them gradients.
    """

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1, 3, 3, **factory))
        self.bias = nn.Parameter(torch.empty(dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens to tokens, (B, N, dim); those before the last h * w stay as they are."""
        h, w = grid
        before, x = torch.split(x, [x.shape[1] - h * w, h * w], dim=1)
        # one convolution with 1 added to the middle taps: no sum to compute, to round and to differentiate
        identity = F.pad(self.weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
        maps = F.conv2d(to_map(x, h, w), identity + self.weight, self.bias, padding=1, groups=self.weight.shape[0])
        return torch.cat((before, to_tokens(maps)), dim=1)


class Mlp(nn.Module):
    """fc2(GELU(h)) with h = fc1(x); a local one has h + dwconv(h) in the place of h.

    LocalViT (Li et al. 2021, arXiv 2104.05707), CeiT (Yuan et al. 2021, arXiv 2103.11816) and DHVT (Lu et al. 2022,
    arXiv 2210.05958) have a depth-wise convolution here too, the last beside a shortcut. Theirs are set in batch norms
    and further activations, of which there are none here; and their class token skips the linear layers as well.
    """

    def __init__(self, dim: int, hidden_dim: int, *, drop: float, is_local: bool = False, **factory: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, **factory)
        self.dwconv = ResidualDepthwiseConv(hidden_dim, **factory) if is_local else None
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim, **factory)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens to tokens, (B, N, dim)."""
        x = self.fc1(x)
        if self.dwconv is not None:
            assert grid is not None, "A local block needs the grid of its tokens: block(x, (h, w))."
            x = self.dwconv(x, grid)
        return self.drop(self.fc2(self.drop(self.act(x))))


class GhostMlp(nn.Module):
    """MLP whose hidden layer is a linear layer of width `dim` and two copies of it with a factor per channel."""

    def __init__(self, dim: int, *, drop: float, **factory: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim, **factory)
        self.act = nn.GELU()
        self.cheap_operation2 = ChannelScale(dim, **factory)
        self.cheap_operation3 = ChannelScale(dim, **factory)
        self.fc2 = nn.Linear(3 * dim, dim, **factory)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens to tokens, (B, N, dim)."""
        x = self.act(self.fc1(x))
        x = torch.cat((x, self.act(self.cheap_operation2(x)), self.act(self.cheap_operation3(x))), dim=2)
        return self.drop(self.fc2(self.drop(x)))


ATTENTIONS: dict[str, Callable[..., nn.Module]] = {
    "plain": Attention,
    "se": partial(Attention, squeeze_excite=True),
    "ghost": GhostAttention,
    "dense": Attention,
    "local": Attention,
}


def build_backbone(
    kind: str,
    dim: int,
    depth: int | Sequence[int],
    *,
    num_heads: int,
    mlp_ratio: float,
    growth_rate: int = 0,
    qkv_bias: bool = False,
    proj_drop: float = 0.0,
    attn_drop: float = 0.0,
    drop_path: float = 0.0,
    **factory: Any,
) -> nn.ModuleList:
    """The blocks of a backbone in order; `out_dim` of each is the width of its output.

    Args:
        kind: "plain", "se", "ghost", "dense" or "local".
        dim: width of the first block's tokens.
        depth: number of blocks; for "dense" a number for each stage, between which a transition halves the width.
        mlp_ratio: width of the hidden layer over the block's; "ghost" has 3.
        growth_rate: channels that a "dense" block adds.
        drop_path: stochastic depth of the last block, rising linearly from 0 at the first. (The official dense network
            raises it by stage, to a quarter of the given rate.)

    Raises:
        UserError: the kind is unknown, or cannot take the settings.
    """
    if kind not in ATTENTIONS:
        raise UserError(closest(kind, ATTENTIONS, "kind of block"))
    if (kind == "dense") != (growth_rate > 0):
        raise UserError(
            f"growth_rate must be positive for dense blocks and 0 for others, got {growth_rate} for {kind!r}."
        )
    if (kind == "dense") == isinstance(depth, int):
        raise UserError(
            f"depth is a list of stage depths for dense blocks and a number for others, got {depth} for {kind!r}."
        )
    if kind == "ghost" and mlp_ratio != 3:
        raise UserError(f"Ghost blocks have an MLP ratio of 3, got {mlp_ratio}.")
    stages = [depth] if isinstance(depth, int) else list(depth)
    rates = iter(calculate_drop_path_rates(drop_path, sum(stages)))

    blocks = nn.ModuleList()
    for stage, stage_depth in enumerate(stages):
        if stage > 0:
            blocks.append(Transition(dim, dim // 2, **factory))
            dim = dim // 2
        for _ in range(stage_depth):
            if dim % num_heads:
                raise UserError(f"The width {dim} is not a multiple of the number of heads, {num_heads}.")
            attn = ATTENTIONS[kind](
                dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, **factory
            )
            mlp: nn.Module
            if kind == "ghost":
                mlp = GhostMlp(dim, drop=proj_drop, **factory)
            else:
                mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, is_local=kind == "local", **factory)
            blocks.append(Block(dim, attn, mlp, drop_path=next(rates), growth_rate=growth_rate, **factory))
            dim += growth_rate
    return blocks
