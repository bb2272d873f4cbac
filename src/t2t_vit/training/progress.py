"""How far a run is."""

from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from t2t_vit.runtime.machine import Machine


@dataclass
class Progress:
    """How far a run is: the part of its state that is not tensors.

    Attributes:
        step: steps that are done, skipped ones included.
        loss_sum: sum of the losses of the images since the last evaluation.
        num_images: number of these images.
        bad_steps: steps that were skipped because their gradient was not finite.
        bad_in_a_row: how many of them came last, without a good one in between.
        elapsed_s: time spent, before an interruption too.
        metrics: the rows of metrics.jsonl, one for each evaluation.
        unsaved: the epochs whose weights could not be written, and are lost.
        unreadable: a sentence for each image that could not be read.
    """

    step: int = 0
    loss_sum: float = 0.0
    num_images: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    elapsed_s: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    unsaved: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def evaluated_step(self) -> int:
        """The steps that were done at the last evaluation."""
        return self.metrics[-1]["step"] if self.metrics else 0

    def best(self) -> dict[str, Any] | None:
        """The row of the best evaluation so far whose weights are kept, the first of equals."""
        saved = (row for row in self.metrics if row["epoch"] not in self.unsaved)
        return max(saved, key=top1_of, default=None)

    def of_all(self, machine: Machine) -> "Progress":
        """The same progress with the losses, images and unreadable images of all processes taken together."""
        loss_sums, counts, sentences = zip(
            *machine.gather((self.loss_sum, self.num_images, self.unreadable)), strict=True
        )
        unreadable = list(dict.fromkeys(chain.from_iterable(sentences)))
        return replace(self, loss_sum=sum(loss_sums), num_images=sum(counts), unreadable=unreadable)

    def add_row(self, row: dict[str, Any]) -> None:
        """Notes an evaluation; the losses of what comes after it are summed anew."""
        self.metrics.append(row)
        self.loss_sum, self.num_images = 0.0, 0


def top1_of(row: dict[str, Any]) -> float:
    """The accuracy by which an evaluation is judged: that of the averaged weights where they are kept."""
    return row.get("ema_top1", row["val_top1"])
