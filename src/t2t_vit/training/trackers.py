"""Experiment trackers beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from t2t_vit.errors import UserError
from t2t_vit.runtime.files import write_text

KEPT_IDS = "trackers.json"
"""In the run directory: under which id a tracker knows the run, for when it goes on."""
PROJECT = "t2t-vit"


class Tracker(Protocol):
    """Where one run is followed; made when the run starts or goes on.

    Attributes:
        id: by which it is found again when the run goes on, None where it needs none.
    """

    id: str | None

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Takes the metrics of an epoch, counted from 0."""

    def close(self, *, finished: bool) -> None:
        """Ends what `__init__` began; `finished` unless the run stops before its last epoch."""


class TensorBoard:
    """Event files in the run directory: `tensorboard --logdir runs` finds them."""

    id: str | None = None

    def __init__(
        self, package: Any, directory: Path, settings: Mapping[str, Any], *, first_epoch: int, known_id: str | None
    ) -> None:
        # What a run that died wrote of this epoch and later ones is hidden.
        self._writer = package.SummaryWriter(str(directory), purge_step=first_epoch)
        if first_epoch == 0:
            rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
            self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb, in the project of WANDB_PROJECT; WANDB_MODE=offline keeps it here until `wandb sync`."""

    def __init__(
        self, package: Any, directory: Path, settings: Mapping[str, Any], *, first_epoch: int, known_id: str | None
    ) -> None:
        self._run = package.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.name,
            dir=str(directory),
            id=known_id,
            resume="allow",
            config=None if known_id else dict(settings),
        )
        self.id: str | None = self._run.id

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(metrics), step=epoch)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI in the experiment of MLFLOW_EXPERIMENT_NAME."""

    def __init__(
        self, package: Any, directory: Path, settings: Mapping[str, Any], *, first_epoch: int, known_id: str | None
    ) -> None:
        self._mlflow = package
        if known_id:
            self._mlflow.start_run(run_id=known_id)
        else:
            self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            self._mlflow.start_run(run_name=directory.name)
            self._mlflow.log_params(dict(settings))
        self.id: str | None = self._mlflow.active_run().info.run_id

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._mlflow.log_metrics(dict(metrics), step=epoch)

    def close(self, *, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "KILLED")


# What each is made by, and of which package.
TRACKERS: dict[str, tuple[Callable[..., Tracker], str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard"),
    "wandb": (WeightsAndBiases, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}


class Trackers:
    """All trackers of a run as one. A tracker that fails while the run goes on is told and does not stop it.

    Args:
        trackers: by name.
        warn: tells a person.
    """

    def __init__(self, trackers: Mapping[str, Tracker], warn: Callable[[str], None]) -> None:
        self._trackers, self._warn = trackers, warn

    def log(self, row: Mapping[str, Any]) -> None:
        """Hands on a row of metrics.jsonl."""
        metrics = {name: value for name, value in row.items() if name != "epoch"}
        self._each(lambda tracker: tracker.log(metrics, row["epoch"]))

    def close(self, *, finished: bool) -> None:
        """Ends them all; `finished` unless the run stops before its last epoch."""
        self._each(lambda tracker: tracker.close(finished=finished))

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
    first_epoch: int,
    resume: bool,
    warn: Callable[[str], None],
) -> Trackers:
    """Starts to follow a run, or goes on with it.

    Args:
        names: of `TRACKERS`.
        directory: the run's; its last part is what the run is called.
        settings: of the run, told once.
        first_epoch: the first one that will be logged.
        resume: whether the run in the directory goes on; else it is a new one.
        warn: tells a person what fails later.

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
            trackers[name] = make(package, directory, settings, first_epoch=first_epoch, known_id=known.get(name))
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
    """The package of each tracker.

    Raises:
        UserError: some are not installed; all are told at once.
    """
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
