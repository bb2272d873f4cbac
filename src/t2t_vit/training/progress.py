"""How far a run is, and what it keeps of that on disk to go on from."""

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from t2t_vit.runtime.machine import Machine


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
