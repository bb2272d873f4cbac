"""The table of networks as plain data, and the spellings of their names. Importing it does not import torch."""

import dataclasses
import difflib
import re
from typing import Any

from t2t_vit.errors import UserError, closest

SHIPPED = {"formulas": "formulas.safetensors"}
"""Weights of our own, by the name that stands for their path, to the file beside this one."""
RELEASES = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"


@dataclasses.dataclass(frozen=True)
class Weights:
    """One file of weights that the authors released.

    Attributes:
        tag: timm's tag, which follows the model's name and a dot.
        file: name of the file in the official releases.
        top1_percent: published accuracy on the data set that the weights were trained for.
        cfg: entries of timm's pretrained configuration that differ from ImageNet's at 224 pixels.
    """

    tag: str
    file: str
    top1_percent: float
    cfg: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network of the table.

    Attributes:
        model_args: the arguments of `T2TViT` that define the structure.
        weights: the released files, the default first.
        top1_percent: published ImageNet-1k top-1 at 224 pixels, None if there is none.
        input_size: height and width in pixels.
    """

    model_args: dict[str, Any]
    weights: tuple[Weights, ...] = ()
    top1_percent: float | None = None
    input_size: tuple[int, int] = (224, 224)


def _variant(
    embed_dim: int,
    depth: int | tuple[int, ...],
    num_heads: int,
    mlp_ratio: float,
    top1_percent: float | None = None,
    *weights: Weights,
    input_size: tuple[int, int] = (224, 224),
    **model_args: Any,
) -> Variant:
    args = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio, **model_args}
    return Variant(args, weights, top1_percent, input_size)


def _cifar(tag: str, file: str, top1_percent: float) -> Weights:
    """The official transfer code normalises CIFAR with these figures and does not crop."""
    cfg = {
        "num_classes": int(tag.removeprefix("cifar")),
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    return Weights(tag, file, top1_percent, cfg)


_AT_384 = {"input_size": (3, 384, 384)}
SPLITS_32PX = ((3, 1, 1), (3, 2, 1), (3, 2, 1))
"""For 32-pixel images: 32 -> 32 -> 16 -> 8, where the paper's splits would leave 2 x 2 tokens."""
SPLITS_64PX = ((5, 2, 2), (3, 2, 1), (3, 2, 1))
"""For 64-pixel images: 64 -> 32 -> 16 -> 8, where the paper's splits would leave 4 x 4 tokens."""

# fmt: off
VARIANTS: dict[str, Variant] = {
    "t2t_vit_7": _variant(256, 7, 4, 2.0, 71.7, Weights("in1k", "71.7_T2T_ViT_7.pth.tar", 71.676)),
    "t2t_vit_10": _variant(256, 10, 4, 2.0, 75.2, Weights("in1k", "75.2_T2T_ViT_10.pth.tar", 75.150)),
    "t2t_vit_12": _variant(256, 12, 4, 2.0, 76.5, Weights("in1k", "76.5_T2T_ViT_12.pth.tar", 76.480)),
    "t2t_vit_14": _variant(
        384, 14, 6, 3.0, 81.5,
        Weights("in1k", "81.5_T2T_ViT_14.pth.tar", 81.500),
        Weights("in1k_384", "83.3_T2T_ViT_14.pth.tar", 83.3, _AT_384),
        _cifar("cifar10", "cifar10_t2t-vit_14_98.3.pth", 98.3),
        _cifar("cifar100", "cirfar100_t2t-vit-14_88.4.pth", 88.4),  # the release's own spelling
    ),
    "t2t_vit_19": _variant(
        448, 19, 7, 3.0, 81.9,
        Weights("in1k", "81.9_T2T_ViT_19.pth.tar", 81.932),
        _cifar("cifar10", "cifar10_t2t-vit_19_98.4.pth", 98.4),
        _cifar("cifar100", "cifar100_t2t-vit-19_89.0.pth", 89.0),
    ),
    "t2t_vit_24": _variant(
        512, 24, 8, 3.0, 82.3,
        Weights("in1k", "82.3_T2T_ViT_24.pth.tar", 82.276),
        Weights("token_labelling_in1k", "84.2_T2T_ViT_24.pth.tar", 84.2),
    ),
    "t2t_vit_t_14": _variant(
        384, 14, 6, 3.0, 81.7, Weights("in1k", "81.7_T2T_ViTt_14.pth.tar", 81.688), tokens="transformer"
    ),
    "t2t_vit_t_19": _variant(
        448, 19, 7, 3.0, 82.4, Weights("in1k", "82.4_T2T_ViTt_19.pth.tar", 82.442), tokens="transformer"
    ),
    "t2t_vit_t_24": _variant(
        512, 24, 8, 3.0, 82.6, Weights("in1k", "82.6_T2T_ViTt_24.pth.tar", 82.554), tokens="transformer"
    ),
    # The paper's comparisons of structures (table 6) and of tokens (table 7); no weights were released.
    "t2t_vit_14_resnext": _variant(384, 14, 32, 3.0, 81.5),
    "t2t_vit_14_wide": _variant(768, 4, 12, 3.0, 77.9),
    "t2t_vit_14_se": _variant(384, 14, 6, 3.0, 81.6, block="se"),
    "t2t_vit_16_ghost": _variant(384, 16, 6, 3.0, 79.5, block="ghost"),
    "t2t_vit_dense": _variant(128, (3, 6, 6, 4), 8, 2.0, 80.6, block="dense", growth_rate=64),
    "t2t_vit_14_conv": _variant(384, 14, 6, 3.0, 80.8, tokens="convolution"),
    # No T2T: hard 16 x 16 patches before the same backbone.
    "t2t_vit_7_no_t2t": _variant(256, 7, 4, 2.0, tokens="patch"),
    "t2t_vit_14_no_t2t": _variant(384, 14, 6, 3.0, 79.5, tokens="patch"),
    # Small images keep 8 x 8 tokens.
    "t2t_vit_7_32px": _variant(256, 7, 4, 2.0, splits=SPLITS_32PX, input_size=(32, 32)),
    "t2t_vit_7_64px": _variant(256, 7, 4, 2.0, splits=SPLITS_64PX, input_size=(64, 64)),
    # Not of the paper: a depth-wise convolution in the MLPs, for training from scratch on few images.
    "t2t_vit_7_local": _variant(256, 7, 4, 2.0, block="local"),
    "t2t_vit_14_local": _variant(384, 14, 6, 3.0, block="local"),
    "t2t_vit_7_32px_local": _variant(256, 7, 4, 2.0, splits=SPLITS_32PX, input_size=(32, 32), block="local"),
    "t2t_vit_7_64px_local": _variant(256, 7, 4, 2.0, splits=SPLITS_64PX, input_size=(64, 64), block="local"),
}
# fmt: on


