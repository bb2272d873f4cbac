"""How far a run is, and what it keeps of that on disk to go on from."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from t2t_vit.errors import UserError
from t2t_vit.training.checkpoints import link_checkpoint, plain, read_training_state, write_checkpoint
from t2t_vit.training.learner import Learner
from t2t_vit.training.logs import Display, RunDirectory
from t2t_vit.training.machine import Machine
from t2t_vit.training.settings import refuse_other_run


@dataclass
class Progress:
    """How far a run is; the part of its state that is not tensors.

    Attributes:
        epoch: the epoch that runs, from 0.
        batch: batches of it that are done.
        loss_sum: of the losses of its images.
        num_images: of these images.
        bad_steps: steps of the run that were skipped since a gradient was not finite.
        bad_in_a_row: the last of them.
        elapsed_s: time spent, before this start too.
        metrics: rows of the epochs that are done.
        unsaved: those of these epochs whose weights could not be written, and are lost.
        unreadable: what was said of images that could not be read.
    """

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    num_images: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    elapsed_s: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    unsaved: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch so far whose weights are kept, the first of equals."""
        saved = (row for row in self.metrics if row["epoch"] not in self.unsaved)
        return max(saved, key=lambda row: row.get("ema_top1", row["val_top1"]), default=None)

    def of_all(self, machine: Machine) -> "Progress":
        """The same with what each process has seen by itself taken together: losses, images, unreadable ones."""
        loss_sums, counts, sentences = zip(
            *machine.gather((self.loss_sum, self.num_images, self.unreadable)), strict=True
        )
        unreadable = list(dict.fromkeys(chain.from_iterable(sentences)))
        return replace(self, loss_sum=sum(loss_sums), num_images=sum(counts), unreadable=unreadable)


class Keeper:
    """Writes what a run needs to go on, and goes on from it. All processes call it together; the first one writes.

    Args:
        learner: what learns.
        facts: what a checkpoint says beside the settings, such as of its network.
        directory: of the run.
        display: tells what could not be written.

    Attributes:
        saved: whether the last checkpoint was written.
    """

    def __init__(self, learner: Learner, facts: dict[str, Any], directory: RunDirectory, display: Display) -> None:
        self.learner, self.directory, self.display = learner, directory, display
        self.config, self.machine = learner.config, learner.machine
        settings = {"config": plain(asdict(self.config))}
        self.facts = {**facts, **settings, "processes": self.machine.world_size, "precision": self.machine.precision}
        self.saved = False

    def save(self, progress: Progress, *, end_of_epoch: bool) -> None:
        """Writes last.pt and, after an epoch, what comes of it. A disk that is full now may not be at the next save.

        Raises:
            UserError: when it cannot be written after the last epoch; else that is told.
        """
        contents = {
            **self.facts,
            **self.learner.state(),
            "progress": asdict(progress.of_all(self.machine)),
            "epoch": progress.epoch - 1,
            "metrics": progress.metrics[-1] if progress.metrics else {},
        }

        def write() -> None:
            write_checkpoint(self.directory.last, contents)
            if end_of_epoch:
                self._file_epoch(progress)

        failures = [self._failure(write)]
        self.saved = failures[0] is None
        if end_of_epoch:
            if not self.saved:
                progress.unsaved.append(progress.epoch - 1)
            failures.append(self._failure(lambda: self.directory.write_metrics(progress.metrics)))
        for failure in filter(None, failures):
            if progress.epoch == self.config.epochs:
                raise failure
            self.display.say(f"warning: {failure}")

    def record_bad_step(self, step: dict[str, Any]) -> None:
        """Notes a step that was skipped."""
        if failure := self._failure(lambda: self.directory.record_bad_step(step)):
            self.display.say(f"warning: {failure}")

    def restore(self) -> Progress:
        """Takes up where last.pt left.

        Raises:
            UserError: when it cannot be read, or the settings are such that the result would be another.
        """
        state = read_training_state(self.directory.last)
        refuse_other_run(state, self.facts)
        if state["processes"] != self.machine.world_size:  # refused, a run whose GPU broke could not go on at all
            self.display.say(
                f"warning: the run had {state['processes']} processes, and goes on with {self.machine.world_size}. It "
                "draws the same images, but other random numbers for mixup and dropout, and rounds in another order."
            )
        self.learner.load_state(state)
        progress = Progress(**state["progress"])
        if not self.machine.is_first:  # its sums are those of all
            progress.loss_sum, progress.num_images = 0.0, 0
        if progress.batch == 0 and progress.metrics:  # it may have died before it came to this
            self.machine.ask_first(lambda: self._file_epoch(progress))
            self.machine.ask_first(lambda: self.directory.write_metrics(progress.metrics))
        self.display.say(f"Continuing {self.directory.path} at epoch {progress.epoch + 1}, batch {progress.batch + 1}.")
        return progress

    def _file_epoch(self, progress: Progress) -> None:
        """What follows from last.pt after an epoch: best.pt and the checkpoints of the last epochs."""
        epoch = progress.epoch - 1
        best = progress.best()
        if best is not None and best["epoch"] == epoch:
            link_checkpoint(self.directory.last, self.directory.best)
        if self.config.checkpoint_hist > 1:
            link_checkpoint(self.directory.last, self.directory.of_epoch(epoch))
            self.directory.forget_epochs_before(epoch - self.config.checkpoint_hist + 1)

    def _failure(self, write: Callable[[], None]) -> UserError | None:
        """Lets the first process write; what kept it from that, in every process."""
        try:
            self.machine.ask_first(write)
        except UserError as error:
            return error
        return None
