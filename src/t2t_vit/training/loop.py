"""The training loop: one for every recipe.

Everything random is drawn anew from (seed, epoch, step): order and augmentation by the loader, erasing, mixup and
dropout by a seed set before each step. So a run that continues from a checkpoint needs no state of random number
generators, and ends with the very weights of one that was never stopped.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.utils import distribute_bn
from torch import nn
from torch.utils.data import DataLoader

from t2t_vit.data.cache import cached, refuse_large_cache
from t2t_vit.data.check import first_look
from t2t_vit.data.loading import Batch, DrawnImages, EpochBatches, NormalizedLoader, make_loader
from t2t_vit.data.sources import open_source
from t2t_vit.data.transforms import train_transform
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.inference.evaluate import Accuracy, data_config_of, evaluate, evaluation_loader
from t2t_vit.models.variants import resolve_any_name
from t2t_vit.pictures.report import RunSummary, write_report
from t2t_vit.runtime.console import Display, format_duration
from t2t_vit.runtime.files import plain
from t2t_vit.runtime.hardware import describe_environment, peak_bytes
from t2t_vit.runtime.machine import find_machine, one_of_several
from t2t_vit.runtime.stopwatch import shares_in_words
from t2t_vit.training.build import build_network
from t2t_vit.training.checkpointer import Checkpointer, model_section
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.interruption import EXIT_CODES, Interruption
from t2t_vit.training.learner import Learner
from t2t_vit.training.progress import Progress
from t2t_vit.training.recipes import RECIPES, scaling_in_words
from t2t_vit.training.run_directory import RunDirectory
from t2t_vit.training.settings import chosen, refuse_wrong_settings
from t2t_vit.training.trackers import Trackers, import_packages, open_trackers

MAX_BAD_STEPS = 10
"""Steps in a row without a finite gradient after which a run stops: it does not recover from more by itself."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output: the run directory.
        metrics: one row an epoch, as in metrics.jsonl.
        best_top1: accuracy of best.pt in percent: of the moving average where one is kept.
        seconds: time spent training, evaluations included.
        interrupted: exit code for the signal that ended the run before its time, None where none did.
    """

    output: Path
    metrics: list[dict[str, Any]]
    best_top1: float
    seconds: float
    interrupted: int | None = None


@one_of_several()
def train_command(config: TrainConfig) -> int | None:
    """`t2t-vit train` and `transfer`: trains, or shows what would run. Returns the exit code of an interrupted run."""
    if config.show:
        refuse_wrong_settings(config)
        about = RECIPES[config.recipe].about if config.recipe else "no recipe"
        print(f"# {config.recipe}: {about}", f"# {_rate_in_words(config)}", sep="\n")
        print(yaml.safe_dump(plain(asdict(config)), sort_keys=False), end="")
        return None
    return train(config).interrupted


def _rate_in_words(config: TrainConfig) -> str:
    return f"lr {config.lr:.3g} for {config.batch_size} images a step{scaling_in_words(vars(config))}"


def train(config: TrainConfig) -> TrainResult:
    """Trains a model and leaves a run directory.

    Args:
        config: the settings.

    Returns:
        Where the run is, and how it went.

    Raises:
        UserError: for data, a model or a directory that cannot be used, or a loss that stays infinite.
    """
    return Run(config).train()


class Run:
    """One training run: what it needs, and how far it is. Every process of several has its own."""

    def __init__(self, config: TrainConfig) -> None:
        refuse_wrong_settings(config)
        name = resolve_any_name(config.model)
        self.config = config
        self.machine = find_machine(config.device, amp=config.amp, amp_dtype=config.amp_dtype)
        self.source = self.machine.main_process_first(
            lambda: open_source(config.data, data_dir=config.data_dir, val_fraction=config.val_fraction)
        )
        if self.source.split["kind"] == "given" and "val_fraction" in chosen(config):
            raise UserError("--val-fraction has no effect on data that tells what to validate on: leave it out.")
        self.directory = RunDirectory(Path(config.run_directory))
        self.machine.ask_main_process(lambda: self.directory.prepare(resume=config.resume))
        import_packages(config.log_to or ())
        self.display = Display(silent=not self.machine.is_main_process)
        self.interruption = Interruption()

        torch.manual_seed(config.seed)
        class_names = self.source.class_names
        self.goes_on = self.machine.ask_main_process(lambda: config.resume and self.directory.last.exists())
        self.model, model_args, report = build_network(config, name, class_names=class_names, goes_on=self.goes_on)
        if report is not None:
            self.display.say(str(report))
        self.model.to(self.machine.device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.data_config = data_config_of(self.model, img_size=config.img_size, crop_pct=config.crop_pct)
        self.about = model_section(name, model_args, class_names=class_names, data_config=self.data_config)
        self.batches = EpochBatches(
            len(self.source.train),
            batch_size=config.batch_size,
            repeats=config.aug_repeats,
            seed=config.seed,
            rank=self.machine.rank,
            world_size=self.machine.world_size,
        )
        self.learner = Learner(config, self.model, self.machine, self.batches, self.about)
        self.progress = Progress()
        self.checkpointer = Checkpointer(
            self.learner, {**self.about, "split": self.source.split}, self.directory, self.display
        )
        self.train_loader, self.val_loader = self._loaders()
        self.trackers = Trackers({}, self.display.say)

    def train(self) -> TrainResult:
        """Runs what is left of the epochs."""
        if self.goes_on:
            self.progress = self.checkpointer.restore()
        elif self.config.resume:
            self.display.say(f"{self.directory.last} is not there yet: the run starts fresh.")
        about = describe_environment(self.machine)
        self.machine.ask_main_process(lambda: self.directory.write_settings(self.config, about, self.source.split))
        self.display.say(self._describe())
        self.display.say(self.machine.ask_main_process(lambda: first_look(self.source)))
        self.machine.ask_main_process(self._open_trackers)
        self._started_s = time.monotonic() - self.progress.elapsed_s
        try:
            with self.interruption.watch():
                while self.progress.epoch < self.config.epochs:
                    speed = self._train_epoch()
                    self._save(end_of_epoch=False)  # evaluating may take long, and nobody may wait for its end
                    if not self._interrupted():
                        self._finish_epoch(speed)
                    if self._interrupted():
                        break
        finally:
            self.trackers.close(finished=self.progress.epoch == self.config.epochs)
        if self.progress.epoch == self.config.epochs:
            self._report()
        return self._result()

    def _train_epoch(self) -> dict[str, float]:
        """What is left of an epoch, or until an interruption; returns how fast it went, and what the time went to."""
        progress = self.progress
        self.batches.set_epoch(progress.epoch, start_batch=progress.batch)
        self.learner.begin_epoch(progress.epoch)
        watch, images = self.learner.watch, progress.num_images
        label = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        with self.display.steps(label, self.batches.batches_per_epoch, done=progress.batch) as steps:
            for batch in self.train_loader:
                watch.lap("data_wait")
                self._warn_of_unreadable(batch)
                self._step(batch)
                progress.batch += 1
                steps.advance(f"loss {progress.loss_sum / max(progress.num_images, 1):.4f}")
                watch.lap("host")
                interrupted = self._interrupted()
                watch.lap("device_wait")  # on which several processes agree
                if interrupted:
                    break
                if self._checkpoint_is_due():
                    self._save(end_of_epoch=False)
                    watch.lap("checkpoint")
        return watch.read((progress.num_images - images) * self.machine.world_size)

    def _checkpoint_is_due(self) -> bool:
        """Whether one is asked for after this step; after the last one of an epoch there is one anyway."""
        every = self.config.checkpoint_every
        return every > 0 and self._steps_done() % every == 0 and self.progress.batch < self.batches.batches_per_epoch

    def _step(self, batch: Batch) -> None:
        """One update of the weights, or none where the gradient is not finite."""
        progress = self.progress
        learned = self.learner.learn(batch, self._steps_done())
        if not learned.updated:
            self._skip_step(batch, learned.loss_sum)
            return
        progress.bad_in_a_row = 0
        progress.loss_sum += learned.loss_sum
        progress.num_images += learned.num_images

    def _steps_done(self) -> int:
        return self.progress.epoch * self.batches.batches_per_epoch + self.progress.batch

    def _skip_step(self, batch: Batch, loss_sum: float) -> None:
        """Counts and records a step that is not taken; stops the run when they come one after another."""
        progress = self.progress
        progress.bad_steps += 1
        progress.bad_in_a_row += 1
        names = [self.source.train.names[index] for index in batch.indices.tolist()]
        files = [name for names_of_one in self.machine.gather(names) for name in names_of_one]
        step = {"epoch": progress.epoch, "batch": progress.batch, "loss": str(loss_sum), "files": files}
        self.checkpointer.record_bad_step(step)
        self.display.say(
            f"warning: epoch {progress.epoch + 1}, batch {progress.batch + 1}: the loss or its gradient is not finite; "
            f"step skipped, its images are in {self.directory.bad_steps}"
        )
        if progress.bad_in_a_row >= MAX_BAD_STEPS:
            last = self.directory.last
            kept = f"{last} is the last good checkpoint" if last.exists() else "nothing saved"
            raise UserError(
                f"{MAX_BAD_STEPS} steps in a row had no finite loss; {kept}. Look at the images in "
                f"{self.directory.bad_steps}; lower --lr, set --clip-grad 1, or use --no-amp, in another --output."
            )

    def _interrupted(self) -> bool:
        """Whether any process was asked to end; all agree."""
        return self.machine.in_any_process(self.interruption.signal is not None)

    def _must_leave(self) -> bool:
        """Whether to leave in the middle of an evaluation, which several processes would have to agree on."""
        return self.interruption.signal is not None and self.machine.world_size == 1

    def _finish_epoch(self, speed: dict[str, float]) -> None:
        """Evaluates, records and saves."""
        progress = self.progress
        total = progress.of_all(self.machine)

        def measure(model: nn.Module, label: str) -> Accuracy:
            if self.machine.world_size > 1:
                distribute_bn(model, self.machine.world_size)  # the first process's, which are saved
            return evaluate(model, self.val_loader, self.machine, self.display, label=label, stop=self._must_leave)

        found = measure(self.model, "validating")
        row = {
            "epoch": progress.epoch,
            "lr": self.learner.optimizer.param_groups[0]["lr"],
            "train_loss": total.loss_sum / max(total.num_images, 1),
            "val_loss": found.loss,
            "val_top1": found.top1_percent,
            "val_top5": found.top5_percent,
        }
        if self.config.model_ema and not self._must_leave():
            average = self.learner.task.get_eval_model(ema=True)
            row["ema_top1"] = measure(average, "validating the average").top1_percent
        if self._must_leave():
            return  # the epoch is evaluated again when the run goes on
        if found.unreadable and progress.epoch == 0:
            self._warn(f"{len(found.unreadable)} validation images cannot be read and do not count", found.unreadable)
        progress.elapsed_s = time.monotonic() - self._started_s
        row |= {**speed, "memory_gb": peak_bytes(self.machine.device) / 2**30, "elapsed_s": progress.elapsed_s}

        progress.metrics.append(row)
        progress.epoch, progress.batch, progress.loss_sum, progress.num_images = progress.epoch + 1, 0, 0.0, 0
        remaining_s = progress.elapsed_s / progress.epoch * (self.config.epochs - progress.epoch)
        self.display.say(epoch_line(row, epochs=self.config.epochs, remaining_s=remaining_s))
        self._save(end_of_epoch=True)
        self.trackers.log(row)

    def _save(self, *, end_of_epoch: bool) -> None:
        self.progress.elapsed_s = time.monotonic() - self._started_s
        self.checkpointer.save(self.progress, end_of_epoch=end_of_epoch)

    def _loaders(self) -> tuple["DataLoader[Batch]", NormalizedLoader]:
        config = self.config
        crop, transform = train_transform(
            self.data_config,
            crop_padding=config.crop_padding,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            vflip=config.vflip,
            color_jitter=config.color_jitter,
            auto_augment=config.aa,
        )
        train, val = self.source.train, self.source.val
        if config.cache:
            self.machine.ask_main_process(lambda: refuse_large_cache((train, crop), (val, None)))
            self.display.say(f"decoding {len(train) + len(val):,} images, to keep them in memory")
            train, val = cached(train, crop), cached(val)
        train_loader = make_loader(
            DrawnImages(train, transform, crop=crop, seed=config.seed),
            self.batches,
            workers=config.workers,
            pin_memory=self.machine.device.type == "cuda",
        )
        val_loader = evaluation_loader(
            val,
            self.data_config,
            batch_size=max(1, config.batch_size // self.machine.world_size),
            machine=self.machine,
            workers=config.workers,
        )
        return train_loader, val_loader

    def _open_trackers(self) -> None:
        self.trackers = open_trackers(
            self.config.log_to or (),
            self.directory.path,
            plain(asdict(self.config)),
            first_epoch=self.progress.epoch,
            resume=self.config.resume,
            warn=self.display.say,
        )

    def _report(self) -> None:
        best = self.progress.best()
        assert best is not None
        summary = RunSummary(
            title=f"{self.about['model']} on {self.source.name}",
            about=self._describe(),
            metrics=self.progress.metrics,
            best_epoch=best["epoch"],
            images=self.source.val,
            class_names=self.source.class_names,
        )
        write_report(
            self.directory.report,
            self.directory.best,
            self.val_loader,
            summary,
            machine=self.machine,
            display=self.display,
        )

    def _describe(self) -> str:
        height, width = self.data_config["input_size"][1:]
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        split = self.source.split
        how = ""
        if split["kind"] == "stratified":
            how = f"{split['val_fraction']:.0%} of each class split off for validation with seed {split['seed']}\n"
        return (
            f"{self.about['model']}, {trained:,} trained parameters, {height} x {width} pixels, on {self.machine}\n"
            f"{how}"
            f"recipe {self.config.recipe}, {_rate_in_words(self.config)}, run directory {self.directory.path}"
        )

    def _warn_of_unreadable(self, batch: Batch) -> None:
        news = [sentence for sentence in batch.unreadable if sentence not in self.progress.unreadable]
        if news:
            self.progress.unreadable += news
            self._warn("training goes on without", news)

    def _warn(self, what: str, sentences: Sequence[str]) -> None:
        self.display.say(f"warning: {what}: {abbreviate(sentences, separator='; ')}")

    def _result(self) -> TrainResult:
        progress = self.progress
        best = progress.best() or {"epoch": -1, "val_top1": 0.0}
        top1 = best.get("ema_top1", best["val_top1"])
        if progress.unreadable:
            self.display.say(f"{len(progress.unreadable)} training images could not be read and were left out.")
        if progress.bad_steps:
            self.display.say(f"{progress.bad_steps} steps were skipped; see {self.directory.bad_steps}.")
        interrupted = None
        if progress.epoch < self.config.epochs:
            codes = self.machine.gather(self.interruption.signal and EXIT_CODES[self.interruption.signal])
            interrupted = next(code for code in codes if code is not None)
            where = "saved; " if self.checkpointer.saved else "not saved: what came after the last checkpoint is lost; "
            self.display.say(f"Stopped and {where}--resume with --output {self.directory.path} goes on from there.")
        else:
            self.display.say(
                f"best top-1 {top1:.2f} % in epoch {best['epoch'] + 1}; {format_duration(progress.elapsed_s)} in all; "
                f"{self.directory.best}"
            )
        return TrainResult(self.directory.path, progress.metrics, top1, progress.elapsed_s, interrupted)


def epoch_line(row: dict[str, Any], *, epochs: int, remaining_s: float) -> str:
    """The line that a person reads at the end of an epoch."""
    ema = f"  EMA {row['ema_top1']:6.2f} %" if "ema_top1" in row else ""
    return (
        f"epoch {row['epoch'] + 1:3d}/{epochs}  loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"top-1 {row['val_top1']:6.2f} %{ema}  lr {row['lr']:.2e}  {row['images_per_second']:.0f} images/s  "
        f"{shares_in_words(row)}  {row['memory_gb']:.1f} GB  {format_duration(remaining_s)} left"
    )
