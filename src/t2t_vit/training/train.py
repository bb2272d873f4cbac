"""`t2t-vit train` and `transfer`: builds a run, trains, and sums it up."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch.utils.data import DataLoader

from t2t_vit.data.images import ImageSet
from t2t_vit.data.loading import Batch
from t2t_vit.data.sources import open_configured
from t2t_vit.errors import UserError
from t2t_vit.inference.evaluate import Accuracy, measure_accuracy
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.options import configure
from t2t_vit.pictures.report import RunSummary, write_report
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.durations import format_duration
from t2t_vit.runtime.files import plain
from t2t_vit.runtime.machine import find_machine, one_of_several
from t2t_vit.training.checkpointer import read_training_state
from t2t_vit.training.config import ReportConfig, TrainConfig
from t2t_vit.training.loop import fit
from t2t_vit.training.progress import Progress
from t2t_vit.training.recipes import RECIPES
from t2t_vit.training.run_directory import RunDirectory
from t2t_vit.training.settings import refuse_unavailable
from t2t_vit.training.setup import Run, rate_in_words, setup


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        output: the run directory.
        metrics: the rows of metrics.jsonl, one for each evaluation.
        best_top1: accuracy of best.pt in percent, on the validation images.
        test: accuracy of best.pt on the images of test/, by which nothing was chosen; None without them.
        seconds: time spent training, evaluations included.
        interrupted: exit code for the signal that ended the run before its last step, None where none did.
    """

    output: Path
    metrics: list[dict[str, Any]]
    best_top1: float
    seconds: float
    interrupted: int | None = None
    test: Accuracy | None = None


def train(data: str, **settings: Any) -> TrainResult:
    """Trains a network, as the command `train` does: the same recipes, the same defaults.

    Args:
        data: a folder, or the name of a data set such as digits.
        settings: the flags of the command, such as `model="t2t_vit_7"` or `epochs=20`.

    Returns:
        The run directory, the metrics and the accuracy of the best weights.

    Raises:
        UserError: for settings, data or a model that cannot be used.
    """
    return run_training(configure(TrainConfig, data=data, **settings))


@one_of_several()
def train_command(config: TrainConfig) -> int | None:
    """Trains, or shows what would run. Returns the exit code of an interrupted run."""
    if config.show:
        refuse_unavailable(config)
        about = RECIPES[config.recipe].about if config.recipe else "no recipe"
        print(f"# {config.recipe}: {about}", f"# {rate_in_words(config)}", sep="\n")
        print(yaml.safe_dump(plain(asdict(config)), sort_keys=False), end="")
        return None
    return run_training(config).interrupted


def run_training(config: TrainConfig) -> TrainResult:
    """Trains a network and leaves a run directory.

    Raises:
        UserError: for data, a model or a directory that cannot be used, or a loss that stays infinite.
    """
    run = setup(config)
    try:
        fit(run)
    finally:
        run.trackers.close(finished=run.is_finished())
    test = _test(run) if run.is_finished() else None
    _report(run, test)
    return _sum_up(run, test)


