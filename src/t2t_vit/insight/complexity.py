"""The cost of networks: parameters, multiply-accumulates by part, activations."""

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from t2t_vit.errors import UserError
from t2t_vit.insight.config import ModelsConfig
from t2t_vit.insight.published import COMPARED, NOT_PUBLISHED, Published
from t2t_vit.models.factory import create_model
from t2t_vit.models.mixers import PerformerMixer
from t2t_vit.models.names import list_models, resolve_name, variant_of
from t2t_vit.runtime.console import new_table, print_table
from t2t_vit.runtime.files import write_csv

FROZEN_TABLES = ("pos_embed", "w")
"""Buffers that stand for weights: the sinusoid table, and the performer's random features."""
BATCHED_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)
"""The operators of attention's products; those of linear layers have one matrix for all images."""
PART_OF_MODULE = {"tokens_to_token": "t2t", "mlp": "mlp"}
"""The modules that are counted apart, by their names here and in timm."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one image costs a network in evaluation.

    Attributes:
        macs: multiply-accumulates, with attention's products: the sum of the following four.
        t2t_macs: of the module that makes tokens, `tokens_to_token`; 0 in other networks.
        attention_macs: of the backbone's products q k^T and softmax(q k^T) v.
        mlp_macs: of the modules of the backbone that are called `mlp`, as in timm.
        other_macs: of everything else: projections around attention, convolutions, the head.
        activations: how many numbers convolutions and matrix products put out, as fvcore and timm count them.
    """

    macs: int
    t2t_macs: int
    attention_macs: int
    mlp_macs: int
    other_macs: int
    activations: int


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
        cost: the parts of `macs`, and the activations; None where these are not counted but published.
        published: what was published of it.
        differs: a sentence for each published figure that the counted one is not, at the model's own image size.
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
    cost: Cost | None = None
    published: Published = NOT_PUBLISHED
    differs: str = ""

    @property
    def note(self) -> str:
        """What must be known to read the row."""
        source = f"Published figures: {self.published.source}." if self.published.is_of_others else ""
        return " ".join(filter(None, (source, self.published.note, self.differs)))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """The number of a network's trained parameters, and that of all its parameters and FROZEN_TABLES."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() for name, buffer in model.named_buffers() if name.rpartition(".")[2] in FROZEN_TABLES)
    return trainable, parameters + tables


def count_macs(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-accumulates of one image of (C, H, W), as `count_cost` counts them."""
    return count_cost(model, input_size).macs


