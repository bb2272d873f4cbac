"""Refuses settings that only torch and timm can judge, and settings that would change a resumed run."""

from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

from t2t_vit.data.pixels import PixelFormat
from t2t_vit.errors import UserError, abbreviate, closest
from t2t_vit.models.names import SHIPPED, released_url, resolve_name
from t2t_vit.options import in_words
from t2t_vit.runtime.files import plain
from t2t_vit.training.config import TrainConfig, run_directory

HARMLESS = (
    "data_dir", "device", "output", "resume", "show", "workers", "cache", "checkpoint_every", "checkpoint_hist",
    "log_to",
)  # fmt: skip
"""Settings that may change when a run is resumed."""
AFTER_TRAINING = ("refit_head", "start_share")
"""Settings that may change until the head is fitted anew."""
INDIRECT = {
    "model": ("model",),
    "data": ("class_names", "split"),
    "exclude": ("split",),
    "amp": ("precision",),
    "amp_dtype": ("precision",),
}
"""Maps a setting to the entries of a checkpoint that follow from it and are compared instead."""


def refuse_unavailable(config: TrainConfig) -> None:
    """Refuses models, weights, colours, optimisers and augmentation policies that do not exist, before all else.

    Raises:
        UserError: when there is one.
    """
    for name in (config.model, config.teacher):
        if name is not None:
            resolve_name(name)
    if config.pretrained and config.model is not None:
        released_url(resolve_name(config.model))
    PixelFormat(config.in_chans, config.background)
    if problems := [*_optimiser_problems(config), *_policy_problems(config.aa)]:
        raise UserError(" ".join(problems))


def _optimiser_problems(config: TrainConfig) -> list[str]:
    if config.opt not in list_optimizers():
        return [closest(config.opt, list_optimizers(), "optimiser")]
    if get_optimizer_info(config.opt).second_order:
        return [f"--opt {config.opt} wants second derivatives, which this loop does not compute: choose another one."]
    if "momentum" in config.changed and not get_optimizer_info(config.opt).has_momentum:
        return [f"--momentum has no effect on --opt {config.opt}."]
    try:
        momentum = {} if config.momentum is None else {"momentum": config.momentum}
        create_optimizer_v2([torch.nn.Parameter(torch.zeros(1, 1))], opt=config.opt, lr=1e-3, **momentum)
    except Exception as error:  # each of the libraries behind them has its own way to be missing
        return [f"--opt {config.opt} cannot be used here: {str(error).rstrip('.')}."]
    return []


def _policy_problems(policy: str | None) -> list[str]:
    try:
        create_transform(224, is_training=True, auto_augment=policy)
    except (AssertionError, ValueError):  # timm's ways to refuse it
        known = "rand-m9-mstd0.5-inc1 and the like, original, v0, augmix-m3 or 3a"
        return [f"--aa must be a policy of timm's: {known}, got {policy}."]
    return []


def absolute_checkpoint(checkpoint: str | None) -> str | None:
    """The same weights from any working directory; what is no path of a file stays."""
    if checkpoint is None or checkpoint in SHIPPED:
        return checkpoint
    path = Path(checkpoint).expanduser().absolute()
    return str(path) if path.exists() else checkpoint


def refuse_other_run(state: dict[str, Any], now: dict[str, Any], *, is_fitted: bool = False) -> None:
    """Raises `UserError` if a run would be resumed under conditions that change its result.

    Args:
        state: the run's checkpoint.
        now: the entries of a checkpoint that would be written now.
        is_fitted: whether the head of its best weights is fitted anew already.
    """
    harmless = HARMLESS if is_fitted else HARMLESS + AFTER_TRAINING
    then, wanted = state["config"], plain(now["config"])
    pairs = {key: (state[key], now[key]) for keys in INDIRECT.values() for key in keys}
    then = {**then, "checkpoint": absolute_checkpoint(then.get("checkpoint"))}  # older runs have what was typed
    pairs |= {key: (then.get(key), wanted[key]) for key in wanted if key not in harmless and key not in INDIRECT}
    changed = [_difference(key, old, new) for key, (old, new) in pairs.items() if old != new]
    if not changed:
        return
    advice = "(--amp and --no-amp set the precision), or start another run with another --output."
    if any((then[key] or 0) < (wanted[key] or 0) for key in ("epochs", "steps")):
        best = f"{run_directory(wanted['data'], wanted['model'], wanted['output'])}/best.pt"
        advice = f"or train on in a new run: --checkpoint {best}, with another --output."
    raise UserError(
        f"The run cannot go on under other settings: {'; '.join(changed)}. Leave them as they were {advice}"
    )


def _difference(key: str, old: Any, new: Any) -> str:
    if key == "split":
        counts = [f"{part['num_train']} + {part['num_val']}" for part in (s.get("labels", s) for s in (old, new))]
        return f"the data has other images: {counts[0]} then, {counts[1]} now"
    if key == "class_names":
        return f"the data has other classes: {abbreviate(old)} then, {abbreviate(new)} now"
    return f"{key} was {in_words(old)}, now {in_words(new)}"