def _test(run: Run) -> Accuracy | None:
    """The accuracy of the best weights on the images of test/, if there are any; measured once, at the end."""
    images = run.source.test
    if images is None:
        return None
    predictor = Predictor(run.directory.best, machine=run.machine)
    size = max(1, run.batches.batch_size // run.machine.world_size)
    loader = evaluation_loader(
        images, predictor.data_config, batch_size=size, machine=run.machine, workers=run.config.workers
    )
    return measure_accuracy(predictor, loader, run.display, label="testing")


def _report(run: Run, test: Accuracy | None) -> None:
    """Writes the report of the best weights so far, if there are any."""
    best, directory = run.progress.best, run.directory
    if best is None:
        return
    run.val_batches.choose(range(len(run.source.val)))
    summary = RunSummary(
        title=f"{run.model_name} on {run.source.short_name}",
        about=str(run),
        metrics=run.progress.metrics,
        best=best,
        images=run.source.val,
        class_names=run.source.class_names,
        test=test,
    )
    write_report(directory.report, directory.best, run.val_loader, summary, machine=run.machine, display=run.display)


def _sum_up(run: Run, test: Accuracy | None) -> TrainResult:
    """Says how the run went, and returns its result."""
    progress, say = run.progress, run.display.say
    best = progress.best
    if progress.unreadable:
        say(f"training images that could not be read and were left out: {len(progress.unreadable)}")
    if progress.bad_steps:
        steps = "1 step was" if progress.bad_steps == 1 else f"{progress.bad_steps} steps were"
        say(f"{steps} skipped; see {run.directory.bad_steps}.")
    if progress.step and progress.bad_steps == progress.step:
        raise UserError(
            f"No step had a finite loss, so that nothing was learnt. Look at the images in {run.directory.bad_steps}; "
            "lower --lr, set --clip-grad 1, or use --no-amp, in another --output."
        )
    interrupted = None
    if not run.is_finished():
        interrupted = run.interruption.exit_code()
        where = "saved" if run.checkpointer.saved else "not saved: what came after the last checkpoint is lost"
        say(f"Stopped and {where}. To go on: {go_on_command(run)}")
    elif best:
        accuracy = f"top-1 {best.top1:.2f} %"
        if run.config.best_by == "balanced":
            accuracy = f"balanced accuracy {best.balanced:.2f} %, {accuracy}"
        say(
            f"best {accuracy} on {best.num_images:,} images: the {best.weights} of step {best.step}; "
            f"{format_duration(progress.elapsed_s)} in all; {run.directory.best}"
        )
    if test is not None:
        say(f"top-1 on test {test.top1:.2f} %, on {test.num_images:,} images by which nothing was chosen")
    top1 = best.top1 if best else 0.0
    return TrainResult(run.directory.path, progress.metrics, top1, progress.elapsed_s, interrupted, test)


@one_of_several()
def report_command(config: ReportConfig) -> None:
    """Writes the report of a run, finished or not. Reads the run's files and changes nothing else in its folder.

    Raises:
        UserError: the folder holds no run, nothing was evaluated yet, or the run's data are not there.
    """
    directory = RunDirectory(Path(config.run))
    if not directory.last.exists():
        raise UserError(f"{config.run} holds no run: expected a folder with last.pt, as t2t-vit train leaves it.")
    progress = Progress.from_plain(read_training_state(directory.last)["progress"])
    if progress.best is None:
        raise UserError(f"The run in {config.run} has not been evaluated yet: there is nothing to report.")
    settings = configure(TrainConfig, output=config.run, resume=True)
    machine = find_machine(config.device, amp=settings.amp, amp_dtype=settings.amp_dtype)
    display = Display(silent=not machine.is_main_process)
    source = open_configured(settings)
    predictor = Predictor(directory.best, machine=machine)

    def loader_of(images: ImageSet) -> "DataLoader[Batch]":
        return evaluation_loader(images, predictor.data_config, batch_size=64, machine=machine, workers=None)

    test = None
    if source.test is not None and progress.evaluated_step == progress.plan.num_steps:
        test = measure_accuracy(predictor, loader_of(source.test), display, label="testing")
    steps = f"step {progress.step:,} of {progress.plan.num_steps:,}"
    summary = RunSummary(
        title=f"{settings.model} on {source.short_name}",
        about=f"{steps}, {rate_in_words(settings)}\nrun directory {config.run}",
        metrics=progress.metrics,
        best=progress.best,
        images=source.val,
        class_names=source.class_names,
        test=test,
    )
    write_report(directory.report, directory.best, loader_of(source.val), summary, machine=machine, display=display)


def go_on_command(run: Run) -> str:
    """A command to paste that continues the run."""
    return f"t2t-vit train --resume --output {shlex.quote(str(run.directory.path))}"
