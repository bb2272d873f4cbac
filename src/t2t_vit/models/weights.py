"""Loads checkpoints into networks, reports what was changed, and refuses another network's file."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from t2t_vit.errors import UserError, abbreviate
from t2t_vit.models.checkpoint_formats import SQUARE_KINDS, Checkpoint, LoadReport, read_checkpoint, recognise
from t2t_vit.models.names import VARIANTS, variant_of
from t2t_vit.models.positions import resample_positions
from t2t_vit.models.t2t_vit import T2TViT

_logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

INPUT_LAYERS = (
    (
        "tokens_to_token.attention1.norm1.weight",
        "tokens_to_token.attention1.norm1.bias",
        "tokens_to_token.attention1.kqv.weight",
        "tokens_to_token.attention1.attn.qkv.weight",
    ),
    ("tokens_to_token.soft_split0.weight",),
    ("tokens_to_token.project.weight",),
)
"""Tensors whose shape depends on the input channels: of soft splits, of convolutions, of hard patches."""

QKV = "tokens_to_token.attention1.attn.qkv.weight"


def load_checkpoint(
    model: nn.Module, checkpoint: str | Path | Checkpoint, use_ema: bool = True, *, strict: bool = False
) -> LoadReport:
    """Loads weights into a network, fits them to it, and reports what was changed.

    The network keeps its own head if the file has another number of classes. Positions are resampled to the network's
    image size, and the first layer is adapted to its input channels.

    Args:
        model: the network.
        checkpoint: a path, a run's folder or an http(s) URL in any known format; or what `read_checkpoint` returned.
        use_ema: take the exponential moving average of the weights if the file has one.
        strict: refuse a file that does not fit as it is.

    Returns:
        The report, as text with `str`.

    Raises:
        UserError: the file cannot be read, or is another network's.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read_checkpoint(checkpoint, use_ema)
    state, changed = _fit(checkpoint, model)
    left = [key for key in checkpoint.state_dict if key not in model.state_dict()]
    if strict and changed + left:
        raise UserError(
            f"{checkpoint.path} does not fit {_name_of(model)} as it is, which strict=True asks for: "
            f"{abbreviate(changed + [f'{key}: left out' for key in left])}."
        )
    model.load_state_dict(state, strict=False)
    report = LoadReport(checkpoint.path, checkpoint.kind, len(state), changed, left, checkpoint.used_ema)
    _logger.info("%s", report)
    return report


def load_for_transfer_learning(
    model: nn.Module, checkpoint_path: str | Path, use_ema: bool = True, strict: bool = False, num_classes: int = 10
) -> LoadReport:
    """`load_checkpoint` under the article's name, with a check of the number of classes.

    Args:
        model: the network, made for the new classes.
        checkpoint_path, use_ema, strict: as for `load_checkpoint`.
        num_classes: the number of classes that the network must have.

    Raises:
        UserError: the network has another number of classes, or the file does not fit.
    """
    if num_classes != model.num_classes:
        raise UserError(
            f"num_classes={num_classes}, but the model has {model.num_classes} classes: "
            f"create it with num_classes={num_classes}, or pass num_classes={model.num_classes} here."
        )
    return load_checkpoint(model, checkpoint_path, use_ema, strict=strict)


