"""Milliseconds of two ways to compute the same layer: as the paper writes it, and as the networks here compute it.

    python benchmarks/kernels.py [--threads 1] [--rounds 9]

Soft splits of T2T-ViT-14 at 224 pixels, 8 images: unfold, norm and linear as the paper has them, beside the convolution
with the patches' variances. Attention of one block: PyTorch's fused kernel beside two products. Milliseconds of the
processor, not of the clock, so that what else runs on the machine matters little; medians over rounds in which both take
turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_vit.models.attention import attention
from t2t_vit.models.splits import linear_over_patches, norm_linear_over_patches
from t2t_vit.runtime.memory import keep_freed_memory

BATCH = 8
SPLITS = {  # channels, side of the map, split, width of the linear, whether a norm stands before it
    "first split, 224 px": (3, 224, (7, 4, 2), 192, True),
    "second split, 56 px": (64, 56, (3, 2, 1), 192, True),
    "third split, 28 px": (64, 28, (3, 2, 1), 384, False),
}
TOKENS = {50: 8, 197: 8, 577: 2, 1025: 1, 3136: 1}  # and how many images


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(f"{'ms':34} {'forward':>20} {'forward and backward':>28}")
    for dtype in (torch.float32, torch.bfloat16):
        for name, case in SPLITS.items():
            compare(f"{name}, {str(dtype)[6:]}", soft_splits(dtype, *case), options.rounds)
        for num_tokens, batch in TOKENS.items():
            compare(f"{num_tokens} tokens, {str(dtype)[6:]}", attentions(dtype, num_tokens, batch), options.rounds)


def soft_splits(
    dtype: torch.dtype, chans: int, side: int, split: tuple[int, int, int], dim: int, has_norm: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A map, and the two ways to compute the layers over its patches."""
    width = chans * split[0] ** 2
    norm, linear = nn.LayerNorm(width), nn.Linear(width, dim)
    kernel, stride, padding = split
    x = torch.randn(BATCH, chans, side, side)
    if chans > 3:  # tokens lie channels last, images do not
        x = x.contiguous(memory_format=torch.channels_last)

    def plainly(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            patches = F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2)
            return linear(norm(patches) if has_norm else patches)

    def convolved(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            if not has_norm:
                return linear_over_patches(x, linear.weight, linear.bias, split)
            parameters = norm.weight, norm.bias, norm.eps, linear.weight, linear.bias
            return norm_linear_over_patches(x, *parameters, split, side == 224)

    return x.requires_grad_(side != 224), plainly, convolved


def attentions(
    dtype: torch.dtype, num_tokens: int, batch: int
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Queries, keys and values of 6 heads of 64, and attention by the two kernels."""

    def products(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        return (scale * q @ k.transpose(-2, -1)).softmax(dim=-1) @ v

    def of_heads(attend: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def run(qkv: Tensor) -> Tensor:
            q, k, v = qkv.reshape(batch, num_tokens, 3, 6, 64).permute(2, 0, 3, 1, 4)
            return attend(q, k, v, scale=0.125).transpose(1, 2).reshape(batch, num_tokens, -1)

        return run

    qkv = torch.randn(batch, num_tokens, 3 * 6 * 64, dtype=dtype, requires_grad=True)
    second = attention if dtype == torch.bfloat16 else products  # in float32 the fused kernel is ours
    return qkv, of_heads(F.scaled_dot_product_attention), of_heads(second)


def compare(
    name: str, case: tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], rounds: int
) -> None:
    """Prints one row: each way's milliseconds, and how many times quicker the second is."""
    x, *ways = case
    upstream = torch.randn_like(ways[0](x))

    def forward(way: Callable[[Tensor], Tensor]) -> None:
        with torch.inference_mode():
            way(x)

    def both(way: Callable[[Tensor], Tensor]) -> None:
        way(x).backward(upstream)

    cells = []
    for do in (forward, both):
        taken: list[list[float]] = [[], []]
        for number in range(rounds + 1):
            for way, times in zip(ways, taken, strict=True):
                began = time.process_time()
                do(way)
                if number > 0:  # the first warms up
                    times.append(1000 * (time.process_time() - began))
        first, second = map(statistics.median, taken)
        cells.append(f"{first:8.2f} {second:8.2f}  x {first / second:4.2f}")
    print(f"{name:34} {cells[0]:>24} {cells[1]:>24}", flush=True)


if __name__ == "__main__":
    main()
