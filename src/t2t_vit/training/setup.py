"""Everything that a training run works with, built before its first step."""

import copy
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from t2t_vit.data.cache import cached, refuse_large_cache
from t2t_vit.data.check import first_look
from t2t_vit.data.label_budget import limit_labels
from t2t_vit.data.loading import Batch, DrawnImages, EpochBatches, EvaluationBatches, make_loader
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.sources import Source, absolute_path, open_configured
from t2t_vit.data.statistics import measure_channels
from t2t_vit.data.transforms import eval_transform, train_transform
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.models.names import resolve_name
from t2t_vit.models.preprocessing import data_config_of
from t2t_vit.pictures.report import Best
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.files import plain
from t2t_vit.runtime.hardware import describe_environment
from t2t_vit.runtime.machine import Machine, find_machine
from t2t_vit.training.build import build_network, goes_back, has_statistics
from t2t_vit.training.checkpointer import Checkpointer, model_section, read_channels, read_weights
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.interruption import Interruption
from t2t_vit.training.learner import Learner
from t2t_vit.training.plan import NUM_REHEARSED, expectation, make_plan, measure_speed
from t2t_vit.training.preview import show_augmented
from t2t_vit.training.probe import Probe, open_probe
from t2t_vit.training.progress import Progress
from t2t_vit.training.recipes import scaling_in_words
from t2t_vit.training.run_directory import RunDirectory
from t2t_vit.training.settings import absolute_checkpoint, refuse_unavailable
from t2t_vit.training.sizing import choose, choose_channels, enlarge_batch, too_few_tokens
from t2t_vit.training.trackers import Trackers, import_packages, open_trackers


