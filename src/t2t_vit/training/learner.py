"""One update of a network's weights after another."""

import contextlib
import copy
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad, unwrap_model
from torch import Tensor, nn

from t2t_vit.data.loading import Batch, EpochBatches
from t2t_vit.data.transforms import Normalize
from t2t_vit.errors import UserError
from t2t_vit.runtime.hardware import synchronize
from t2t_vit.runtime.machine import Machine
from t2t_vit.runtime.stopwatch import Stopwatch
from t2t_vit.training.build import build_mixup, build_optimizer, build_schedule, build_task, can_be_paired
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.muon import float32_iterations


class StepResult(NamedTuple):
    """What came of a batch.

    Attributes:
        loss_sum: sum of the losses of its images.
        num_images: number of its images.
        updated: whether the weights were updated; they are not when the gradient is not finite.
    """

    loss_sum: float
    num_images: int
    updated: bool


class Learner:
    """The network with everything that its weights and their updates depend on.

    Args:
        config: the settings.
        model: the network, on the device.
        machine: the device, the precision, and the other processes.
        batches: the batches of an epoch.
        class_names: the classes that the head tells apart.
        data_config: how images are prepared for the network.

    Attributes:
        watch: where the time goes, since `prepare`.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        machine: Machine,
        batches: EpochBatches,
        *,
        class_names: Sequence[str],
        data_config: Mapping[str, Any],
    ) -> None:
        self.config, self.model, self.machine = config, model, machine
        self.normalize = Normalize(data_config, machine.device, re_prob=config.reprob)
        self.mixup = build_mixup(config, num_classes=len(class_names))
        self.full_share = self._share_of_batch(batches)
        self.task = build_task(config, model, machine, class_names)
        self.optimizer = build_optimizer(config, model)
        self.steps_per_epoch = batches.batches_per_epoch
        self.schedule: Scheduler | None = None
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.amp_dtype == torch.float16)
        self.watch = Stopwatch(host_apart=machine.device.type != "cpu")

    def _share_of_batch(self, batches: EpochBatches) -> float:
        """How many images of a full batch each process gets, on average.

        Mixup pairs the images of a process, and leaves an odd one out.
        """
        batch_size, processes = batches.batch_size, self.machine.world_size
        shares = [len(range(rank, min(batch_size, batches.num_images), processes)) for rank in range(processes)]
        if self.mixup is None:
            return sum(shares) / processes
        if not can_be_paired(batch_size, batches.num_images, processes):
            raise UserError(
                f"Mixup and CutMix pair the images of a process, but --batch-size {batch_size}, of "
                f"{batches.num_images} images, is shared among {processes}: give a multiple of {2 * processes}, "
                "or --mixup 0 --cutmix 0."
            )
        return sum(share // 2 * 2 for share in shares) / processes

    def schedule_steps(self, num_steps: int, *, done: int) -> None:
        """Makes the learning rate follow its schedule over a run of so many steps, of which some are done."""
        self.schedule = build_schedule(
            self.config, self.optimizer, num_steps=num_steps, steps_per_epoch=self.steps_per_epoch
        )
        if done:
            self.schedule.step_update(done - 1)

    def prepare(self) -> None:
        """Gets ready to learn, after an evaluation or at the start."""
        self.task.train()
        self.watch.restart()

    def learn(self, batch: Batch, step: int) -> StepResult:
        """Updates the weights, unless the gradient is not finite.

        Args:
            batch: this process's share of the batch; it may be empty.
            step: number of the step in the run, from 0.
        """
        assert self.schedule is not None, "schedule_steps comes first"
        self.schedule.step_update(step)
        if self.mixup is not None and self.config.mixup_off_epoch:
            self.mixup.mixup_enabled = step // self.steps_per_epoch < self.config.mixup_off_epoch
        return self._update(batch, step)

    def _update(self, batch: Batch, step: int) -> StepResult:
        """`learn`, with the learning rate and the mixing as they are."""
        self._seed(step)
        self.optimizer.zero_grad()
        losses: list[Tensor] = []
        counts: list[int] = []
        for images, targets, share, last in self._parts(batch):
            with self.task.no_sync() if not last else torch.enable_grad():
                with self.machine.autocast():
                    loss = self.task(images, targets)["loss"]
                # A sum over the images, divided by what a full batch has: so the gradients that several processes
                # average are those of one process, though an image may be unreadable in one of them.
                self.scaler.scale(loss * share).backward()
            if share > 0:  # else it stands for images that are all unreadable
                losses.append(loss.detach())
                counts.append(len(images))
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([cast(Tensor, parameter.grad) for parameter in parameters])
        found = torch.stack([*losses, norm.to(self.machine.device)])
        self.watch.lap("host")
        # The one time that a step waits for the device. The norm is the same in every process: it is that of all.
        *values, norm_value = found.tolist()
        self.watch.lap("device_wait")
        loss_sum = sum(value * count for value, count in zip(values, counts, strict=True))
        if not math.isfinite(norm_value):
            self.scaler.update(self.scaler.get_scale() / 2 if self.scaler.is_enabled() else None)
            return StepResult(loss_sum, sum(counts), updated=False)
        if self.config.clip_grad is not None:
            dispatch_clip_grad(parameters, self.config.clip_grad)
        with contextlib.nullcontext() if self.machine.amp_dtype == torch.bfloat16 else float32_iterations():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.update_ema(step=step + 1)
        return StepResult(loss_sum, sum(counts), updated=True)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Takes the steps back that are taken inside: weights, statistics and moments are as they were."""
        before = copy.deepcopy(self.state())
        self.prepare()
        yield
        self.optimizer.zero_grad()
        self.load_state(before)

    def time_step(self, batch: Batch) -> float:
        """Takes a step, and returns how long that took, in seconds."""
        began = time.monotonic()
        self._update(batch, 0)
        synchronize(self.machine.device)
        return time.monotonic() - began

    @torch.inference_mode()
    def time_evaluation(self, batch: Batch) -> float:
        """Evaluates the images of a batch, and returns how long that took, in seconds."""
        self.model.eval()
        began = time.monotonic()
        if len(batch.images):
            with self.machine.autocast():
                self.model(self.normalize(batch.images)).sum().item()
        return time.monotonic() - began

    def _seed(self, step: int) -> None:
        """Seeds the random numbers of erasing, mixup and dropout; each process draws its own."""
        key = (self.config.seed, step, self.machine.rank)
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor, float, bool]]:
        """The batch, normalised and on the device, in the parts that go through the network one after another.

        Yields:
            Images, targets, the part's share of a full batch, and whether the part is the last one.
        """
        device = self.machine.device
        layout = torch.channels_last if self.config.channels_last else torch.preserve_format
        images = self.normalize(batch.images).to(memory_format=layout)
        targets = batch.targets.to(device, non_blocking=True)
        if self.mixup is not None:  # it pairs images: an odd one is left out
            even = len(images) // 2 * 2
            images, targets = images[:even], targets[:even]
        full = self.full_share
        if len(images) == 0:  # all unreadable; other processes wait for this one's part of the gradient
            images, targets = torch.zeros(2, *images.shape[1:], device=device), targets.new_zeros(2)
            full = float("inf")
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        parts = min(self.config.grad_accum_steps, len(images))
        for part, (own, their) in enumerate(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True)):
            yield own, their, len(own) / full, part == parts - 1

    def inputs(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Images, (B, C, H, W), normalised, erased and mixed as that step gets them, and their labels or mixtures."""
        self._seed(step)
        parts = [(images, targets) for images, targets, *_ in self._parts(batch)]
        images, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        return images, targets

    def averaged_model(self) -> nn.Module:
        """The network with the moving average of the weights."""
        return unwrap_model(self.task.get_eval_model(ema=True))

    def weights(self, *, averaged: bool) -> dict[str, Any]:
        """The weights alone, raw or averaged."""
        if not averaged:
            return self.task.get_checkpoint_state()["state_dict"]
        return self.task.get_checkpoint_state(ema=True)["state_dict_ema"]

    def state(self) -> dict[str, Any]:
        """Weights, their moving average, and the state of the optimiser and the scaler, for a checkpoint."""
        average = self.task.get_checkpoint_state(ema=True) if self.task.has_ema() else {}
        memory = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        return {**self.task.get_checkpoint_state(), **average, **memory}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.task.load_checkpoint_state(state["state_dict"])
        if self.task.has_ema():
            self.task.load_checkpoint_state(state["state_dict_ema"], ema=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
