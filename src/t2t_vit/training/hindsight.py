"""What is found out about the best weights of a run after training: calibration, accuracy on test/, and the report."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from t2t_vit.data.check import compare_labels
from t2t_vit.data.sources import Source, open_configured
from t2t_vit.errors import UserError
from t2t_vit.inference.calibration import Calibration, calibrate
from t2t_vit.inference.evaluate import Accuracy, measure_accuracy
from t2t_vit.inference.predictions import Predictions, predict_all
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.options import configure
from t2t_vit.pictures.report import RunSummary, write_report
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import find_machine, one_of_several
from t2t_vit.training.checkpointer import add_calibration, read_training_state
from t2t_vit.training.config import ReportConfig, TrainConfig
from t2t_vit.training.progress import Progress
from t2t_vit.training.run_directory import RunDirectory
from t2t_vit.training.setup import Run, rate_in_words

LOW_PERCENT = 70.0
"""Accuracy below which a linear classifier is asked what can be expected."""
LIMIT_S = 10.0
"""How long images are looked at for that."""


def look_back(run: Run) -> Accuracy | None:
    """Calibrates the best weights so far, measures a finished run on test/, and writes the report.

    All processes call this together. The run is safe by then: what goes wrong but for the test is told, and not raised.

    Returns:
        The accuracy on the images of test/, if there are any; measured once, at the end.
    """
    if run.progress.best is None:
        return None
    directory, machine, display = run.directory, run.machine, run.display
    predictor = Predictor(directory.best, machine=machine)
    run.val_batches.choose(range(len(run.source.val)))
    try:
        predictions = predict_all(predictor, run.val_loader, display, label="predicting for the report")
        calibration = machine.ask_main_process(lambda: calibration_of(predictions, directory.best))
    except (RuntimeError, UserError) as error:
        display.say(f"warning: {directory.report} is not written: {error}")
        predictions, calibration = None, None
    if calibration is not None:
        predictor.temperature = calibration.temperature
    test = None
    if run.source.test is not None and run.is_finished():
        test = measure_test(predictor, run.source, display, batch_size=run.batches.batch_size)
    if predictions is not None and machine.is_main_process:
        summary = partial(summarize, run.config, run.progress, run.source, directory, about=str(run), test=test)
        write_report(directory.report, summary, predictions, calibration, display=display)
    return test


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
    loader = evaluation_loader(source.val, predictor.data_config, batch_size=64, machine=machine, workers=None)
    predictions = predict_all(predictor, loader, display, label="predicting for the report")
    calibration = calibration_of(predictions)
    if calibration is not None:
        predictor.temperature = calibration.temperature
    test = None
    if source.test is not None and progress.evaluated_step == progress.plan.num_steps:
        test = measure_test(predictor, source, display, batch_size=64)
    steps = f"step {progress.step:,} of {progress.plan.num_steps:,}"
    about = f"{settings.model}, {steps}, {rate_in_words(settings)}\nrun directory {config.run}"
    if machine.is_main_process:
        summary = partial(summarize, settings, progress, source, directory, about=about, test=test)
        write_report(directory.report, summary, predictions, calibration, display=display)


def calibration_of(predictions: Predictions, checkpoint: Path | None = None) -> Calibration | None:
    """The calibration by these predictions, which is added to a checkpoint if one is given; None without images."""
    if len(predictions.labels) == 0:
        return None
    found = calibrate(predictions.logits, predictions.labels)
    if checkpoint is not None:
        add_calibration(checkpoint, found.to_plain())
    return found


def measure_test(predictor: Predictor, source: Source, display: Display, *, batch_size: int) -> Accuracy:
    """The accuracy on the images of test/, where there are some."""
    assert source.test is not None
    machine = predictor.machine
    size = max(1, batch_size // machine.world_size)
    loader = evaluation_loader(source.test, predictor.data_config, batch_size=size, machine=machine, workers=None)
    return measure_accuracy(predictor, loader, display, label="testing")


def summarize(
    config: TrainConfig,
    progress: Progress,
    source: Source,
    directory: RunDirectory,
    *,
    about: str,
    test: Accuracy | None,
) -> RunSummary:
    """The run, for its report."""
    best = progress.best
    assert best is not None
    linear: dict[str, Any] = {}
    if best.top1 < LOW_PERCENT:
        agreement = compare_labels(source, limit_s=LIMIT_S)
        linear = {"linear_percent": agreement and agreement.val_percent}
    summary = RunSummary(
        title=f"{config.model} on {source.short_name}",
        about=about,
        metrics=progress.metrics,
        best=best,
        images=source.val,
        class_names=source.class_names,
        test=test,
        best_by=config.best_by,
        augmented=directory.augmented if directory.augmented.exists() else None,
    )
    return dataclasses.replace(summary, **linear)