def fit_state_dict(content: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's `pretrained_filter_fn`: the tensors of a loaded checkpoint of any format, in a network's shapes."""
    return _fit(recognise(content, "the pretrained file", True), model)[0]


def identify(state_dict: Mapping[str, Tensor]) -> list[str]:
    """The networks whose backbone a state dict fits, for any classes, image size and input channels, in table order."""
    width = state_dict["cls_token"].shape[-1:] if "cls_token" in state_dict else ()
    return [
        name
        for name, variant in VARIANTS.items()
        if width == (variant.model_args["embed_dim"],)  # spares building most of them
        and not _misfits(state_dict, _blueprint(name))
    ]


def _blueprint(name: str, **model_args: Any) -> T2TViT:
    """A network of the table on the meta device, for its shapes and its grid."""
    with torch.device("meta"):
        network = timm.create_model(name, **model_args)
    assert isinstance(network, T2TViT)
    return network


def arguments_of(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The arguments of `timm.create_model` that make a network of this name fit a checkpoint.

    The file may hold them. If it holds at most the number of classes, the shapes of its tensors tell the classes, the
    input channels and, for a square grid of tokens, the image size.
    """
    says = checkpoint.model_args if checkpoint.model is not None and _base(checkpoint.model) == _base(name) else {}
    if says.keys() - {"num_classes"} or variant_of(name) is None:
        return dict(says)
    state, blueprint = checkpoint.state_dict, _blueprint(name)
    own = blueprint.state_dict()
    arguments = {"num_classes": len(state["head.weight"]) if "head.weight" in state else 0}
    first = _input_keys(own)[0]
    if first in state and (in_chans := _input_channels(state[first].shape, own[first].shape, blueprint.in_chans)):
        arguments["in_chans"] = in_chans
    count = state["pos_embed"].shape[1] - 1 if "pos_embed" in state else 0
    side = math.isqrt(count)
    if count and side * side == count and count != math.prod(blueprint.grid_size):
        arguments["img_size"] = side * (blueprint.img_size[0] // blueprint.grid_size[0])
    return {**arguments, **says}


def _misfits(state: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """The reasons why weights cannot be those of a network's backbone, a phrase each."""
    heads = head_prefixes(model)
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(heads)}
    input_keys = _input_keys(own)
    misfits = []
    for key, tensor in own.items():
        if key not in state:
            misfits.append(f"{key} is missing")
            continue
        shape = state[key].shape
        fits = shape == tensor.shape
        if not fits and isinstance(model, T2TViT):
            fits = (key == "pos_embed" and len(shape) == 3 and shape[::2] == tensor.shape[::2]) or (
                key in input_keys and _input_channels(shape, tensor.shape, model.in_chans) > 0
            )
        if not fits:
            misfits.append(f"{key} is {tuple(shape)}, expected {tuple(tensor.shape)}")
    modules = {key.partition(".")[0] for key in own}
    strangers = [key for key in state if key not in own and not key.startswith(heads)]
    return misfits + [f"{key} has no place" for key in strangers if key.partition(".")[0] in modules]


def _input_keys(own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The tensors of a network that depend on its input channels."""
    return next((keys for keys in INPUT_LAYERS if keys[0] in own), ())


def _input_channels(shape: Shape, own: Shape, in_chans: int) -> int:
    """Input channels of a first-layer tensor in a file; 0 if it cannot be the same layer.

    Args:
        shape: shape in the file: (features,), (width, features) or (width, channels, kernel, kernel).
        own: shape in the network.
        in_chans: input channels of the network.
    """
    axis = min(1, len(own) - 1)
    taps = own[axis] // in_chans  # features of a soft split are channels x kernel x kernel
    same_layer = len(shape) == len(own) and shape[:axis] + shape[axis + 1 :] == own[:axis] + own[axis + 1 :]
    return shape[axis] // taps if same_layer and shape[axis] % taps == 0 else 0


def _fit(checkpoint: Checkpoint, model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint in a network's shapes, and a sentence for each change."""
    own = model.state_dict()
    state = {key: tensor for key, tensor in checkpoint.state_dict.items() if key in own}
    if misfits := _misfits(checkpoint.state_dict, model):
        raise UserError(_refusal(checkpoint, model, misfits, nothing=not state))

    changed = []
    name = _name_of(model)
    if checkpoint.model is not None and _base(checkpoint.model) != name and timm.is_model(name):
        changed.append(f"model: the file is for {checkpoint.model}, which {name} shares all shapes with")

    head = [key for key in own if key.startswith(head_prefixes(model))]
    if not all(key in state and state[key].shape == own[key].shape for key in head):
        given = next((f"has {len(state[key])}" for key in head if key in state), "has no head")
        changed.append(f"head: rebuilt for {len(own[head[0]])} classes, the file {given}")
        state = {key: tensor for key, tensor in state.items() if key not in head}

    if not isinstance(model, T2TViT):
        return state, changed
    inputs = [key for key in _input_keys(own) if key in state and state[key].shape != own[key].shape]
    if inputs:
        old_chans = _input_channels(state[inputs[0]].shape, own[inputs[0]].shape, model.in_chans)
        changed.append(f"input channels: adapted from {old_chans} to {model.in_chans}")
        state.update({key: _adapt_input(key, state[key], old_chans, model.in_chans) for key in inputs})

    old_grid = _grid_of(checkpoint, model.grid_size)
    if old_grid != model.grid_size:
        changed.append(f"positions: resampled from {_by(old_grid)} to {_by(model.grid_size)} tokens")
        state["pos_embed"] = resample_positions(state["pos_embed"], old_grid, model.grid_size)
    return state, changed


def _adapt_input(key: str, weight: Tensor, old_chans: int, in_chans: int) -> Tensor:
    """A first-layer tensor for other input channels, by timm's rule.

    Filters are summed for one channel, else repeated and scaled to keep the sum; the norm's scale and shift are
    averaged or repeated. A grey image in one channel then gives the same output as in three.
    """
    filters = weight.reshape(1 if weight.ndim == 1 else len(weight), old_chans, -1, 1)  # (width, channels, taps, 1)
    adapted = adapt_input_conv(in_chans, filters, base_chans=old_chans)
    if weight.ndim == 1:
        return adapted.flatten() * (in_chans / old_chans)
    adapted = adapted.reshape(len(weight), -1, *weight.shape[2:])
    if key == QKV:  # attention's scale is features ** -0.5, so queries make up for the other number of features
        queries, keys, values = adapted.chunk(3)
        adapted = torch.cat((queries * (in_chans / old_chans) ** 0.5, keys, values))
    return adapted


def _grid_of(checkpoint: Checkpoint, own_grid: tuple[int, int]) -> tuple[int, int]:
    """The grid (h, w) of a checkpoint's positions, by its metadata; else the network's, if as large; else square."""
    count = checkpoint.state_dict["pos_embed"].shape[1] - 1
    if checkpoint.kind not in SQUARE_KINDS:
        if checkpoint.model is not None and variant_of(checkpoint.model):
            grid = _blueprint(checkpoint.model, **checkpoint.model_args).grid_size
            if math.prod(grid) == count:
                return grid
        if math.prod(own_grid) == count:  # weights of this very network, saved bare, come back as they were
            return own_grid
    side = math.isqrt(count)
    if side * side == count:
        return side, side
    raise UserError(
        f"{checkpoint.path} has {count} positions, which make no square grid, and does not say how they lie; the "
        f"model's grid is {_by(own_grid)}. Give the model the image size that the file was made for "
        "(img_size=(height, width)), load, then change it with set_input_size."
    )


def _refusal(checkpoint: Checkpoint, model: nn.Module, misfits: list[str], *, nothing: bool) -> str:
    """A sentence that says why a checkpoint is not the network's."""
    expected, names = _name_of(model), identify(checkpoint.state_dict)
    if checkpoint.model is not None and (not names or _base(checkpoint.model) in names):
        names = [checkpoint.model]
    if expected in names:
        looks = f"this file is a {expected} too, but of other dimensions"
    elif names:
        looks = f"this file is a {' or '.join(names)}"
    else:
        looks = f"this file is no network known here: it holds {abbreviate(list(checkpoint.state_dict))}"
    why = "nothing in it matches" if nothing else f"{len(misfits)} tensors do not fit: {abbreviate(misfits)}"
    return f"{checkpoint.path} does not fit: expected a {expected}, {looks}; {why}."


def _name_of(model: nn.Module) -> str:
    """The registered name of a network, or its class's."""
    return getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """How the names of the tensors begin that depend on the number of classes, as timm's configuration says it."""
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def head_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that depend on the number of classes; a network may have several heads."""
    return {parameter for name, parameter in model.named_parameters() if name.startswith(head_prefixes(model))}


def _base(name: str) -> str:
    """A network's name without timm's tag."""
    return name.partition(".")[0]


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]}"
