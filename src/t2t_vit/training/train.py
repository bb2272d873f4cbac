"""`t2t-vit train` and `transfer`: builds a run, trains, and sums it up."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from t2t_vit.errors import UserError
from t2t_vit.inference.evaluate import Accuracy
from t2t_vit.options import configure
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.durations import format_duration
from t2t_vit.runtime.files import plain
from t2t_vit.runtime.machine import one_of_several
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.head import refit_best
from t2t_vit.training.hindsight import look_back
from t2t_vit.training.loop import fit
from t2t_vit.training.recipes import RECIPES
from t2t_vit.training.settings import refuse_unavailable
from t2t_vit.training.setup import Run, rate_in_words, setup


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        output: the run directory.
        metrics: the rows of metrics.jsonl, one for each evaluation.
        best_top1: accuracy of best.pt in percent, on the validation images.
        test: accuracy of best.pt on images by which nothing was chosen, those of test/ or beside `labels`; None
            without them.
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


def run_training(config: TrainConfig, display: Display | None = None) -> TrainResult:
    """Trains a network and leaves a run directory.

    Args:
        display: where the run tells how it goes, by default the terminal of the main process.

    Raises:
        UserError: for data, a model or a directory that cannot be used, or a loss that stays infinite.
    """
    run = setup(config, display)
    try:
        fit(run)
        refit_best(run)
    finally:
        run.trackers.close(finished=run.is_finished())
    return _sum_up(run, look_back(run))


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
            f"best {accuracy} on {best.num_images:,} images: {best}, of step {best.step}; "
            f"{format_duration(progress.elapsed_s)} in all; {run.directory.best}"
        )
    if test is not None:
        say(f"top-1 on test {test.top1:.2f} %, on {test.num_images:,} images by which nothing was chosen")
    top1 = best.top1 if best else 0.0
    return TrainResult(run.directory.path, progress.metrics, top1, progress.elapsed_s, interrupted, test)


def go_on_command(run: Run) -> str:
    """A command to paste that continues the run."""
    return f"t2t-vit train --resume --output {shlex.quote(str(run.directory.path))}"