@dataclass
class Run:
    """One training run; every process of several has its own.

    Attributes:
        model_name: registered name of the network.
        model: the network, which the learner updates.
        batches: which images make a training batch.
        val_batches: which validation images are evaluated.
        train_loader: batches of augmented images, as bytes.
        val_loader: batches of validation images, as bytes.
        progress: how far the run is.
        probe: tries the features on other data, where that is wanted.
        began_s: when the run would have begun, had it never been interrupted, on the monotonic clock.
    """

    config: TrainConfig
    machine: Machine
    display: Display
    directory: RunDirectory
    source: Source
    model_name: str
    model: nn.Module
    data_config: dict[str, Any]
    learner: Learner
    batches: EpochBatches
    val_batches: EvaluationBatches
    train_loader: "DataLoader[Batch]"
    val_loader: "DataLoader[Batch]"
    checkpointer: Checkpointer
    trackers: Trackers
    progress: Progress
    interruption: Interruption
    probe: Probe | None = None
    began_s: float = field(default_factory=time.monotonic)

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.batches_per_epoch

    def is_finished(self) -> bool:
        """Whether the last step is done and evaluated."""
        return self.progress.evaluated_step == self.progress.plan.num_steps

    def elapsed_s(self) -> float:
        """Time spent so far, before an interruption too."""
        return time.monotonic() - self.began_s

    def save(self, *, evaluated: bool = False) -> None:
        """Writes last.pt and, after an evaluation, best.pt and the metrics."""
        self.progress.elapsed_s = self.elapsed_s()
        self.checkpointer.save(self.progress, evaluated=evaluated)

    def next_evaluation(self) -> int:
        """The step after which the next evaluation is due."""
        plan = self.progress.plan
        return min(self.progress.evaluated_step + plan.eval_every, plan.num_steps)

    def next_stop(self) -> int:
        """The step after which the loop does something besides learning."""
        plan, step = self.progress.plan, self.progress.step
        due = plan.correction_step if plan.is_estimate and step < plan.correction_step else plan.num_steps
        return min(self.next_evaluation(), due)

    def correct_plan(self) -> None:
        """Fits the number of steps to the time limit, once, by what the first part of the run took."""
        progress = self.progress
        if progress.plan.is_estimate and progress.step >= progress.plan.correction_step:
            elapsed_s = self.machine.ask_main_process(self.elapsed_s)
            before = progress.plan.num_steps
            progress.plan = progress.plan.corrected(step=progress.step, elapsed_s=elapsed_s)
            self.learner.schedule_steps(progress.plan.num_steps, done=progress.step)
            if progress.plan.num_steps != before:
                self.display.say(f"{progress.plan.num_steps:,} steps fit into the time, by what the first steps took")

    def stop_early(self, best: Best) -> bool:
        """Ends the run here where patience is at its end.

        Args:
            best: the best weights so far, after the evaluation that was just made.

        Returns:
            Whether the run ends here, and that evaluation was on a part of the validation images.
        """
        progress, patience = self.progress, self.config.patience
        if patience is None or best.step == progress.step or progress.step == progress.plan.num_steps:
            return False
        since_best = 1 + sum(row["step"] > best.step for row in progress.metrics)
        if since_best < patience:
            return False
        self.display.say(f"stopped early: step {best.step} is still the best, and --patience {patience} is at its end")
        progress.plan = replace(progress.plan, num_steps=progress.step, is_estimate=False)
        return progress.plan.eval_images < len(self.source.val)

    def choose_validation_images(self) -> None:
        """Makes the next evaluation take the fixed part of the validation images, or all after the last step."""
        plan, num_val = self.progress.plan, len(self.source.val)
        whole = self.progress.step == plan.num_steps or plan.eval_images >= num_val
        rows = range(num_val) if whole else np.random.default_rng(0).permutation(num_val)[: plan.eval_images]
        self.val_batches.choose(sorted(rows))

    def rehearsal_batches(self) -> tuple["DataLoader[Batch]", "DataLoader[Batch]"]:
        """Some training and some validation batches, to measure the speed on."""
        self.batches.set_steps(0, NUM_REHEARSED)
        all_rows = np.random.default_rng(0).permutation(len(self.source.val))
        self.val_batches.choose(all_rows[: NUM_REHEARSED * self.batches.batch_size].tolist())
        return self.train_loader, self.val_loader

    def load_best(self) -> nn.Module:
        """A copy of the network with the weights of best.pt."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(read_weights(self.directory.best))
        return model

    def __str__(self) -> str:
        height, width = self.data_config["input_size"][1:]
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        split = self.source.split
        how = ""
        if labels := split.get("labels"):
            how = (
                f"{labels['count']:,} labels: {labels['num_train']:,} images to learn from, {labels['num_val']:,} to "
                f"choose by; {labels['num_test']:,} others are reported on at the end\n"
            )
        elif split["kind"] == "stratified":
            groups = ", with the groups of --group-by undivided" if "group_by" in split else ""
            how = f"{split['val_fraction']:.0%} of each class kept for validation, by the names of the files{groups}\n"
        if self.source.train.format.is_array:
            how += "no colour jitter and no --aa: they change colours, not channels\n"
        return (
            f"{self.model_name}, {trained:,} trained parameters, {height} x {width} pixels, on {self.machine}\n"
            f"{how}"
            f"recipe {self.config.recipe}, {rate_in_words(self.config)}, run directory {self.directory.path}"
        )


def setup(config: TrainConfig, display: Display | None = None) -> Run:
    """Builds a run, and restores it from its last checkpoint where it goes on.

    Args:
        display: where the run tells how it goes, by default the terminal of the main process.

    Raises:
        UserError: for settings, data, a model or a directory that cannot be used.
    """
    refuse_unavailable(config)
    machine = find_machine(config.device, amp=config.amp, amp_dtype=config.amp_dtype)
    source = _open_source(config, machine)
    directory = RunDirectory(Path(config.run_directory))
    machine.ask_main_process(lambda: directory.prepare(resume=config.resume))
    import_packages(config.log_to or ())
    display = display or Display(silent=not machine.is_main_process)
    goes_on = machine.ask_main_process(lambda: config.resume and directory.last.exists())
    notes: list[str] = []
    if not goes_on:
        config, reasons = machine.ask_main_process(lambda: choose_channels(config, source))
        source = source.in_format(PixelFormat(config.in_chans, config.background))
        notes = [machine.ask_main_process(lambda: first_look(source)), *reasons]
    # The name of the directory must not depend on what is chosen now; the data are found from anywhere.
    data_dir = config.data_dir and str(Path(config.data_dir).expanduser().resolve())
    exclude = config.exclude and str(directory.excluded.resolve())
    config = replace(
        config,
        output=str(directory.path),
        data=absolute_path(config.data),
        checkpoint=absolute_checkpoint(config.checkpoint),  # which is read again after training
        probe=config.probe and absolute_path(config.probe),
        data_dir=data_dir,
        exclude=exclude,
    )
    on_cpu = machine.device.type == "cpu"
    is_open = config.batch_size is None
    config, reasons = machine.ask_main_process(
        lambda: choose(config, source, on_cpu=on_cpu, processes=machine.world_size)
    )
    notes += reasons

    assert config.model is not None

    torch.manual_seed(config.seed)
    name = resolve_name(config.model)
    model, model_args, report = build_network(config, name, class_names=source.class_names, goes_on=goes_on)
    if report is not None:
        notes.append(str(report))
    if "start_share" in config.given and config.start_share > 0 and not goes_back(config, model):
        why = f"{name} has batch norms" if has_statistics(model) else "the run starts from nothing"
        raise UserError(f"--start-share has no effect: {why}. Leave it out.")
    model.to(machine.device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if machine.device.type == "cuda" and is_open:
        config, reasons = machine.ask_main_process(lambda: enlarge_batch(config, model, machine, len(source.train)))
        notes += reasons
    assert config.batch_size is not None
    if warning := too_few_tokens(name, model):
        notes.append(f"warning: {warning}")
    # ImageNet's mean and deviation are those of colours.
    channels: dict[str, Any] = {}
    if config.in_chans != 3:
        channels = machine.ask_main_process(
            lambda: read_channels(directory.last) if goes_on else measure_channels(source.train)
        )
    data_config = data_config_of(
        model, img_size=config.img_size, crop_pct=config.crop_pct, background=config.background, **channels
    )
    batches = EpochBatches(
        len(source.train),
        batch_size=config.batch_size,
        repeats=config.aug_repeats,
        labels=source.train.labels if config.balance else None,
        seed=config.seed,
        rank=machine.rank,
        world_size=machine.world_size,
    )
    learner = Learner(config, model, machine, batches, class_names=source.class_names, data_config=data_config)
    about = model_section(name, model_args, class_names=source.class_names, data_config=data_config)
    checkpointer = Checkpointer(learner, {**about, "split": source.split}, directory, display)
    val_batches = EvaluationBatches(
        len(source.val),
        batch_size=max(1, config.batch_size // machine.world_size),
        rank=machine.rank,
        world_size=machine.world_size,
    )
    train_loader, val_loader = _make_loaders(config, machine, display, source, batches, val_batches, data_config)
    run = Run(
        config=config,
        machine=machine,
        display=display,
        directory=directory,
        source=source,
        model_name=name,
        model=model,
        data_config=data_config,
        learner=learner,
        batches=batches,
        val_batches=val_batches,
        train_loader=train_loader,
        val_loader=val_loader,
        checkpointer=checkpointer,
        trackers=Trackers({}, display.say),
        progress=checkpointer.restore() if goes_on else Progress(),
        interruption=Interruption(machine),
        probe=open_probe(config, machine, data_config),
    )
    _begin(run, notes, goes_on=goes_on)
    return run


def _begin(run: Run, notes: list[str], *, goes_on: bool) -> None:
    """Says what the run is, records its settings, and plans its steps."""
    config, display, progress = run.config, run.display, run.progress
    for note in notes:
        display.say(note)
    environment = describe_environment(run.machine)
    run.machine.ask_main_process(lambda: run.directory.write_settings(config, environment, run.source.split))
    display.say(str(run))
    if goes_on:
        where = f"at step {progress.step + 1} of {progress.plan.num_steps}"
        display.say(f"Continuing {run.directory.path} {'at its end' if run.is_finished() else where}.")
    else:
        if config.resume:
            display.say(f"{run.directory.last} is not there yet: the run starts fresh.")
        speed = measure_speed(run.learner, *run.rehearsal_batches())
        probe_s = 0.0
        if run.probe is not None:
            since = time.monotonic()
            progress.probe_at_start = run.probe.measure(run.model, run.machine, run.data_config)
            probe_s = time.monotonic() - since
            display.say(
                f"probe: {run.probe.name}: the untrained network's features give {progress.probe_at_start:.2f} %"
            )
        num_val = len(run.source.val)
        progress.plan = run.machine.ask_main_process(
            lambda: make_plan(
                config,
                speed,
                num_val=num_val,
                steps_per_epoch=run.steps_per_epoch,
                on_cpu=run.machine.device.type == "cpu",
                probe_s=probe_s,
                num_train=len(run.source.train),
            )
        )
        names, sheet = run.source.class_names, run.directory.augmented
        run.machine.ask_main_process(lambda: show_augmented(run.learner, run.train_loader, names, sheet))
        networks = 1 + config.model_ema
        display.say(expectation(progress.plan, speed, networks=networks, num_val=num_val, probe_s=probe_s))
    run.learner.schedule_steps(progress.plan.num_steps, done=progress.step)
    run.began_s = time.monotonic() - progress.elapsed_s
    run.machine.ask_main_process(lambda: _open_trackers(run))


def open_to_train(config: TrainConfig) -> Source:
    """The data of a run, with no more labels than it may use.

    Raises:
        UserError: there is no such data, it has fewer labels, or it is generated and cannot be used so.
    """
    source = open_configured(config)
    if source.train.generate is not None:
        _refuse_for_generated(config, source.name)
    return source if config.labels is None else limit_labels(source, config.labels, seed=config.seed)


def _open_source(config: TrainConfig, machine: Machine) -> Source:
    source = machine.main_process_first(lambda: open_to_train(config))
    if source.split["kind"] == "given" and "val_fraction" in config.changed:
        raise UserError("--val-fraction has no effect on data that tells what to validate on: leave it out.")
    if config.balance:
        _refuse_balance(source)
    return source


def _refuse_for_generated(config: TrainConfig, name: str) -> None:
    """Refuses what makes no sense with images that each epoch draws anew."""
    problems = []
    if config.in_chans not in (1, 3):
        problems.append(f"--in-chans must be 3, or 1 for grey, got {config.in_chans}: {name} are drawn in colour.")
    if isinstance(config.img_size, tuple) and len({*config.img_size}) > 1:
        height, width = config.img_size
        problems.append(f"--img-size must be one side, got {height} {width}: {name} are drawn as squares.")
    if config.labels is not None:
        problems.append(f"--labels has no effect on {name}, of which each epoch draws others: leave it out.")
    if config.cache:
        problems.append(f"--cache has no effect on {name}, which are drawn anew in each epoch: leave it out.")
    if problems:
        raise UserError(" ".join(problems))


def _refuse_balance(source: Source) -> None:
    """Refuses to draw classes equally often where that changes nothing, or would repeat a single image."""
    counts = np.bincount(source.train.labels, minlength=len(source.class_names))
    single = [name for name, count in zip(source.class_names, counts, strict=True) if count == 1]
    if single:
        raise UserError(
            f"--balance would draw the only training image of a class again and again: {abbreviate(single)}. "
            "Add images, remove the class, or leave --balance out."
        )
    if len(set(counts[counts > 0].tolist())) == 1:
        raise UserError(f"--balance has no effect: each class has {counts.max():,} training images. Leave it out.")


def _open_trackers(run: Run) -> None:
    run.trackers = open_trackers(
        run.config.log_to or (),
        run.directory.path,
        plain(asdict(run.config)),
        first_step=run.progress.evaluated_step + 1,
        resume=run.config.resume,
        warn=run.display.say,
    )


def _make_loaders(
    config: TrainConfig,
    machine: Machine,
    display: Display,
    source: Source,
    batches: EpochBatches,
    val_batches: EvaluationBatches,
    data_config: dict[str, Any],
) -> tuple["DataLoader[Batch]", "DataLoader[Batch]"]:
    """The loaders of training and of validation images."""
    crop, transform = train_transform(
        data_config,
        crop_padding=config.crop_padding,
        affine=config.affine,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter,
        auto_augment=config.aa,
    )
    side = max(data_config["input_size"][1:])
    train, val = source.train.drawn_at(side), source.val.drawn_at(side)
    if config.cache:
        machine.ask_main_process(lambda: refuse_large_cache((train, crop), (val, None)))
        display.say(f"decoding {len(train) + len(val):,} images, to keep them in memory")
        train, val = cached(train, crop), cached(val)
    train_loader = make_loader(
        DrawnImages(train, transform, crop=crop, seed=config.seed),
        batches,
        workers=config.workers,
        pin_memory=machine.device.type == "cuda",
    )
    val_loader = make_loader(
        DrawnImages(val, eval_transform(data_config), seed=None),
        val_batches,
        workers=config.workers,
        pin_memory=machine.device.type == "cuda",
    )
    return train_loader, val_loader


def rate_in_words(config: TrainConfig) -> str:
    """The learning rate, for how many images, and what it was scaled from."""
    if config.batch_size is None:
        return f"lr {config.lr:.3g} for batches that are chosen at the start"
    return f"lr {config.lr:.3g} for {config.batch_size} images a step{scaling_in_words(vars(config))}"
