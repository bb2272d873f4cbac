"""Builds timm's network, task, optimiser, schedule and mixup from a run's settings."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import Mixup
from timm.layers import to_2tuple
from timm.models import get_model_input_config, resolve_model_input_args
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.task import ClassificationTask, LogitDistillationTask
from timm.task.task import TrainingTask
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from t2t_vit.data.sources import other_classes
from t2t_vit.errors import UserError
from t2t_vit.models.checkpoint_formats import LoadReport, read_checkpoint
from t2t_vit.models.factory import create_model, load_model
from t2t_vit.models.names import released_url, variant_of
from t2t_vit.models.weights import head_parameters, head_prefixes, load_checkpoint
from t2t_vit.runtime.machine import Machine
from t2t_vit.training.config import TrainConfig


def build_network(
    config: TrainConfig, name: str, *, class_names: Sequence[str], goes_on: bool = False
) -> tuple[nn.Module, dict[str, Any], LoadReport | None]:
    """The network to train.

    Args:
        name: the network's registered name.
        class_names: the classes of its head.
        goes_on: whether the run will restore its own weights, so that none are loaded here.

    Returns:
        The network, its arguments that differ from the registered ones, and the report on its checkpoint.

    Raises:
        UserError: the image size or the checkpoint does not fit.
    """
    channels = {} if config.in_chans == 3 else {"in_chans": config.in_chans}
    size = {"img_size": config.img_size and to_2tuple(config.img_size)}
    resolved = resolve_model_input_args(name, size, num_classes=len(class_names))
    model_args = {key: resolved[key] for key in ("num_classes", "img_size") if key in resolved} | channels
    is_timms, pretrained = variant_of(name) is None, config.pretrained and not goes_on
    model = _create(config, name, pretrained=pretrained and is_timms, **model_args)
    if config.img_size and is_timms:
        _refuse_size(model, name, to_2tuple(config.img_size))
    report = None
    if pretrained and is_timms:
        report = _report_of_timm(model)
    elif not goes_on and (path := released_url(name) if pretrained else config.checkpoint):
        report = _start_from(path, model, class_names)
    if config.freeze_backbone:
        head = head_parameters(model)
        for parameter in model.parameters():
            parameter.requires_grad_(parameter in head)
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
    return model, model_args, report


def _create(config: TrainConfig, name: str, *, pretrained: bool, **model_args: Any) -> Any:
    """The network, with timm's weights of it where they are wanted."""
    arguments = {**model_args, "drop_rate": config.drop, "drop_path_rate": config.drop_path}
    try:
        try:
            return create_model(name, pretrained=pretrained, **arguments)
        except TypeError as error:  # some networks of timm have no branches to drop
            if "drop_path_rate" not in str(error):
                raise
            if "drop_path" in config.changed:
                raise UserError(f"--drop-path has no effect on {name}: leave it out.") from error
        del arguments["drop_path_rate"]
        return create_model(name, pretrained=pretrained, **arguments)
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise UserError(f"The released weights of {name} could not be had: {error}") from error


def _report_of_timm(model: Any) -> LoadReport:
    """What timm does without a word when it loads its own weights."""
    cfg = model.pretrained_cfg
    changed = []
    if model.num_classes != cfg["num_classes"]:
        changed.append(f"head: rebuilt for {model.num_classes} classes, the file has {cfg['num_classes']}")
    name = f"{cfg['architecture']}.{cfg['tag']}"
    return LoadReport(name, "weights of timm", len(model.state_dict()), changed, left=[], used_ema=False)


