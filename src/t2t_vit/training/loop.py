"""The training loop: one for every recipe.

Everything random is drawn anew from (seed, epoch, step): order and augmentation by the loader, mixup and dropout by a
seed set before each step. So a run that continues from a checkpoint needs no state of random number generators, and
ends with the very weights of one that was never stopped.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import Mixup
from timm.layers import to_2tuple
from timm.models import resolve_model_input_args
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.utils.data import DataLoader

from t2t_vit.data.loading import Batch, DrawnImages, EpochBatches, make_loader, train_transform
from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError, closest
from t2t_vit.models.variants import resolve_any_name
from t2t_vit.training.checkpoints import model_section, plain, read_training_state, write_checkpoint
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.evaluate import data_config_of, evaluate, evaluation_loader
from t2t_vit.training.logs import Display, RunDirectory, format_duration
from t2t_vit.training.machine import describe_environment, find_machine


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output: the run directory.
        metrics: one row an epoch, as in metrics.jsonl.
        best_top1: accuracy of best.pt in percent: of the moving average where one is kept.
        seconds: time spent training, evaluations included.
    """

    output: Path
    metrics: list[dict[str, Any]]
    best_top1: float
    seconds: float


@dataclass
class Progress:
    """How far a run is; the part of its state that is not tensors.

    Attributes:
        epoch: the epoch that runs, from 0.
        batch: batches of it that are done.
        loss_sum: of the losses of these batches, each times its images.
        num_images: of these batches.
        elapsed_s: time spent, before this start too.
        metrics: rows of the epochs that are done.
        unreadable: what was said of images that could not be read.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    num_images: int = 0
    elapsed_s: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def best(self) -> tuple[float, int]:
        """Highest accuracy so far in percent, and its epoch."""
        return max(((row.get("ema_top1", row["val_top1"]), -row["epoch"]) for row in self.metrics), default=(-1.0, 0))


def train(config: TrainConfig) -> TrainResult:
    """Trains a model and leaves a run directory.

    Args:
        config: the settings.

    Returns:
        Where the run is, and how it went.

    Raises:
        UserError: for data, a model or a directory that cannot be used.
    """
    return Run(config).train()


class Run:
    """One training run: what it needs, and how far it is."""

    def __init__(self, config: TrainConfig) -> None:
        name = resolve_any_name(config.model)
        _refuse_wrong_settings(config)
        self.config = config
        self.machine = find_machine(config.device, amp=config.amp, amp_dtype=config.amp_dtype)
        self.source = open_source(config.data, val_fraction=config.val_fraction)
        self.directory = RunDirectory(Path(config.run_directory), resume=config.resume)
        self.display = Display(epochs=config.epochs)

        torch.manual_seed(config.seed)
        model_args = resolve_model_input_args(
            name,
            {"img_size": config.img_size and to_2tuple(config.img_size)},
            num_classes=len(self.source.class_names),
        )
        model_args = {key: value for key, value in model_args.items() if key in ("num_classes", "img_size")}
        self.model: nn.Module = timm.create_model(
            name, **model_args, drop_rate=config.drop, drop_path_rate=config.drop_path
        ).to(self.machine.device)
        self.data_config = data_config_of(self.model, img_size=config.img_size, crop_pct=config.crop_pct)
        self.about = model_section(name, model_args, class_names=self.source.class_names, data_config=self.data_config)
        self.mixup = _make_mixup(config, num_classes=len(self.source.class_names))
        self.task = ClassificationTask(
            self.model,
            criterion_kwargs={"smoothing": config.smoothing, "soft_targets": self.mixup is not None},
            device=self.machine.device,
            verbose=False,
        )
        if config.model_ema:
            self.task.setup_ema(decay=config.model_ema_decay, use_warmup=True)
        self.optimizer = create_optimizer_v2(self.model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
        self.batches = EpochBatches(len(self.source.train), batch_size=config.batch_size, seed=config.seed)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.batches.batches_per_epoch,
        )
        self.scaler = torch.amp.GradScaler(self.machine.device.type, enabled=self.machine.amp_dtype == torch.float16)
        self.progress = Progress()

    def train(self) -> TrainResult:
        """Runs what is left of the epochs."""
        if self.config.resume:
            self._restore()
        self.directory.write_settings(self.config, describe_environment(self.machine), self.source.split)
        self.display.say(self._describe())
        train_loader, val_loader = self._loaders()
        self._started_s = time.monotonic() - self.progress.elapsed_s
        while self.progress.epoch < self.config.epochs:
            began = time.monotonic()
            images_before = self.progress.num_images
            self._train_epoch(train_loader)
            images_per_second = (self.progress.num_images - images_before) / (time.monotonic() - began)
            self._finish_epoch(val_loader, images_per_second)
        return self._result()

    def _train_epoch(self, loader: "DataLoader[Batch]") -> None:
        progress = self.progress
        self.batches.set_epoch(progress.epoch, start_batch=progress.batch)
        self.task.train()
        label = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        total = self.batches.batches_per_epoch
        with self.display.steps(label, total, done=progress.batch) as steps:
            for batch in loader:
                self._warn_of_unreadable(batch)
                if len(batch.images):
                    loss = self._step(batch)
                    progress.loss_sum += loss * len(batch.images)
                    progress.num_images += len(batch.images)
                progress.batch += 1
                steps.advance(f"loss {progress.loss_sum / max(progress.num_images, 1):.4f}")

    def _step(self, batch: Batch) -> float:
        """One update of the weights; returns the loss."""
        step = self.progress.epoch * self.batches.batches_per_epoch + self.progress.batch
        self.scheduler.step_update(step)
        images, targets = self._to_device(batch)
        seed = np.random.SeedSequence((self.config.seed, step)).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed))
        if self.mixup is not None:
            np.random.seed(int(seed) % 2**32)
            even = len(images) // 2 * 2  # mixup pairs images: an odd one is left out
            images, targets = self.mixup(images[:even], targets[:even])
        with self.machine.autocast():
            loss = self.task(images, targets)["loss"]
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if self.config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            dispatch_clip_grad(self.model.parameters(), self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.update_ema(step=step + 1)
        return loss.item()

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self.machine.device
        return batch.images.to(device, non_blocking=True), batch.targets.to(device, non_blocking=True)

    def _finish_epoch(self, val_loader: "DataLoader[Batch]", images_per_second: float) -> None:
        """Evaluates, records and saves."""
        progress = self.progress
        found = evaluate(self.model, val_loader, self.machine, self.display, label="validating")
        row = {
            "epoch": progress.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": progress.loss_sum / max(progress.num_images, 1),
            "val_loss": found.loss,
            "val_top1": found.top1_percent,
            "val_top5": found.top5_percent,
        }
        if self.task.has_ema():
            ema = self.task.get_eval_model(ema=True)
            row["ema_top1"] = evaluate(
                ema, val_loader, self.machine, self.display, label="validating the average"
            ).top1_percent
        if found.unreadable and progress.epoch == 0:
            self._warn(f"{len(found.unreadable)} validation images cannot be read and do not count", found.unreadable)
        progress.elapsed_s = time.monotonic() - self._started_s
        row |= {"images_per_second": images_per_second, "elapsed_s": progress.elapsed_s}

        progress.metrics.append(row)
        progress.epoch, progress.batch, progress.loss_sum, progress.num_images = progress.epoch + 1, 0, 0.0, 0
        remaining_s = progress.elapsed_s / progress.epoch * (self.config.epochs - progress.epoch)
        self.display.epoch(row, remaining_s=remaining_s)
        self._save(is_best=progress.best()[1] == -row["epoch"])
        self.directory.write_metrics(progress.metrics)

    def _save(self, *, is_best: bool) -> None:
        progress = self.progress
        contents = {
            **self.about,
            **self.task.get_checkpoint_state(),
            **(self.task.get_checkpoint_state(ema=True) if self.task.has_ema() else {}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(progress),
            "epoch": progress.epoch - 1,
            "metrics": progress.metrics[-1] if progress.metrics else {},
            "config": plain(asdict(self.config)),
            "split": self.source.split,
        }
        write_checkpoint(self.directory.last, contents)
        if is_best:
            write_checkpoint(self.directory.best, contents)

    def _restore(self) -> None:
        """Takes up where last.pt left; refuses settings under which the result would be another."""
        if not self.directory.last.exists():
            self.display.say(f"{self.directory.last} is not there yet: the run starts fresh.")
            return
        state = read_training_state(self.directory.last)
        _refuse_other_run(state, {**self.about, "split": self.source.split, "config": asdict(self.config)})
        self.task.load_checkpoint_state(state["state_dict"])
        if self.task.has_ema():
            self.task.load_checkpoint_state(state["state_dict_ema"], ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.display.say(f"Continuing {self.directory.path} at epoch {self.progress.epoch + 1}.")

    def _loaders(self) -> tuple["DataLoader[Batch]", "DataLoader[Batch]"]:
        config = self.config
        augmentation: dict[str, Any] = {
            "scale": config.scale,
            "ratio": config.ratio,
            "hflip": config.hflip,
            "vflip": config.vflip,
            "color_jitter": config.color_jitter,
            "auto_augment": config.aa,
            "re_prob": config.reprob,
            "re_mode": "pixel",
        }
        train_set = DrawnImages(self.source.train, train_transform(self.data_config, **augmentation), seed=config.seed)
        train_loader = make_loader(
            train_set, self.batches, workers=config.workers, pin_memory=self.machine.device.type == "cuda"
        )
        val_loader = evaluation_loader(
            self.source.val,
            self.data_config,
            batch_size=config.batch_size,
            machine=self.machine,
            workers=config.workers,
        )
        return train_loader, val_loader

    def _describe(self) -> str:
        source, (height, width) = self.source, self.data_config["input_size"][1:]
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        split = ""
        if source.split["kind"] == "stratified":
            split = f" ({source.split['val_fraction']:.0%} of each class split off with seed {source.split['seed']})"
        return (
            f"{self.about['model']}, {parameters:,} trained parameters, {height} x {width} pixels, on {self.machine}\n"
            f"{source.name}: {len(source.class_names)} classes, {len(source.train):,} images to train on, "
            f"{len(source.val):,} to validate{split}\n"
            f"recipe {self.config.recipe}, run directory {self.directory.path}"
        )

    def _warn_of_unreadable(self, batch: Batch) -> None:
        news = [sentence for sentence in batch.unreadable if sentence not in self.progress.unreadable]
        if news:
            self.progress.unreadable += news
            self._warn("training goes on without", news)

    def _warn(self, what: str, sentences: Sequence[str]) -> None:
        more = f" and {len(sentences) - 5} more" if len(sentences) > 5 else ""
        self.display.say(f"warning: {what}: {'; '.join(sentences[:5])}{more}")

    def _result(self) -> TrainResult:
        progress = self.progress
        best, epoch = progress.best()
        if progress.unreadable:
            self.display.say(f"{len(progress.unreadable)} training images could not be read and were left out.")
        self.display.say(
            f"best top-1 {best:.2f} % in epoch {1 - epoch}; {format_duration(progress.elapsed_s)} in all; "
            f"{self.directory.best}"
        )
        return TrainResult(self.directory.path, progress.metrics, best, progress.elapsed_s)


def _make_mixup(config: TrainConfig, *, num_classes: int) -> Mixup | None:
    if config.mixup == 0 and config.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        switch_prob=config.mixup_switch_prob,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )


def _refuse_wrong_settings(config: TrainConfig) -> None:
    """Tells every value that makes no sense, before anything is opened."""
    wrong = [
        f"--{name.replace('_', '-')} must be {meaning}, got {getattr(config, name)}"
        for name, holds, meaning in (
            ("epochs", config.epochs >= 1, "at least 1"),
            ("batch_size", config.batch_size >= 1, "at least 1"),
            ("lr", config.lr > 0, "positive"),
            ("warmup_epochs", 0 <= config.warmup_epochs < config.epochs, f"from 0 to {config.epochs - 1}"),
            ("smoothing", 0 <= config.smoothing < 1, "from 0 to 1"),
            ("drop_path", 0 <= config.drop_path < 1, "from 0 to 1"),
            ("model_ema_decay", 0 < config.model_ema_decay < 1, "between 0 and 1"),
            ("workers", config.workers is None or config.workers >= 0, "at least 0"),
        )
        if not holds
    ]
    if config.opt not in list_optimizers():
        wrong.append(closest(config.opt, list_optimizers(), "optimiser").removesuffix("."))
    if wrong:
        raise UserError("; ".join(wrong) + ".")


HARMLESS = ("output", "resume", "workers", "data")
"""Settings that a run may change when it goes on; the data is compared by its images, not by its name."""


def _refuse_other_run(state: dict[str, Any], now: dict[str, Any]) -> None:
    then, wanted = state["config"], plain(now["config"])
    pairs = {key: (then.get(key), wanted[key]) for key in wanted if key not in HARMLESS}
    pairs |= {key: (state[key], now[key]) for key in ("class_names", "split")}
    changed = [f"{key} was {old!r}, now {new!r}" for key, (old, new) in pairs.items() if old != new]
    if changed:
        raise UserError(
            f"The run cannot go on under other settings: {'; '.join(changed)}. "
            "Leave them as they were, or start another run with another --output."
        )
