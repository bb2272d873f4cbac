"""Muon in another precision than bfloat16."""

import contextlib
import functools
from collections.abc import Iterator

import timm.optim.muon
import torch


@contextlib.contextmanager
def float32_iterations() -> Iterator[None]:
    """Inside, timm's Muon and AdaMuon make updates orthogonal in float32; by themselves they know bfloat16 alone.

    A CPU without instructions for bfloat16 takes 30 times as long for such products (docs/log.md).
    """
    iterate = timm.optim.muon.zeropower_via_newtonschulz
    timm.optim.muon.zeropower_via_newtonschulz = functools.partial(iterate, dtype=torch.float32)
    try:
        yield
    finally:
        timm.optim.muon.zeropower_via_newtonschulz = iterate
