"""The cost of networks: parameters and multiply-accumulates."""

import copy
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2t_vit.errors import UserError
from t2t_vit.insight.config import ModelsConfig
from t2t_vit.models.factory import create_model
from t2t_vit.models.mixers import PerformerMixer
from t2t_vit.models.names import list_models, resolve_name, variant_of
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv

FROZEN_TABLES = ("pos_embed", "w")
"""Buffers that stand for weights: the sinusoid table, and the performer's random features."""


@dataclasses.dataclass(frozen=True)
class Complexity:
    """A network's row in the table. None stands for what the network does not have or nobody published.

    Attributes:
        tokens: kind of T2T module.
        embed_dim: width of the first block.
        num_features: width of the last block.
        img_size: height and width in pixels that `macs` refers to.
        parameters: number of parameters, with frozen tables.
        macs: multiply-accumulates of one image, with attention's products.
        top1_percent: published accuracy at the model's own image size.
    """

    model: str
    tokens: str | None
    embed_dim: int | None
    num_features: int | None
    depth: int | None
    num_heads: int | None
    img_size: tuple[int, int]
    parameters: int
    macs: int
    top1_percent: float | None


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of a network's trained parameters, and that of all its parameters and FROZEN_TABLES."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() for name, buffer in model.named_buffers() if name.rpartition(".")[2] in FROZEN_TABLES)
    return trainable, parameters + tables


def count_macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-accumulates of one image of (C, H, W) in evaluation, with attention's products.

    A copy of the network runs on the meta device. Attention runs there as two plain matrix products, since PyTorch
    before 2.15 counts nothing for fused attention. A performer's output projection counts once for each token, as in
    the paper, though it is computed once for each random feature.
    """
    model = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, *input_size, device="meta", dtype=next(model.parameters()).dtype)
    saved = 0

    def count_saved(mixer: PerformerMixer, inputs: tuple[Tensor], tokens: Tensor) -> None:
        nonlocal saved
        num_features, dim = mixer.w.shape
        saved += (tokens.shape[1] - num_features) * dim * dim

    for module in model.modules():
        if isinstance(module, PerformerMixer):
            module.register_forward_hook(count_saved)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2 + saved


def describe(name: str, img_size: int | tuple[int, int] | None = None) -> Complexity:
    """The row of a model of this package or of timm, counted without allocating its weights.

    Args:
        name: any spelling that `resolve_name` knows.
        img_size: side, or (H, W), in pixels; None takes the model's own.

    Raises:
        UserError: the name is unknown, or the model cannot take the size.
    """
    name = resolve_name(name)
    input_size = input_size_of(name, img_size)
    height, width = input_size[1:]
    try:
        with torch.device("meta"):
            model = create_model(name, img_size=img_size)
        macs = count_macs(model, input_size)
    except UserError:
        raise
    except Exception as error:
        if img_size is None:
            raise
        raise UserError(f"{name} cannot take images of {height} x {width} pixels: {error}") from error
    return Complexity(
        model=name,
        **_structure(name, model),
        img_size=(height, width),
        parameters=count_parameters(model)[1],
        macs=macs,
        top1_percent=_published_top1(name),
    )


def input_size_of(name: str, img_size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
    """The (C, H, W) of a model's images, at this size or the model's own."""
    in_chans, *own_size = timm.get_pretrained_cfg(name).input_size
    height, width = own_size if img_size is None else (img_size, img_size) if isinstance(img_size, int) else img_size
    return in_chans, height, width


def models(config: ModelsConfig) -> None:
    """`t2t-vit models`: prints the table of models, and writes it as CSV if asked."""
    names = dict.fromkeys([*list_models(), *map(resolve_name, config.names)])
    rows = [describe(name, config.img_size) for name in names]
    if config.csv:
        write_csv(Path(config.csv), rows)
    if config.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        print_complexity(rows)


def print_complexity(rows: Iterable[Complexity]) -> None:
    """Prints rows as a table for people."""
    table = new_table("Model", "Tokens", "Width", "Depth", "Heads", "Pixels", "Params M", "GMACs", "Top-1", num_words=2)
    for row in rows:
        height, width = row.img_size
        table.add_row(
            row.model,
            row.tokens,
            str(row.embed_dim or "") + (f"-{row.num_features}" if row.num_features != row.embed_dim else ""),
            str(row.depth or ""),
            str(row.num_heads or ""),
            str(height) if height == width else f"{height}x{width}",
            f"{row.parameters / 1e6:.2f}",
            f"{row.macs / 1e9:.3f}",
            f"{row.top1_percent:.1f}" if row.top1_percent is not None else "",
        )
    print_table(table)
    print("Top-1: in percent, as published for the model's own image size. One MAC is two FLOPs.")


def _structure(name: str, model: nn.Module) -> dict[str, Any]:
    variant, blocks = variant_of(name), getattr(model, "blocks", None)
    args = variant.model_args if variant else {}
    embed_dim = args.get("embed_dim", getattr(model, "embed_dim", None))
    if not isinstance(embed_dim, int) or not blocks:  # a network of stages
        return dict.fromkeys(("tokens", "embed_dim", "num_features", "depth", "num_heads"))
    return {
        "tokens": args.get("tokens", "performer") if variant else None,
        "embed_dim": embed_dim,
        "num_features": model.num_features,
        "depth": len(getattr(model, "taps", blocks)),  # of ours, transitions between dense stages do not count
        "num_heads": args.get("num_heads", getattr(getattr(blocks[0], "attn", None), "num_heads", None)),
    }


def _published_top1(name: str) -> float | None:
    variant, tag = variant_of(name), name.partition(".")[2]
    if variant is None or not tag:
        return variant.top1_percent if variant else None
    return next(weights.top1_percent for weights in variant.weights if weights.tag == tag)
