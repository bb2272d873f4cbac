"""How far the performer's attention under half-precision autocast is from float32, from tiny features to huge ones.

    python benchmarks/half_precision.py

For each magnitude of q, k and v: whether anything is NaN or infinite, and the largest error of the output and of the
gradients of q, k and v, in units of what the type can resolve: its epsilon times the largest value in float32, and no
less than its smallest number. The naive column is the definition written down plainly under the same autocast.
"""

import math

import torch
from torch import Tensor

from t2t_vit.models.mixers import performer_attention

MAGNITUDES = (1e-6, 1e-4, 1e-2, 1.0, 3.0, 10.0, 1e2, 1e3)


def performer(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Ours, without the linear layer behind it."""
    return performer_attention(q, k, v, w, torch.eye(v.shape[-1]), torch.zeros(v.shape[-1]))


def naive_attention(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """FAVOR+ by its definition, in whatever precision autocast chooses."""
    phi_q, phi_k = (((x @ w.T) - x.square().sum(-1, keepdim=True) / 2).exp() / math.sqrt(len(w)) for x in (q, k))
    return phi_q @ (phi_k.transpose(1, 2) @ v) / (phi_q @ phi_k.sum(1, keepdim=True).transpose(1, 2) + 1e-8)


def run(attend, tensors: list[Tensor], w: Tensor, upstream: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Output and gradients."""
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = attend(*inputs, w)
    output.backward(upstream.to(output.dtype))
    return [output.detach().float(), *(tensor.grad.float() for tensor in inputs)]


def main() -> None:
    """Prints the table."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 196, 64, generator=generator)
    upstream = torch.randn(4, 196, 64, generator=generator)
    w = torch.nn.init.orthogonal_(torch.empty(32, 64), generator=generator) * math.sqrt(32)
    print(f"{'type':9} {'magnitude':>9}  {'finite':6} {'output':>11} {'gradients':>14}   naive is finite")
    for dtype in (torch.float16, torch.bfloat16):
        for magnitude in MAGNITUDES:
            half = [(x * magnitude).to(dtype) for x in noise]
            # float32 sees the rounded values, so that only what is computed from them may differ
            exact = run(performer, [x.float() for x in half], w, upstream.to(dtype), None)
            ours = run(performer, half, w, upstream, dtype)
            naive = run(naive_attention, half, w, upstream, dtype)
            info = torch.finfo(dtype)
            errors = [
                float((x - y).abs().max() / (info.eps * (y.abs().max() + info.smallest_normal)))
                for x, y in zip(ours, exact, strict=True)
            ]
            finite, naive_finite = (all(bool(x.isfinite().all()) for x in each) for each in (ours, naive))
            print(
                f"{str(dtype)[6:]:9} {magnitude:9.0e}  {'yes' if finite else 'NO':6} {errors[0]:11.2f} "
                f"{max(errors[1:]):14.2f}   {'yes' if naive_finite else 'no'}"
            )


if __name__ == "__main__":
    main()