def count_cost(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """What one image of (C, H, W) costs in evaluation.

    A copy of the network runs on the meta device. Attention runs there as two plain matrix products, since PyTorch
    before 2.15 counts nothing for fused attention. A performer's output projection counts once for each token, as in
    the paper, though it is computed once for each random feature; and its denominator counts, which is no operator that
    PyTorch has a formula for.
    """
    model = copy.deepcopy(model).to("meta").eval()
    image = torch.empty(1, *input_size, device="meta", dtype=next(model.parameters()).dtype)
    counter = CostCounter()

    def count_the_rest(mixer: PerformerMixer, inputs: tuple[Tensor], tokens: Tensor) -> None:
        (num_features, dim), num_tokens = mixer.w.shape, tokens.shape[1]
        counter.macs[counter.part] += (num_tokens - num_features) * dim * dim + num_tokens * num_features

    for path, module in model.named_modules():
        *parents, name = path.split(".")
        if isinstance(module, PerformerMixer):
            module.register_forward_hook(count_the_rest)
        if name in PART_OF_MODULE and not PART_OF_MODULE.keys() & {*parents}:
            module.register_forward_pre_hook(partial(counter.enter, PART_OF_MODULE[name]))
            module.register_forward_hook(partial(counter.enter, "other"))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(image)
    parts = {f"{part}_macs": counter.macs[part] for part in ("t2t", "attention", "mlp", "other")}
    return Cost(macs=counter.macs.total(), **parts, activations=counter.activations)


class CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the operators that PyTorch has a formula for cost: convolutions and matrix products.

    Attributes:
        part: the part of the network that is running.
        macs: multiply-accumulates by part.
        activations: how many numbers the operators have put out.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.part = "other"
        self.macs: Counter[str] = Counter()
        self.activations = 0

    def enter(self, part: str, *inputs_and_outputs: Any) -> None:
        """Counts for this part from now on."""
        self.part = part

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs an operator, and counts it."""
        operator, kwargs = func.overloadpacket, kwargs or {}
        output = func(*args, **kwargs)
        if operator in flop_registry:
            part = "attention" if self.part == "other" and operator in BATCHED_PRODUCTS else self.part
            self.macs[part] += flop_registry[operator](*args, **kwargs, out_val=output) // 2
            self.activations += output.numel()
        return output


def describe(name: str, img_size: int | tuple[int, int] | None = None) -> Complexity:
    """The row of a model of this package, of timm or of COMPARED, counted without allocating its weights.

    Args:
        name: of COMPARED, or any spelling that `resolve_name` knows.
        img_size: side, or (H, W), in pixels; None takes the model's own. What is only published has its own.

    Raises:
        UserError: the name is unknown, or the model cannot take the size.
    """
    name = known_name(name)
    published = COMPARED.get(name, NOT_PUBLISHED)
    if not published.library:
        return _published_row(name, published)
    input_size = input_size_of(name, img_size)
    height, width = input_size[1:]
    try:
        with torch.device("meta"):
            model = build(name, img_size)
        cost = count_cost(model, input_size)
    except UserError:
        raise
    except Exception as error:
        if img_size is None:
            raise
        raise UserError(f"{name} cannot take images of {height} x {width} pixels: {error}") from error
    parameters = count_parameters(model)[1]
    return Complexity(
        model=name,
        **_structure(name, model),
        img_size=(height, width),
        parameters=parameters,
        macs=cost.macs,
        top1_percent=_published_top1(name),
        cost=cost,
        published=published,
        differs=published.differs_from(parameters, cost.macs) if (height, width) == own_size(name) else "",
    )


def known_name(name: str) -> str:
    """A name of COMPARED as it is, and the registered spelling of any other network's; a `UserError` if unknown."""
    return name if name in COMPARED else resolve_name(name)


def build(name: str, img_size: int | tuple[int, int] | None = None) -> nn.Module:
    """A network with random weights, of the library that COMPARED names; others are of this package or of timm."""
    if COMPARED.get(name, NOT_PUBLISHED).library == "torchvision":
        return torchvision.models.get_model(name)  # these take images of any size
    return create_model(name, img_size=img_size)


def own_size(name: str) -> tuple[int, int]:
    """The height and width in pixels of the images that a network is made for, and its published figures refer to."""
    published = COMPARED.get(name, NOT_PUBLISHED)
    if published.library != "timm":
        return published.img_size
    _, height, width = timm.get_pretrained_cfg(name).input_size
    return height, width


def input_size_of(name: str, img_size: int | tuple[int, int] | None = None) -> tuple[int, int, int]:
    """The (C, H, W) of a model's images, at this size or the model's own."""
    in_chans = timm.get_pretrained_cfg(name).input_size[0] if timm.is_model(name) else 3
    height, width = own_size(name) if img_size is None else to_2tuple(img_size)
    return in_chans, height, width


def models(config: ModelsConfig) -> None:
    """`t2t-vit models`: prints the table of models, and writes it as CSV if asked."""
    names = dict.fromkeys([*list_models(), *map(known_name, config.names)])
    rows = [describe(name, config.img_size) for name in names]
    if config.csv:
        write_csv(Path(config.csv), [_record(row) for row in rows])
    if config.json:
        print(json.dumps([_record(row) for row in rows], indent=2))
    else:
        print_complexity(rows, {**STRUCTURE, **SIZE, **TOP1})


def _record(row: Complexity) -> dict[str, Any]:
    """The columns of the short table: structure and size."""
    return {key: value for key, value in dataclasses.asdict(row).items() if key not in ("cost", "published", "differs")}


Columns = Mapping[str, Callable[[Complexity], str]]
"""Headings of a table, and what stands below them."""
LEGEND = "Top-1: in percent, as published for the model's own image size. One MAC is two FLOPs."


def print_complexity(rows: Iterable[Complexity], columns: Columns) -> None:
    """Prints rows as a table for people, the model's name first; columns of STRUCTURE come next."""
    table = new_table("Model", *columns, num_words=2 if "Tokens" in columns else 1)
    for row in rows:
        table.add_row(row.model, *(text(row) for text in columns.values()))
    print_table(table)
    print(LEGEND)


def _pixels(row: Complexity) -> str:
    height, width = row.img_size
    return str(height) if height == width else f"{height}x{width}"


def _width(row: Complexity) -> str:
    return str(row.embed_dim or "") + (f"-{row.num_features}" if row.num_features != row.embed_dim else "")


def _billions(part: str) -> Callable[[Complexity], str]:
    return lambda row: f"{getattr(row.cost, part) / 1e9:.3f}" if row.cost and getattr(row.cost, part) else ""


STRUCTURE: Columns = {
    "Tokens": lambda row: row.tokens or "",
    "Width": _width,
    "Depth": lambda row: str(row.depth or ""),
    "Heads": lambda row: str(row.num_heads or ""),
}
SIZE: Columns = {
    "Pixels": _pixels,
    "Params M": lambda row: f"{row.parameters / 1e6:.2f}",
    "GMACs": lambda row: f"{row.macs / 1e9:.3f}",
}
PARTS: Columns = {
    "T2T": _billions("t2t_macs"),
    "Attention": _billions("attention_macs"),
    "MLPs": _billions("mlp_macs"),
    "Other": _billions("other_macs"),
    "Activations M": lambda row: f"{row.cost.activations / 1e6:.2f}" if row.cost else "",
}
TOP1: Columns = {"Top-1": lambda row: f"{row.top1_percent:.1f}" if row.top1_percent is not None else ""}


def _published_row(name: str, published: Published) -> Complexity:
    """The row of a network that no library has, with the published figures in the place of the counted ones."""
    assert published.params_m is not None
    assert published.gmacs is not None
    unknown: dict[str, Any] = dict.fromkeys(STRUCTURE_FIELDS)
    return Complexity(
        model=name,
        **unknown,
        img_size=published.img_size,
        parameters=round(published.params_m * 1e6),
        macs=round(published.gmacs * 1e9),
        top1_percent=published.top1_percent,
        published=published,
    )


STRUCTURE_FIELDS = ("tokens", "embed_dim", "num_features", "depth", "num_heads")


def _structure(name: str, model: nn.Module) -> dict[str, Any]:
    variant, blocks = variant_of(name), getattr(model, "blocks", None)
    args = variant.model_args if variant else {}
    embed_dim = args.get("embed_dim", getattr(model, "embed_dim", None))
    if not isinstance(embed_dim, int) or not blocks:  # a network of stages
        return dict.fromkeys(STRUCTURE_FIELDS)
    return {
        "tokens": args.get("tokens", "performer") if variant else None,
        "embed_dim": embed_dim,
        "num_features": model.num_features,
        "depth": len(getattr(model, "taps", blocks)),  # of ours, transitions between dense stages do not count
        "num_heads": args.get("num_heads", getattr(getattr(blocks[0], "attn", None), "num_heads", None)),
    }


def _published_top1(name: str) -> float | None:
    variant, tag = variant_of(name), name.partition(".")[2]
    if variant is None:
        return COMPARED[name].top1_percent if name in COMPARED else None
    if not tag:
        return variant.top1_percent
    return next(weights.top1_percent for weights in variant.weights if weights.tag == tag)
