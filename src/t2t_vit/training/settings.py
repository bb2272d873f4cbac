"""Settings that make no sense, and settings under which a run cannot go on."""

from typing import Any

from timm.optim import list_optimizers

from t2t_vit.errors import UserError, closest
from t2t_vit.training.checkpoints import plain
from t2t_vit.training.config import TrainConfig

HARMLESS = (
    "data", "data_dir", "output", "resume", "show", "workers", "cache", "checkpoint_every", "checkpoint_hist",
)  # fmt: skip
"""Settings that a run may change when it goes on; the data is compared by its images, not by its name."""


def refuse_wrong_settings(config: TrainConfig) -> None:
    """Tells every setting that makes no sense, before anything is opened.

    Raises:
        UserError: when there is one.
    """
    last_epoch = config.epochs - 1
    rules = {
        "epochs": (config.epochs >= 1, "at least 1"),
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "lr": (config.lr > 0, "positive"),
        "warmup_epochs": (0 <= config.warmup_epochs <= last_epoch, f"from 0 to {last_epoch}"),
        "cooldown_epochs": (
            0 <= config.cooldown_epochs <= last_epoch - config.warmup_epochs,
            f"from 0 to {last_epoch - config.warmup_epochs}",
        ),
        "smoothing": (0 <= config.smoothing < 1, "from 0 to 1"),
        "drop_path": (0 <= config.drop_path < 1, "from 0 to 1"),
        "model_ema_decay": (0 < config.model_ema_decay < 1, "between 0 and 1"),
        "workers": (config.workers is None or config.workers >= 0, "at least 0"),
        "grad_accum_steps": (config.grad_accum_steps >= 1, "at least 1"),
        "aug_repeats": (config.aug_repeats >= 1, "at least 1"),
        "checkpoint_every": (config.checkpoint_every >= 0, "at least 0"),
        "checkpoint_hist": (config.checkpoint_hist >= 1, "at least 1"),
        "distill_alpha": (0 < config.distill_alpha <= 1, "from 0 to 1"),
    }
    wrong = [
        f"{_flag(name)} must be {meaning}, got {getattr(config, name)}"
        for name, (holds, meaning) in rules.items()
        if not holds
    ]
    mixes = config.mixup > 0 or config.cutmix > 0
    by_depth, by_head = config.layer_decay is not None, config.backbone_lr_scale is not None
    idle = {
        "--teacher-checkpoint has no effect without --teacher": config.teacher_checkpoint and not config.teacher,
        "--mixup-off-epoch has nothing to end": config.mixup_off_epoch and not mixes,
        "--backbone-lr-scale has no effect beside --freeze-backbone": config.freeze_backbone and by_head,
        "--layer-decay has no effect beside --freeze-backbone": config.freeze_backbone and by_depth,
        "--layer-decay and --backbone-lr-scale exclude each other": by_depth and by_head,
    }
    wrong += [sentence for sentence, holds in idle.items() if holds]
    if config.opt not in list_optimizers():
        wrong.append(closest(config.opt, list_optimizers(), "optimiser").removesuffix("."))
    if wrong:
        raise UserError("; ".join(wrong) + ".")


def refuse_other_run(state: dict[str, Any], now: dict[str, Any]) -> None:
    """Compares what a run was started with and what it is to go on with.

    Args:
        state: the checkpoint.
        now: `config`, `class_names` and `split` of now.

    Raises:
        UserError: when they differ in anything that changes the result.
    """
    then, wanted = state["config"], plain(now["config"])
    pairs = {key: (then.get(key), wanted[key]) for key in wanted if key not in HARMLESS}
    pairs |= {key: (state[key], now[key]) for key in ("class_names", "split")}
    changed = [f"{key} was {old!r}, now {new!r}" for key, (old, new) in pairs.items() if old != new]
    if changed:
        raise UserError(
            f"The run cannot go on under other settings: {'; '.join(changed)}. "
            "Leave them as they were, or start another run with another --output."
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
