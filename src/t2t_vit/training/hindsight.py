"""What is found out about the best weights of a run after training: calibration, accuracy on test/, and the report."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader

from t2t_vit.data.check import compare_labels
from t2t_vit.data.loading import Batch
from t2t_vit.data.sources import Source
from t2t_vit.errors import UserError
from t2t_vit.inference.calibration import calibrate
from t2t_vit.inference.evaluate import Accuracy, measure_accuracy
from t2t_vit.inference.predictions import predict_all
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.options import configure
from t2t_vit.pictures.report import RunSummary, write_report
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import find_machine, one_of_several
from t2t_vit.training.checkpointer import add_calibration, read_training_state
from t2t_vit.training.config import ReportConfig, TrainConfig
from t2t_vit.training.progress import Progress
from t2t_vit.training.run_directory import RunDirectory
from t2t_vit.training.setup import Run, open_to_train, rate_in_words

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
    predictor, failure = None, None
    try:
        predictor = Predictor(run.directory.best, machine=run.machine)
    except Exception as error:  # another machine may not see the file: all processes must know
        failure = f"{type(error).__name__}: {error}"
    if failures := [one for one in run.machine.gather(failure) if one is not None]:
        run.display.say(f"warning: {run.directory.report} is not written: {failures[0]}")
        return None
    assert predictor is not None
    run.val_batches.choose(range(len(run.source.val)))
    return _examine(
        predictor,
        run.val_loader,
        run.source,
        run.directory,
        partial(summarize, run.config, run.progress, run.source, run.directory, about=str(run)),
        display=run.display,
        is_finished=run.is_finished(),
        workers=run.config.workers,
        keep=run.directory.best,
    )


@one_of_several()
def report_command(config: ReportConfig) -> None:
    """Writes the report of a run, finished or not. Reads the run's files and changes nothing else in its folder.

    Raises:
        UserError: the folder holds no run, nothing was evaluated yet, or the run's data are not there, or are others.
    """
    directory = RunDirectory(Path(config.run))
    if not directory.last.exists():
        raise UserError(f"{config.run} holds no run: expected a folder with last.pt, as t2t-vit train leaves it.")
    state = read_training_state(directory.last)
    progress = Progress.from_plain(state["progress"])
    if progress.best is None:
        raise UserError(f"The run in {config.run} has not been evaluated yet: there is nothing to report.")
    settings = configure(TrainConfig, output=config.run, resume=True)
    machine = find_machine(config.device, amp=settings.amp, amp_dtype=settings.amp_dtype)
    source = open_to_train(settings)
    if state["split"] != source.split:
        raise UserError(
            f"The data of the run in {config.run} are others now: it would be measured on images that it may have "
            "learnt from. Put the files back as they were."
        )
    predictor = Predictor(directory.best, machine=machine)
    steps = f"step {progress.step:,} of {progress.plan.num_steps:,}"
    about = f"{settings.model}, {steps}, {rate_in_words(settings)}\nrun directory {config.run}"
    _examine(
        predictor,
        evaluation_loader(source.val, predictor.data_config, batch_size=64, machine=machine, workers=None),
        source,
        directory,
        partial(summarize, settings, progress, source, directory, about=about),
        display=Display(silent=not machine.is_main_process),
        is_finished=progress.evaluated_step == progress.plan.num_steps,
    )


def _examine(
    predictor: Predictor,
    loader: "DataLoader[Batch]",
    source: Source,
    directory: RunDirectory,
    summarize: Callable[..., RunSummary],
    *,
    display: Display,
    is_finished: bool,
    workers: int | None = None,
    keep: Path | None = None,
) -> Accuracy | None:
    """Predicts the validation images, calibrates, measures the test images of a finished run, and writes the report.

    Args:
        loader: of the validation images.
        keep: a checkpoint that the temperature is added to.
    """
    machine = predictor.machine
    predictions, calibration, test = None, None, None
    try:
        predictions = predict_all(predictor, loader, display, label="predicting for the report")
        calibration = calibrate(predictions.logits, predictions.labels)
        if calibration is not None:
            predictor.temperature = calibration.temperature
            if keep is not None:
                values = calibration.to_plain()
                machine.ask_main_process(lambda: add_calibration(keep, values))
    except (RuntimeError, UserError) as error:
        display.say(f"warning: {directory.report} is not written: {error}")
    if source.test is not None and is_finished:
        size = max(1, 64 // machine.world_size)
        images = evaluation_loader(
            source.test, predictor.data_config, batch_size=size, machine=machine, workers=workers
        )
        test = measure_accuracy(predictor, images, display, label="testing")
    if predictions is not None and machine.is_main_process:
        write_report(directory.report, partial(summarize, test=test), predictions, calibration, display=display)
    return test


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
    agreement = compare_labels(source, limit_s=LIMIT_S) if best.top1 < LOW_PERCENT else None
    is_stopped = progress.step < progress.plan.num_steps
    return RunSummary(
        title=f"{config.model} on {source.short_name}",
        about=about,
        metrics=progress.metrics,
        best=best,
        images=source.val,
        class_names=source.class_names,
        stopped_at=(progress.step, progress.plan.num_steps) if is_stopped else None,
        test=test,
        best_by=config.best_by,
        linear_percent=agreement.val_percent if agreement else None,
        augmented=directory.augmented if directory.augmented.exists() else None,
    )