def list_models() -> list[str]:
    """The names of this package's networks, in table order."""
    return list(VARIANTS)


def variant_of(name: str) -> Variant | None:
    """The table's row for a registered name, with or without timm's tag; None for a network of timm."""
    return VARIANTS.get(name.partition(".")[0])


def released_url(name: str) -> str | None:
    """Where the released weights of a network lie; None for one of timm's, which finds its own.

    Args:
        name: a registered name; without timm's tag it means the first file of the table.

    Raises:
        UserError: when no weights were released, with the networks that have some.
    """
    variant, tag = variant_of(name), name.partition(".")[2]
    if variant is None:
        import timm  # here, for the same reason as in `resolve_name`

        if timm.is_model_pretrained(name):
            return None
        near = difflib.get_close_matches(name, {name.partition(".")[0] for name in timm.list_pretrained()}, n=5)
        others = f" It has some of {', '.join(near)}." if near else ""
        raise UserError(f"timm has no weights of {name}.{others}")
    for weights in variant.weights:
        if weights.tag == (tag or weights.tag):
            return RELEASES + weights.file
    known = ", ".join(name for name, variant in VARIANTS.items() if variant.weights)
    raise UserError(f"No weights of {name} were released. There are some of {known}.")


def resolve_name(name: str) -> str:
    """The registered spelling of a network's name.

    Args:
        name: a network of this package, with or without timm's tag, in the registered or the published spelling
            (`T2t_vit_14`, `T2T-ViT-14`, `T2T-ViT_t-14`); or any name of timm's.

    Raises:
        UserError: the name is unknown; the message has the closest known ones.
    """
    arch, dot, tag = name.partition(".")
    ours = plain_spelling(arch)
    if ours in VARIANTS:
        known = [f"{ours}.{weights.tag}" for weights in VARIANTS[ours].weights]
        if dot and f"{ours}.{tag}" not in known:
            raise UserError(closest(name, known or [ours], "weights"))
        return ours + dot + tag

    import timm  # here, because it imports torch, which this package's own names do not need

    if timm.is_model(arch):
        if tag and name not in (known := timm.list_pretrained(f"{arch}.*")):
            raise UserError(closest(name, known, "weights"))
        return name
    # timm has over a thousand names: they are suggested only where one of them is surely meant.
    near = difflib.get_close_matches(arch, timm.list_models(), n=3, cutoff=0.8)
    if near and not set(near) & set(VARIANTS):
        raise UserError(closest(arch, near, "model"))
    raise UserError(closest(ours, VARIANTS, "model"))


def plain_spelling(arch: str) -> str:
    """A published name in lower case with underscores, without a tag: t2t_vit_t_14 for T2T-ViT_t-14."""
    return re.sub(r"[^a-z0-9]+", "_", arch.lower())
