"""Networks with their weights: made from a name, or from a checkpoint."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import timm
from timm.layers import to_2tuple
from timm.models._features import FeatureGetterNet
from torch import nn

from t2t_vit.errors import UserError, abbreviate
from t2t_vit.models.checkpoint_formats import OFFICIAL_CIFAR, Checkpoint, read_checkpoint
from t2t_vit.models.names import resolve_name
from t2t_vit.models.weights import arguments_of, identify, load_checkpoint

_logger = logging.getLogger(__name__)


def create_model(name: str, checkpoint: str | Path | None = None, **kwargs: Any) -> nn.Module:
    """Makes a network, with random, released or given weights.

    Args:
        name: a name of `list_models` or of timm, with or without timm's tag, or the published spelling (`T2t_vit_14`).
        checkpoint: a path, a run's folder or an http(s) URL of weights in any known format. The file gives the classes,
            input channels and image size that `kwargs` leave out; a warning says what was changed to fit `kwargs`.
        kwargs: arguments of `timm.create_model` and `T2TViT`, such as `pretrained`, `num_classes`, `img_size`.

    Returns:
        The network.

    Raises:
        UserError: the name is unknown, or the checkpoint does not fit.
    """
    if checkpoint is None:
        return _create(resolve_name(name), **kwargs)
    features_only, out_indices = kwargs.pop("features_only", False), kwargs.pop("out_indices", 3)
    network, read = load_model(checkpoint, model=name, **kwargs)
    if read.report is not None and read.report.changed:
        _logger.warning("%s", read.report)
    return FeatureGetterNet(network, out_indices=out_indices) if features_only else network


def load_model(
    path: str | Path, *, model: str | None = None, use_ema: bool = True, **kwargs: Any
) -> tuple[nn.Module, Checkpoint]:
    """Makes the network that a checkpoint is for, with its weights.

    Args:
        path: as for `read_checkpoint`.
        model: name of the network; None takes the one that the file names, or that its tensors fit.
        use_ema: take the exponential moving average of the weights if the file has one.
        kwargs: arguments of `create_model` that take precedence over the file's, unless they are None.

    Returns:
        The network, and the checkpoint with the `report` of the load.

    Raises:
        UserError: the file cannot be read, or fits no known network.
    """
    checkpoint = read_checkpoint(path, use_ema)
    name, *alike = names_of(checkpoint, model)
    arguments = arguments_of(checkpoint, name)
    if checkpoint.kind == OFFICIAL_CIFAR:
        tagged = f"{name}.cifar{arguments.get('num_classes')}"
        name = tagged if timm.is_model_pretrained(tagged) else name  # these files have their own mean, std and crop
    given = {key: value for key, value in kwargs.items() if value is not None}
    try:
        network = _create(name, **{**arguments, **given, "pretrained": False})
    except Exception as error:
        if given or not checkpoint.model_args:  # it is the caller's mistake, or ours
            raise
        raise UserError(
            f"The arguments of {name} in {checkpoint.path} make no network: {error}. The file is damaged."
        ) from error
    report = load_checkpoint(network, checkpoint)
    if alike:
        report.changed.append(
            f"model: taken for {name}, though {abbreviate(alike)} would fit too; name the model to choose"
        )
    return network, dataclasses.replace(checkpoint, report=report)


def settings_of(path: str | Path, *, model: str | None = None) -> dict[str, Any]:
    """The settings under which training goes on from a checkpoint.

    They are `model`, `img_size` where the file tells it, and `in_chans` where these are not the three of RGB.

    Args:
        path: a path or an http(s) URL in any format that `read_checkpoint` knows.
        model: name of the network; None takes the one that the file names, or that its tensors fit.

    Raises:
        UserError: when the file cannot be read, or no network is known that it fits.
    """
    checkpoint = read_checkpoint(path)
    name, *_ = names_of(checkpoint, model)
    arguments = arguments_of(checkpoint, name)
    in_chans, *size = (checkpoint.data_config or {}).get("input_size", (3,))
    settings: dict[str, Any] = {"model": name}
    if size := arguments.get("img_size") or size:
        height, width = to_2tuple(size)
        settings["img_size"] = height if height == width else (height, width)
    if (in_chans := arguments.get("in_chans", in_chans)) != 3:
        settings["in_chans"] = in_chans
    return settings


def names_of(checkpoint: Checkpoint, model: str | None) -> list[str]:
    """The network that a checkpoint is for: the one asked for or named in the file, else all that its tensors fit."""
    if name := model or checkpoint.model:
        return [resolve_name(name)]
    if names := identify(checkpoint.state_dict):
        return names
    raise UserError(
        f"{checkpoint.path} fits no network known here, and does not say which it is for: it holds "
        f"{abbreviate(list(checkpoint.state_dict))}. Name the model if it is one of timm's."
    )


def _create(name: str, *, img_size: int | tuple[int, int] | None = None, **kwargs: Any) -> nn.Module:
    if img_size is not None and timm.get_pretrained_cfg(name).fixed_input_size:
        kwargs["img_size"] = to_2tuple(img_size)
    return timm.create_model(name, **kwargs)
