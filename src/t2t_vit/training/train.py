"""`t2t-vit train` and `transfer`: builds a run, trains, and sums it up."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from t2t_vit.options import configure
from t2t_vit.pictures.report import RunSummary, write_report
from t2t_vit.runtime.console import format_duration
from t2t_vit.runtime.files import plain
from t2t_vit.runtime.machine import one_of_several
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.loop import fit
from t2t_vit.training.progress import top1_of
from t2t_vit.training.recipes import RECIPES
from t2t_vit.training.settings import refuse_unavailable
from t2t_vit.training.setup import Run, rate_in_words, setup


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        output: the run directory.
        metrics: the rows of metrics.jsonl, one for each epoch.
        best_top1: accuracy of best.pt in percent: of the averaged weights where they are kept.
        seconds: time spent training, evaluations included.
        interrupted: exit code for the signal that ended the run before its last step, None where none did.
    """

    output: Path
    metrics: list[dict[str, Any]]
    best_top1: float
    seconds: float
    interrupted: int | None = None


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
        run.trackers.close(finished=_is_finished(run))
    if _is_finished(run):
        _report(run)
    return _sum_up(run)


def _is_finished(run: Run) -> bool:
    return run.progress.evaluated_step == run.num_steps


def _report(run: Run) -> None:
    best = run.progress.best()
    assert best is not None
    summary = RunSummary(
        title=f"{run.model_name} on {run.source.name}",
        about=str(run),
        metrics=run.progress.metrics,
        best_epoch=best["epoch"],
        images=run.source.val,
        class_names=run.source.class_names,
    )
    directory = run.directory
    write_report(directory.report, directory.best, run.val_loader, summary, machine=run.machine, display=run.display)


def _sum_up(run: Run) -> TrainResult:
    """Says how the run went, and returns its result."""
    progress, say = run.progress, run.display.say
    best = progress.best()
    top1 = top1_of(best) if best else 0.0
    if progress.unreadable:
        say(f"{len(progress.unreadable)} training images could not be read and were left out.")
    if progress.bad_steps:
        steps = "1 step was" if progress.bad_steps == 1 else f"{progress.bad_steps} steps were"
        say(f"{steps} skipped; see {run.directory.bad_steps}.")
    interrupted = None
    if not _is_finished(run):
        interrupted = run.interruption.exit_code()
        where = "saved; " if run.checkpointer.saved else "not saved: what came after the last checkpoint is lost; "
        say(f"Stopped and {where}--resume with --output {run.directory.path} goes on from there.")
    elif best:
        say(
            f"best top-1 {top1:.2f} % in epoch {best['epoch'] + 1}; {format_duration(progress.elapsed_s)} in all; "
            f"{run.directory.best}"
        )
    return TrainResult(run.directory.path, progress.metrics, top1, progress.elapsed_s, interrupted)
