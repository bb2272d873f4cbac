"""How far a run is."""

from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

from t2t_vit.pictures.report import Best
from t2t_vit.runtime.machine import Machine
from t2t_vit.training.plan import Plan

RAW, AVERAGED = "last weights", "averaged weights"


@dataclass
class Progress:
    """How far a run is: the part of its state that is not tensors.

    Attributes:
        plan: how long the run trains, and when it is evaluated.
        step: steps that are done, skipped ones included.
        loss_sum: sum of the losses of the images since the last evaluation.
        num_images: number of these images.
        bad_steps: steps that were skipped because their gradient was not finite.
        bad_in_a_row: how many of them came last, without a good one in between.
        elapsed_s: time spent, before an interruption too.
        metrics: the rows of metrics.jsonl, one for each evaluation.
        best: the best weights so far that could be written, None before the first evaluation.
        probe_at_start: what the probe said of the untrained network, None without a probe.
        unreadable: a sentence for each image that could not be read.
    """

    plan: Plan = field(default_factory=lambda: Plan(1, 1, 1))
    step: int = 0
    loss_sum: float = 0.0
    num_images: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    elapsed_s: float = 0.0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best: Best | None = None
    probe_at_start: float | None = None
    unreadable: list[str] = field(default_factory=list)

    @property
    def evaluated_step(self) -> int:
        """The steps that were done at the last evaluation."""
        return self.metrics[-1]["step"] if self.metrics else 0

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

    def to_plain(self) -> dict[str, Any]:
        """Plain Python values for a checkpoint."""
        return asdict(self) | {"best": self.best and list(self.best)}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> "Progress":
        """The progress of which `to_plain` made these values."""
        best = values["best"]
        return cls(**values | {"plan": Plan(**values["plan"]), "best": best and Best(*best)})


def judge(row: dict[str, Any], best_by: str) -> Best:
    """The better ones of an evaluation's raw and averaged weights, the averaged ones where both are as good."""
    return max(_found(row), key=lambda best: best.score(best_by))  # the first of equal ones


def steadiest(row: dict[str, Any]) -> Best:
    """An evaluation's averaged weights, or its raw ones in a run without an average."""
    return _found(row)[0]


def _found(row: dict[str, Any]) -> list[Best]:
    kinds = {AVERAGED: "ema", RAW: "val"} if "ema_top1" in row else {RAW: "val"}
    return [
        Best(row["step"], row["epoch"], weights, row[f"{name}_top1"], row["val_images"], row[f"{name}_balanced"])
        for weights, name in kinds.items()
    ]