def _refuse_size(model: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Tries a network on one blank image."""
    in_chans = get_model_input_config(model)["input_size"][0]
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, in_chans, *size))
    except (RuntimeError, AssertionError) as error:
        pixels, reason = f"{size[0]} x {size[1]} pixels", str(error).rstrip(".")
        raise UserError(f"{name} cannot take images of {pixels}: {reason}. Choose another --img-size.") from error
    model.train()


def _start_from(path: str, model: Any, class_names: Sequence[str]) -> LoadReport:
    """Loads weights; the network keeps its own head if the file's classes have other names."""
    checkpoint = read_checkpoint(path)
    report = load_checkpoint(model, checkpoint)
    theirs = checkpoint.class_names
    if theirs is not None and len(theirs) == len(class_names) and (different := other_classes(class_names, theirs)):
        model.reset_classifier(len(class_names))
        report.loaded -= sum(key.startswith(head_prefixes(model)) for key in model.state_dict())
        report.changed.append(f"head: rebuilt, since the file's classes have other names: {different}")
    return report


def build_task(config: TrainConfig, model: Any, machine: Machine, class_names: Sequence[str]) -> TrainingTask:
    """The network with its loss: the labels' or, with a teacher, its soft labels' as well.

    Raises:
        UserError: the teacher cannot be loaded, or has other classes or another image size.
    """
    criterion = {"smoothing": config.smoothing, "soft_targets": config.mixup > 0 or config.cutmix > 0}
    common: dict[str, Any] = {"criterion_kwargs": criterion, "device": machine.device, "verbose": False}
    if config.teacher is None:
        task: TrainingTask = ClassificationTask(model, **common)
    else:
        task = LogitDistillationTask(
            model,
            machine.main_process_first(lambda: _build_teacher(config, model, class_names)).to(machine.device),
            task_loss_weight=1 - config.distill_alpha,
            temperature=config.distill_temperature,
            **common,
        )
    if config.model_ema:
        task.setup_ema(decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
    if config.compile:
        task.compile()
    if machine.world_size > 1:
        # Of this package's networks the only buffers are frozen tables, equal everywhere. Statistics of batch
        # norms are those of the first process. The switch has another name since torch 2.15.
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        gpu = [machine.device] if machine.device.type == "cuda" else None
        task.prepare_distributed(device_ids=gpu, **{sync: has_statistics(model)})
    return task


def has_statistics(model: nn.Module) -> bool:
    """Whether a network has batch norms, which gather statistics as it trains."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def goes_back(config: TrainConfig, model: nn.Module) -> bool:
    """Whether a run's weights go a part of the way back to those that it started from, after training.

    Statistics of batch norms belong to the weights that they were gathered with, so that networks which have them stay.
    """
    has_start = config.checkpoint is not None or config.pretrained
    return has_start and config.start_share > 0 and not config.freeze_backbone and not has_statistics(model)


def _build_teacher(config: TrainConfig, student: nn.Module, class_names: Sequence[str]) -> nn.Module:
    assert config.teacher is not None
    teacher: Any
    theirs = None
    if config.teacher_checkpoint:
        teacher, checkpoint = load_model(config.teacher_checkpoint, model=config.teacher, in_chans=config.in_chans)
        theirs = checkpoint.class_names
    else:
        try:
            teacher = create_model(config.teacher, pretrained=True, in_chans=config.in_chans)
        except (RuntimeError, OSError) as error:  # there are none, or no network
            raise UserError(
                f"The teacher {config.teacher} comes without weights: {error}. Give them with --teacher-checkpoint."
            ) from error
    advice = "give --teacher-checkpoint with weights that were trained on these classes."
    if teacher.num_classes != len(class_names):
        raise UserError(
            f"The teacher {config.teacher} tells {teacher.num_classes} classes apart, the data has {len(class_names)}: "
            + advice
        )
    if theirs is not None and (different := other_classes(class_names, theirs)):
        raise UserError(f"The classes of the data are not those of the teacher {config.teacher}: {different}: {advice}")
    takes, given = (get_model_input_config(network)["input_size"][1:] for network in (teacher, student))
    if teacher.pretrained_cfg.get("fixed_input_size") and takes != given:
        raise UserError(
            f"The teacher {config.teacher} takes images of {takes[0]} x {takes[1]} pixels, the student of {given[0]} x "
            f"{given[1]}: give --img-size {takes[0]} {takes[1]}, or another teacher."
        )
    return teacher


def build_optimizer(config: TrainConfig, model: Any) -> torch.optim.Optimizer:
    """The optimiser over every trained tensor, each in exactly one group.

    With `backbone_lr_scale`, as in the official transfer code, the head learns at `lr`, all else at that share of it,
    and weight decay applies to every tensor. (The official code has one `min_lr` for both, which a small share would
    rise to.) Otherwise biases, norms and the class token have no weight decay.
    """
    options: dict[str, Any] = {"opt": config.opt, "lr": config.lr, "weight_decay": config.weight_decay}
    if config.momentum is not None:
        options["momentum"] = config.momentum
    optimizer_class = get_optimizer_class(config.opt, bind_defaults=False)
    if "fused" in inspect.signature(optimizer_class).parameters:  # torch's own; 5 times as quick on a CPU
        options["fused"] = True
    if config.backbone_lr_scale is None:
        return create_optimizer_v2(model, layer_decay=config.layer_decay, **options)
    head = head_parameters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter in head]},
        {"params": [p for p in trained if p not in head], "lr_scale": config.backbone_lr_scale},
    ]
    return create_optimizer_v2([group for group in groups if group["params"]], **options)


def build_schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, *, num_steps: int, steps_per_epoch: int
) -> Scheduler:
    """The cosine with its warm-up and cool-down, as a function of the step.

    Args:
        config: a warm-up that it leaves open takes a twentieth of the steps.
        optimizer: its groups keep the peak rate as `initial_lr` once a schedule was built.
        num_steps: steps of the whole run.
        steps_per_epoch: steps of an epoch.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])  # a schedule before this one has changed it
    cooldown = min(config.cooldown_epochs * steps_per_epoch, num_steps - 1)
    warmup = num_steps // 20 if config.warmup_epochs is None else config.warmup_epochs * steps_per_epoch
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=num_steps - cooldown,
        warmup_epochs=min(warmup, num_steps - 1 - cooldown),
        cooldown_epochs=cooldown,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return schedule


def can_be_paired(batch_size: int, num_images: int, processes: int) -> bool:
    """Whether mixup and CutMix find pairs in each process's share of a batch, and whole batches have no image over."""
    return batch_size % (2 * processes) == 0 and min(batch_size, num_images) >= 2 * processes


def build_mixup(config: TrainConfig, *, num_classes: int) -> Mixup | None:
    """Mixup and CutMix; None if the settings use neither."""
    if config.mixup == 0 and config.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        switch_prob=config.mixup_switch_prob,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )
