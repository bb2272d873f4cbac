"""How long a run trains, and when it is evaluated: from steps, epochs or time, and from how fast the machine is."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from t2t_vit.data.loading import Batch
from t2t_vit.runtime.durations import format_duration, parse_duration
from t2t_vit.training.config import TrainConfig
from t2t_vit.training.learner import Learner

PASSES, FEWEST_STEPS = 100, 600
"""What a run takes where nobody says: so many passes over the images, and at least so many steps."""
CPU_LIMIT_S = 30 * 60
"""The longest that a run takes on a CPU where nobody says."""
NUM_EVALUATIONS = 20
"""Evaluations that a learning curve wants."""
FEWEST_EVALUATED = 500
"""Images of an evaluation below which it is better to evaluate less often."""
FITTED_IMAGES = 5000
"""Training images that a head is fitted to at most after training."""
NUM_REHEARSED, REHEARSAL_S = 6, 3.0
"""Batches that the speed is measured on, and the time after which no further one is begun."""
IMAGES_ON_CPU, WHOLE_BATCH_S = 16, 1.0
"""Images that stand for a batch where a batch takes a CPU longer than that."""


@dataclass(frozen=True)
class Speed:
    """How fast the machine is, as measured before the first step.

    Attributes:
        step_s: seconds of a training step, the wait for its images included.
        image_s: seconds of evaluating one image by one network, over all processes.
    """

    step_s: float
    image_s: float


@dataclass(frozen=True)
class Plan:
    """How long a run trains, and when it is evaluated. A checkpoint keeps the plan, so that a resumed run follows it.

    Attributes:
        num_steps: steps of the whole run.
        eval_every: steps between evaluations.
        eval_images: validation images of the evaluations in between; the last one takes them all.
        is_estimate: whether the number of steps follows from a time limit, and is corrected once on the way.
        limit_s: the time limit, None without one.
        wanted: steps that the run takes if the time allows, None for as many as it allows.
        final_s: time that the last evaluation and the report take.
    """

    num_steps: int
    eval_every: int
    eval_images: int
    is_estimate: bool = False
    limit_s: float | None = None
    wanted: int | None = None
    final_s: float = 0.0

    @property
    def correction_step(self) -> int:
        """The step at which an estimate is corrected: a fifth of the run, which tells more than its first steps."""
        return max(1, self.num_steps // 5)

    def corrected(self, *, step: int, elapsed_s: float) -> "Plan":
        """The plan with the steps that the time limit has room for, as the steps so far took `elapsed_s`."""
        assert self.limit_s is not None
        left = int(max(0.0, self.limit_s - self.final_s - elapsed_s) / (elapsed_s / step))
        steps = step + max(1, left)
        return replace(self, num_steps=min(steps, self.wanted or steps), is_estimate=False)


def make_plan(
    config: TrainConfig,
    speed: Speed,
    *,
    num_val: int,
    steps_per_epoch: int,
    num_train: int,
    on_cpu: bool,
    probe_s: float = 0.0,
) -> Plan:
    """The plan of a run that starts now.

    The steps are those of --steps, of --epochs, or as many as --max-time has room for. Where none is given, they are
    `PASSES` over the images and at least `FEWEST_STEPS`; on a CPU as many as fit into `CPU_LIMIT_S`, if that is fewer.
    An evaluation takes `probe_s` seconds besides.
    """
    limit_s = parse_duration(config.max_time) if config.max_time else None
    wanted = config.steps or (config.epochs or 0) * steps_per_epoch
    if not wanted and limit_s is None:
        wanted = max(FEWEST_STEPS, PASSES * steps_per_epoch)
        limit_s = CPU_LIMIT_S if on_cpu else None
    networks = 2 if config.model_ema else 1
    # The last evaluation, that of the best weights, the report, and the head that is fitted anew.
    num_final = (networks + 2) * num_val
    if config.refit_head:
        num_final += min(num_train, FITTED_IMAGES) + 2 * num_val
    final_s = num_final * speed.image_s + probe_s
    steps, is_estimate = wanted, False
    if limit_s is not None:
        fitting = max(1, int((limit_s - final_s) / (1 + (config.eval_share or 0)) / speed.step_s))
        steps, is_estimate = min(wanted or fitting, fitting), True
    every, images = _evaluations(config, speed, steps, steps_per_epoch, num_val, networks, probe_s)
    return Plan(steps, every, images, is_estimate, limit_s, wanted or None, final_s)


def _evaluations(
    config: TrainConfig, speed: Speed, steps: int, steps_per_epoch: int, num_val: int, networks: int, probe_s: float
) -> tuple[int, int]:
    """Steps between evaluations, and their images, so that they take at most `eval_share` of the time.

    All images where that leaves `NUM_EVALUATIONS` or one an epoch; else a part of them, of `FEWEST_EVALUATED` at least;
    else fewer evaluations.
    """
    if config.eval_every is not None:
        return config.eval_every, num_val
    if config.eval_share == 1:
        return steps_per_epoch, num_val
    time_s = config.eval_share / (1 - config.eval_share) * steps * speed.step_s
    affordable = time_s / (networks * speed.image_s)  # images, over the whole run
    most = max(1, math.ceil(steps / steps_per_epoch))  # never more often than once an epoch
    images = min(num_val, max(FEWEST_EVALUATED, int(affordable / min(NUM_EVALUATIONS, most))))
    times = max(1, min(most, int(time_s / (networks * images * speed.image_s + probe_s))))
    return steps_per_epoch * math.ceil(math.ceil(steps / times) / steps_per_epoch), images


def measure_speed(learner: Learner, train_batches: Iterable[Batch], val_batches: Iterable[Batch]) -> Speed:
    """Measures the speed on some batches, and takes the steps back. The first of each kind warms up.

    A part of a batch stands for the whole where that would take long, so that a large network keeps nobody waiting.
    """
    machine = learner.machine
    is_whole = machine.device.type != "cpu" or learner.config.compile  # another size would be compiled anew
    with learner.rehearsal():
        image_s, num_images = _measure(
            learner.time_step, train_batches, agree=machine.in_any_process, is_whole=is_whole
        )
    step_s = image_s * num_images
    image_s, _ = _measure(learner.time_evaluation, val_batches, agree=bool, is_whole=is_whole)
    step_s, image_s = (max(seconds) for seconds in zip(*machine.gather((step_s, image_s)), strict=True))
    return Speed(step_s, image_s / machine.world_size)


def _measure(
    time_batch: Callable[[Batch], float], batches: Iterable[Batch], *, agree: Callable[[bool], bool], is_whole: bool
) -> tuple[float, float]:
    """The mean time of an image, the wait for its batch included, and the mean number of images in a batch.

    Args:
        time_batch: computes a batch, and returns how long that took, in seconds.
        batches: of which the first one warms up.
        agree: tells from whether this process has rehearsed for `REHEARSAL_S` whether all are to stop.
        is_whole: whether a batch is computed whole even if that takes long.

    Returns:
        Two zeros where this process has no batch.
    """
    seconds: list[float] = []
    sizes: list[int] = []
    since = end = time.monotonic()
    for batch in batches:
        wait_s = time.monotonic() - since
        size = len(batch.images) if is_whole else min(len(batch.images), IMAGES_ON_CPU)
        part = batch._replace(images=batch.images[:size], targets=batch.targets[:size])
        batch_s = time_batch(part) * len(batch.images) / max(size, 1)
        is_whole = is_whole or batch_s < WHOLE_BATCH_S
        seconds.append(wait_s + batch_s if seconds else batch_s)  # the first also waits for the workers to start
        sizes.append(len(batch.images))
        since = time.monotonic()
        if len(seconds) == 1:
            end = since + REHEARSAL_S
        elif agree(since > end):
            break
    rest = slice(1, None) if len(seconds) > 1 else slice(None)
    return sum(seconds[rest]) / max(sum(sizes[rest]), 1), sum(sizes) / max(len(sizes), 1)


def expectation(plan: Plan, speed: Speed, *, networks: int, num_val: int, probe_s: float = 0.0) -> str:
    """The line before the first step: how long the run is going to take, and what for."""
    rounds = plan.num_steps // plan.eval_every
    round_s = networks * plan.eval_images * speed.image_s + probe_s
    seconds = plan.num_steps * speed.step_s + rounds * round_s + plan.final_s - probe_s
    part = f"{plan.eval_images:,} of {num_val:,} validation images" if plan.eval_images < num_val else "evaluation"
    return (
        f"expected: {format_duration(seconds)} for {plan.num_steps:,} steps of {speed.step_s:.2g} s, "
        f"{part} every {plan.eval_every:,} steps"
    )
