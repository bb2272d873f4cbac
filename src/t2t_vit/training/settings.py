"""Settings that make no sense, and settings under which a run cannot go on."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

from t2t_vit.errors import UserError, closest
from t2t_vit.models.names import resolve_name
from t2t_vit.runtime.files import plain
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.recipes import recipe_for

HARMLESS = (
    "data_dir", "output", "resume", "show", "workers", "cache", "checkpoint_every", "checkpoint_hist", "log_to",
)  # fmt: skip
"""Settings that a run may change when it goes on."""
INDIRECT = {"model": ("model",), "data": ("class_names", "split"), "amp": ("precision",), "amp_dtype": ("precision",)}
"""What is compared instead of a setting: what it came to."""


def refuse_wrong_settings(config: TrainConfig) -> None:
    """Tells every setting that makes no sense, before anything is opened.

    Raises:
        UserError: when there is one, or the model or the recipe is unknown.
    """
    for name in (config.model, config.teacher):
        if name is not None:
            resolve_name(name)
    wrong = [
        f"{_flag(name)} must be {meaning}, got {_in_words(value)}"
        for name, meaning, holds in _rules(config)
        if (value := getattr(config, name)) is not None and not holds(value)
    ]
    wanted = chosen(config)
    wrong += [f"{_flag(name)} has no effect {why}" for name, why, idle in _idle(config) if idle and name in wanted]
    if config.layer_decay is not None and config.backbone_lr_scale is not None:
        wrong.append("--layer-decay and --backbone-lr-scale exclude each other")
    wrong += _unusable_optimiser(config)
    if wrong:
        raise UserError("; ".join(wrong) + ".")


def _rules(config: TrainConfig) -> Iterator[tuple[str, str, Callable[[Any], bool]]]:
    """Settings, what they must be, and whether a value is that. None leaves a setting open and is always right."""
    last_epoch = max(config.epochs - 1, 0)
    most_cooldown = max(last_epoch - config.warmup_epochs, 0)
    up_to_lr = f"from 0 to --lr {config.lr:g}"
    last_warmup_lr = config.lr if config.warmup_epochs else math.inf
    at_least_0, at_least_1 = ("at least 0", lambda value: value >= 0), ("at least 1", lambda value: value >= 1)
    positive = "positive", lambda value: value > 0
    share, part = ("from 0 to 1", lambda value: 0 <= value <= 1), ("from 0 to below 1", lambda value: 0 <= value < 1)
    some_share = "above 0, at most 1", lambda value: 0 < value <= 1
    inside = "between 0 and 1", lambda value: 0 < value < 1
    pair = "two positive numbers, the smaller one first", lambda value: 0 < value[0] <= value[1]
    for names, rule in {
        "epochs batch_size grad_accum_steps aug_repeats checkpoint_hist": at_least_1,
        "workers checkpoint_every mixup cutmix mixup_off_epoch weight_decay color_jitter seed": at_least_0,
        "lr clip_grad distill_temperature": positive,
        "hflip vflip reprob mixup_switch_prob": share,
        "smoothing drop drop_path momentum crop_padding": part,
        "layer_decay backbone_lr_scale crop_pct distill_alpha": some_share,
        "model_ema_decay val_fraction": inside,
        "scale ratio": pair,
        "img_size": ("at least 1", lambda value: min(to_2tuple(value)) >= 1),
        "min_lr": (up_to_lr, lambda value: 0 <= value <= config.lr),
        "warmup_lr": (up_to_lr, lambda value: 0 <= value <= last_warmup_lr),
        "warmup_epochs": (f"from 0 to {last_epoch}", lambda value: 0 <= value <= last_epoch),
        "cooldown_epochs": (f"from 0 to {most_cooldown}", lambda value: 0 <= value <= most_cooldown),
    }.items():
        for name in names.split():
            yield name, *rule


def _idle(config: TrainConfig) -> Iterator[tuple[str, str, bool]]:
    """Settings, beside what they have no effect, and whether that is so."""
    mixes, both = config.mixup > 0 or config.cutmix > 0, config.mixup > 0 and config.cutmix > 0
    has_momentum = config.opt not in list_optimizers() or get_optimizer_info(config.opt).has_momentum
    for names, why, idle in (
        ("teacher_checkpoint distill_alpha distill_temperature", "without --teacher", config.teacher is None),
        ("model_ema_decay model_ema_warmup", "beside --no-model-ema", not config.model_ema),
        ("mixup_off_epoch", "without --mixup or --cutmix", not mixes),
        ("mixup_off_epoch", f"in {config.epochs} epochs", config.mixup_off_epoch >= config.epochs),
        ("mixup_switch_prob", "unless --mixup and --cutmix are both given", not both),
        ("scale ratio", "beside --crop-padding", config.crop_padding is not None),
        ("color_jitter", f"beside --aa {config.aa}", "3a" not in (config.aa or "3a")),
        ("momentum", f"on --opt {config.opt}", not has_momentum),
        ("layer_decay backbone_lr_scale", "beside --freeze-backbone", config.freeze_backbone),
        ("amp_dtype", "beside --no-amp", config.amp is False),
        ("warmup_lr", "without --warmup-epochs", config.warmup_epochs == 0),
    ):
        for name in names.split():
            yield name, why, idle


def chosen(config: TrainConfig) -> set[str]:
    """The settings that are neither left open nor the default's or the recipe's: a person wants their effect."""
    values = vars(config)
    recipe = recipe_for(config.recipe, given=values)
    return {
        field.name
        for field in dataclasses.fields(config)
        if values[field.name] not in (None, field.default, recipe.get(field.name, field.default))
    }


def _unusable_optimiser(config: TrainConfig) -> list[str]:
    if config.opt not in list_optimizers():
        return [closest(config.opt, list_optimizers(), "optimiser").removesuffix(".")]
    if get_optimizer_info(config.opt).second_order:
        return [f"--opt {config.opt} wants second derivatives, which this loop does not compute: choose another one"]
    try:
        momentum = {} if config.momentum is None else {"momentum": config.momentum}
        create_optimizer_v2([torch.nn.Parameter(torch.zeros(1, 1))], opt=config.opt, lr=1e-3, **momentum)
    except Exception as error:  # each of the libraries behind them has its own way to be missing
        return [f"--opt {config.opt} cannot be used here: {error}".removesuffix(".")]
    return []


def refuse_other_run(state: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares what a run was started with and what it is to go on with.

    Args:
        state: the checkpoint.
        now: the same entries of one that would be written now.

    Raises:
        UserError: when they differ in anything that changes the result.
    """
    then, wanted = state["config"], plain(now["config"])
    pairs = {key: (state[key], now[key]) for keys in INDIRECT.values() for key in keys}
    pairs |= {key: (then.get(key), wanted[key]) for key in wanted if key not in HARMLESS and key not in INDIRECT}
    changed = [f"{key} was {old!r}, now {new!r}" for key, (old, new) in pairs.items() if old != new]
    if changed:
        raise UserError(
            f"The run cannot go on under other settings: {'; '.join(changed)}. Leave them as they were "
            "(--amp and --no-amp set the precision), or start another run with another --output."
        )


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
