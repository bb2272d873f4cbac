"""Experiment trackers beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_vit.errors import UserError
from t2t_vit.runtime.files import write_text

KEPT_IDS = "trackers.json"
"""The file in the run directory with the trackers' ids of the run, for when it is resumed."""
PROJECT = "t2t-vit"


@dataclass(frozen=True)
class Tracker:
    """One run in one experiment tracker.

    Attributes:
        log: takes the metrics of an evaluation, and the steps that were done by then.
        close: ends the tracking; its argument is False if the run stops before its last step.
        id: the tracker's id of the run, for when it is resumed; None if it needs none.
    """

    log: Callable[[Mapping[str, float], int], None]
    close: Callable[[bool], None]
    id: str | None = None


@dataclass(frozen=True)
class Followed:
    """The run that a tracker follows.

    Attributes:
        directory: the run directory, whose last part names the run.
        settings: the run's settings, sent once.
        first_step: the first step that an evaluation may be logged at: 1 for a new run.
        known_id: the tracker's id of a resumed run.
    """

    directory: Path
    settings: Mapping[str, Any]
    first_step: int
    known_id: str | None


def _tensorboard(package: Any, run: Followed) -> Tracker:
    """Event files in the run directory: `tensorboard --logdir runs` finds them."""
    # purge_step hides what a killed run wrote about this step and later ones.
    writer = package.SummaryWriter(str(run.directory), purge_step=run.first_step)
    if run.first_step == 1:
        rows = "".join(f"| {name} | {value} |\n" for name, value in run.settings.items())
        writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def log(metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, lambda finished: writer.close())


def _wandb(package: Any, run: Followed) -> Tracker:
    """A run in the project of WANDB_PROJECT; WANDB_MODE=offline keeps it here until `wandb sync`."""
    started = package.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.directory.name,
        dir=str(run.directory),
        id=run.known_id,
        resume="allow",
        config=None if run.known_id else dict(run.settings),
    )
    return Tracker(
        lambda metrics, step: started.log(dict(metrics), step=step),
        lambda finished: started.finish(exit_code=0 if finished else 1),
        started.id,
    )


def _mlflow(package: Any, run: Followed) -> Tracker:
    """A run at MLFLOW_TRACKING_URI, in the experiment of MLFLOW_EXPERIMENT_NAME."""
    if run.known_id:
        package.start_run(run_id=run.known_id)
    else:
        package.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        package.start_run(run_name=run.directory.name)
        package.log_params(dict(run.settings))
    return Tracker(
        lambda metrics, step: package.log_metrics(dict(metrics), step=step),
        lambda finished: package.end_run("FINISHED" if finished else "KILLED"),
        package.active_run().info.run_id,
    )


TRACKERS: dict[str, tuple[Callable[[Any, Followed], Tracker], str]] = {
    "tensorboard": (_tensorboard, "torch.utils.tensorboard"),
    "wandb": (_wandb, "wandb"),
    "mlflow": (_mlflow, "mlflow"),
}
"""Maps a tracker's name to the function that starts it and to its package."""


class Trackers:
    """All trackers of a run as one. `warn` tells of one that fails; the run goes on."""

    def __init__(self, trackers: Mapping[str, Tracker], warn: Callable[[str], None]) -> None:
        self._trackers, self._warn = trackers, warn

    def log(self, row: Mapping[str, Any]) -> None:
        """Sends a row of metrics.jsonl to all trackers."""
        metrics = {name: value for name, value in row.items() if name != "step" and value is not None}
        self._each(lambda tracker: tracker.log(metrics, row["step"]))

    def close(self, *, finished: bool) -> None:
        """Ends all trackers; `finished` is False if the run stops before its last step."""
        self._each(lambda tracker: tracker.close(finished))

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in self._trackers.items():
            try:
                do(tracker)
            except Exception as error:  # a server that is away makes them raise nearly anything
                self._warn(f"warning: {name} failed, the run goes on: {type(error).__name__}: {error}")


def open_trackers(
    names: Sequence[str],
    directory: Path,
    settings: Mapping[str, Any],
    *,
    first_step: int,
    resume: bool,
    warn: Callable[[str], None],
) -> Trackers:
    """Starts to track a run, or continues if the run is resumed.

    Args:
        names: keys of `TRACKERS`.
        directory, settings, first_step: as in `Followed`.
        resume: whether the run in the directory is resumed.
        warn: told what fails later.

    Raises:
        UserError: a package is not installed, or a tracker does not start.
    """
    packages = import_packages(names)
    kept = directory / KEPT_IDS
    known: dict[str, str] = json.loads(kept.read_text()) if resume and kept.exists() else {}
    trackers: dict[str, Tracker] = {}
    for name, package in packages.items():
        make, _ = TRACKERS[name]
        try:
            trackers[name] = make(package, Followed(directory, settings, first_step, known.get(name)))
        except Exception as error:
            Trackers(trackers, warn).close(finished=False)
            raise UserError(
                f"--log-to {name} does not start: {error}. Mend that, or take it out of --log-to."
            ) from error
    ids = known | {name: tracker.id for name, tracker in trackers.items() if tracker.id is not None}
    if ids:
        write_text(kept, json.dumps(ids) + "\n")
    return Trackers(trackers, warn)


def import_packages(names: Iterable[str]) -> dict[str, Any]:
    """The package of each tracker; a `UserError` names all those that are not installed."""
    packages, missing = {}, []
    for name in dict.fromkeys(names):
        try:
            packages[name] = importlib.import_module(TRACKERS[name][1])
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(
            f"--log-to {' '.join(missing)}: not installed here. Install with "
            f"pip install 't2t-vit[{','.join(missing)}]', or take it out of --log-to."
        )
    return packages
