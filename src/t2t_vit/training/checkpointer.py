"""Our checkpoint files: enough to be used alone, and to go on training."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from t2t_vit.errors import UserError
from t2t_vit.models.checkpoint_formats import FORMAT, VERSION
from t2t_vit.pictures.report import Best
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.files import plain, whole_file, write_errors_told
from t2t_vit.training.learner import Learner
from t2t_vit.training.progress import AVERAGED, Progress
from t2t_vit.training.run_directory import RunDirectory
from t2t_vit.training.settings import refuse_other_run


def model_section(
    name: str, model_args: Mapping[str, Any], *, class_names: Sequence[str], data_config: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint says of its network: enough to rebuild it without anything else.

    Args:
        name: its registered name.
        model_args: arguments of `timm.create_model` that differ from the registered ones.
        class_names: labels in the order of the head's outputs.
        data_config: input_size, mean, std, crop_pct and interpolation of evaluation.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": name,
        "model_args": plain(model_args),
        "class_names": list(class_names),
        "data_config": plain(data_config),
    }


def write_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Writes a `whole_file` of tensors and plain Python values."""
    with whole_file(path) as file:
        torch.save(contents, file)


def link_checkpoint(path: Path, name: Path) -> None:
    """Gives a checkpoint a second name, whole or not at all; the file is not written twice where the disk has links.

    Raises:
        UserError: when it cannot be done.
    """
    temporary = name.with_name(name.name + ".tmp")
    with write_errors_told(name):
        temporary.unlink(missing_ok=True)
        try:
            temporary.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, temporary)
        temporary.replace(name)
        temporary.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def read_weights(path: Path) -> dict[str, Any]:
    """The weights in a checkpoint of ours."""
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]


def add_calibration(path: Path, calibration: Mapping[str, Any]) -> None:
    """Adds a temperature, and what it brings, to a checkpoint with the best weights.

    Raises:
        UserError: it cannot be written.
    """
    write_checkpoint(path, torch.load(path, map_location="cpu", weights_only=True) | {"calibration": dict(calibration)})


def read_training_state(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, to go on training from.

    Raises:
        UserError: when there is none, or it is damaged or another file.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no {path} to continue from: start without --resume.") from None
    except Exception as error:
        raise UserError(f"{path} is damaged and cannot be continued from: {error}") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT or "progress" not in contents:
        raise UserError(
            f"{path} is no checkpoint that a run left to be continued from. To start from its weights, "
            "give it to --checkpoint, with another --output."
        )
    return contents


def read_channels(path: Path) -> dict[str, Any]:
    """Mean and standard deviation of each channel, as a checkpoint of ours has them."""
    data_config = read_training_state(path)["data_config"]
    return {name: data_config[name] for name in ("mean", "std")}


class Checkpointer:
    """Writes what a run needs to go on, and restores it. All processes call it together; the main process writes.

    Args:
        learner: holds the weights and the optimiser.
        facts: what a checkpoint says besides the settings, such as of its network.
        directory: the run's files.
        display: tells what could not be written.

    Attributes:
        saved: whether the last checkpoint was written.
        best: the best weights that best.pt holds.
    """

    def __init__(self, learner: Learner, facts: dict[str, Any], directory: RunDirectory, display: Display) -> None:
        self.learner, self.directory, self.display = learner, directory, display
        self.config, self.machine = learner.config, learner.machine
        self.about = facts
        settings = {"config": plain(asdict(self.config))}
        self.facts = {**facts, **settings, "processes": self.machine.world_size, "precision": self.machine.precision}
        self.saved = False
        self.best: Best | None = None

    def save(self, progress: Progress, *, evaluated: bool) -> None:
        """Writes last.pt and, after an evaluation, best.pt and the metrics.

        Raises:
            UserError: a file cannot be written after the last step. Before, that is only told: a disk that is full now
                may not be at the next save.
        """
        contents = {
            **self.facts,
            **self.learner.state(),
            "progress": progress.of_all(self.machine).to_plain(),
            "metrics": progress.metrics[-1] if progress.metrics else {},
        }
        failures = [self._failure(lambda: write_checkpoint(self.directory.last, contents))]
        self.saved = failures[0] is None
        if evaluated:
            failures.append(self._failure(lambda: self._file_evaluation(progress)))
            if failures[-1] is None:
                self.best = progress.best
            else:
                progress.best = self.best
            failures.append(self._failure(lambda: self.directory.write_metrics(progress.metrics)))
        for failure in filter(None, failures):
            if evaluated and progress.step == progress.plan.num_steps:
                raise failure
            self.display.say(f"warning: {failure}")

    def record_bad_step(self, step: dict[str, Any]) -> None:
        """Notes a step that was skipped."""
        if failure := self._failure(lambda: self.directory.record_bad_step(step)):
            self.display.say(f"warning: {failure}")

    def restore(self) -> Progress:
        """Restores the learner from last.pt, and returns how far the run was.

        Raises:
            UserError: last.pt cannot be read, or was written under settings that would change the result.
        """
        state = read_training_state(self.directory.last)
        progress = Progress.from_plain(state["progress"])
        held = self.machine.ask_main_process(self._held_after_training)
        if held is not None and progress.best is not None and held.step == progress.best.step:
            progress.best = held  # the run died before last.pt said so
        refuse_other_run(state, self.facts, is_fitted=progress.best is not None and progress.best.refitted)
        if state["processes"] != self.machine.world_size:  # refused, a run whose GPU broke could not go on at all
            self.display.say(
                f"warning: the run had {state['processes']} processes, and goes on with {self.machine.world_size}. It "
                "draws the same images, but other random numbers for mixup and dropout, and rounds in another order."
            )
        self.learner.load_state(state)
        if not self.machine.is_main_process:  # the sums in the file are those of all processes
            progress.loss_sum, progress.num_images = 0.0, 0
        if progress.metrics and progress.step == progress.evaluated_step:  # the run may have died before these writes
            self.machine.ask_main_process(lambda: self._file_evaluation(progress))
            self.machine.ask_main_process(lambda: self.directory.write_metrics(progress.metrics))
        self.best = progress.best
        return progress

    def _held_after_training(self) -> Best | None:
        """What best.pt holds, where that was made after training."""
        if not self.config.refit_head or not self.directory.best.is_file():
            return None
        chosen = torch.load(self.directory.best, map_location="cpu", weights_only=True).get("chosen", {})
        return Best(**chosen) if chosen.get("refitted") else None

    def _file_evaluation(self, progress: Progress) -> None:
        """Writes best.pt where the best weights are other ones than it holds, and keeps the last checkpoints."""
        best, epoch = progress.best, progress.metrics[-1]["epoch"]
        if best is not None and best != self.best and not best.refitted:  # `keep_best` wrote those
            if best.step == progress.step:
                state = self.learner.weights(averaged=best.weights == AVERAGED)
            else:  # the same weights as before, judged anew
                state = read_weights(self.directory.best)
            self._write_best(best, state)
        if self.config.checkpoint_hist > 1:
            link_checkpoint(self.directory.last, self.directory.of_epoch(epoch))
            self.directory.keep_newest_epochs(self.config.checkpoint_hist)

    def keep_best(self, best: Best, weights: Mapping[str, Any]) -> None:
        """Writes best.pt with weights that were made after training.

        Raises:
            UserError: it cannot be written.
        """
        self.machine.ask_main_process(lambda: self._write_best(best, weights))
        self.best = best

    def _write_best(self, best: Best, weights: Mapping[str, Any]) -> None:
        write_checkpoint(self.directory.best, {**self.about, "state_dict": weights, "chosen": best._asdict()})

    def _failure(self, write: Callable[[], None]) -> UserError | None:
        """Lets the main process write. Returns, in every process, why that failed; None where it did not."""
        try:
            self.machine.ask_main_process(write)
        except UserError as error:
            return error
        return None
