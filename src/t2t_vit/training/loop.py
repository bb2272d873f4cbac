"""The training loop: one for every recipe.

Everything random is drawn anew from (seed, epoch, step): order and augmentation by the loader, erasing, mixup and
dropout by a seed set before each step. So a run that continues from a checkpoint needs no state of random number
generators, and ends with the very weights of a run that was never stopped.
"""

import math
from typing import Any

from timm.utils import distribute_bn
from torch import nn

from t2t_vit.data.loading import Batch
from t2t_vit.errors import UserError, abbreviate
from t2t_vit.inference.evaluate import Accuracy, measure_accuracy
from t2t_vit.inference.predictor import Predictor
from t2t_vit.pictures.report import Best
from t2t_vit.runtime.durations import format_duration
from t2t_vit.runtime.hardware import peak_bytes
from t2t_vit.runtime.stopwatch import shares_in_words
from t2t_vit.training.progress import judge, steadiest
from t2t_vit.training.run_directory import numbers_of
from t2t_vit.training.setup import Run

MAX_BAD_STEPS = 10
"""Steps in a row without a finite gradient after which a run stops: it does not recover from more by itself."""
FEW_IMAGES = 1000
"""Validation images below which the best of many evaluations is best by chance."""
CLEARLY = 3.0
"""Standard errors by which others must be better: of twenty evaluations the best is one or two above the truth."""
CLEAR_AFTER = 0.1
"""Share of the steps after which a pre-training must have learnt something."""
LEARNT_SHARE = 0.9
"""Share of the loss of guessing above which hardly anything is learnt."""


def fit(run: Run) -> None:
    """Trains to the last step, or until the run is asked to end.

    Every so often it evaluates the network and its averaged weights, and keeps the better ones if they are the best so
    far. It saves before an evaluation too, which may take long.

    Raises:
        UserError: the gradient stays infinite, or the last checkpoint cannot be written.
    """
    progress = run.progress
    with run.interruption.watch(), run.display.table(*columns(run)) as table:
        while not run.is_finished():
            timing = learn_until(run, run.next_stop())
            run.correct_plan()
            run.save()
            if run.interruption.in_any_process():
                return
            if progress.step < run.next_evaluation():
                continue
            row = evaluate_round(run)
            best = best_of(run, row, is_last=progress.step == progress.plan.num_steps)
            if not run.interruption.in_only_process() and run.stop_early(best):
                row = evaluate_round(run)  # on all images
                best = best_of(run, row)
            if run.interruption.in_only_process():
                return  # this evaluation is repeated when the run goes on
            memory_gb = peak_bytes(run.machine.device) / 2**30
            progress.add_row({**row, **timing, "memory_gb": memory_gb, "elapsed_s": run.elapsed_s()})
            progress.best = best
            run.save(evaluated=True)
            table.add(progress_cells(run), progress_line(run), is_best=best.step == progress.step)
            run.trackers.log(numbers_of(progress.metrics[-1]))
            if run.interruption.in_any_process():
                return


def learn_until(run: Run, last_step: int) -> dict[str, float]:
    """Updates the weights up to this step, or until the run is asked to end.

    Returns:
        Columns of metrics.jsonl: how fast it went, and where the time went.
    """
    progress, learner, watch = run.progress, run.learner, run.learner.watch
    images_before = progress.num_images
    run.batches.set_steps(progress.step, last_step)
    learner.prepare()
    with run.display.steps("training", progress.plan.num_steps, done=progress.step) as bar:
        for batch in run.train_loader:
            watch.lap("data_wait")
            warn_of_unreadable(run, batch)
            result = learner.learn(batch, progress.step)
            if result.updated:
                progress.bad_in_a_row = 0
                progress.loss_sum += result.loss_sum
                progress.num_images += result.num_images
            else:
                skip_step(run, batch, result.loss_sum)
            progress.step += 1
            bar.advance(f"loss {progress.loss_sum / max(progress.num_images, 1):.4f}")
            watch.lap("host")
            interrupted = run.interruption.in_any_process()
            watch.lap("device_wait")  # several processes wait here for one another
            if interrupted:
                break
            every = run.config.checkpoint_every
            if every > 0 and progress.step % every == 0 and progress.step < last_step:
                run.save()
                watch.lap("checkpoint")
    return watch.read((progress.num_images - images_before) * run.machine.world_size)


def evaluate_round(run: Run) -> dict[str, Any]:
    """Measures the network, and its averaged weights where they are kept, on validation images: at the end on all.

    Returns:
        Columns of metrics.jsonl. They are incomplete where the run is asked to end meanwhile.
    """
    total = run.progress.of_all(run.machine)
    run.choose_validation_images()
    found = measure(run, run.model, "validating")
    row = {
        "epoch": (total.step - 1) // run.steps_per_epoch,
        "step": total.step,
        "lr": run.learner.optimizer.param_groups[0]["lr"],
        "train_loss": total.loss_sum / total.num_images if total.num_images else None,
        "val_loss": found.loss,
        "val_top1": found.top1,
        "val_top5": found.top5,
        "val_balanced": found.balanced,
        "val_recalls": list(found.recalls),
        "val_images": found.num_images,
    }
    if run.config.model_ema and not run.interruption.in_only_process():
        averaged = measure(run, run.learner.averaged_model(), "validating the average")
        row |= {"ema_top1": averaged.top1, "ema_balanced": averaged.balanced, "ema_recalls": list(averaged.recalls)}
    if run.probe is not None and not run.interruption.in_only_process():
        probed = run.learner.averaged_model() if run.config.model_ema else run.model
        row["probe_top1"] = run.probe.measure(probed, run.machine, run.data_config)
    if run.source.train.generate is not None and not run.interruption.in_only_process():
        warn_of_little_learnt(run, row)
    if found.unreadable and not run.progress.metrics:
        warn(run, "validation goes on without", found.unreadable)
    return row


def warn_of_little_learnt(run: Run, row: dict[str, Any]) -> None:
    """Says where a pre-training hardly tells its classes apart, or makes features that are worth less than none."""
    progress, num_classes = run.progress, len(run.source.class_names)
    if progress.step < CLEAR_AFTER * progress.plan.num_steps:
        return
    guessing = math.log(num_classes)
    if row["val_loss"] > LEARNT_SHARE * guessing:
        run.display.say(
            f"warning: after {progress.step:,} steps the validation loss is {row['val_loss']:.2f}, where guessing "
            f"among {num_classes:,} classes has {guessing:.2f}: hardly anything is learnt; try another --opt or --lr"
        )
    elif progress.probe_at_start is not None and row["probe_top1"] < progress.probe_at_start:
        assert run.probe is not None
        run.display.say(
            f"warning: on {run.probe.name}, the features give {row['probe_top1']:.2f} %, those of the untrained "
            f"network gave {progress.probe_at_start:.2f} %: what is learnt does not help there"
        )


def measure(run: Run, model: nn.Module, label: str) -> Accuracy:
    """Measures a network on the chosen validation images."""
    if run.machine.world_size > 1:
        distribute_bn(model, run.machine.world_size)  # the main process's statistics, which are saved
    predictor = Predictor(model, machine=run.machine, data_config=run.data_config, class_names=run.source.class_names)
    stop = run.interruption.in_only_process
    return measure_accuracy(predictor, run.val_loader, run.display, label=label, stop=stop)


def best_of(run: Run, row: dict[str, Any], *, is_last: bool = False) -> Best:
    """The better ones of the weights just evaluated and the best so far.

    Evaluations in between may be on a part of the validation images, and the last one is on all. So the best weights
    of before are measured on all images too. Of equal ones the first stay the best. But few images find weights equal
    or better by chance: there the averaged weights of the last step, which have learnt longest, are the best unless
    others are clearly better. A run that patience ended keeps the best: its rate had not fallen yet.
    """
    best_by = run.config.best_by
    best, candidate = run.progress.best, judge(row, best_by)
    if best is not None and best.num_images != candidate.num_images:
        found = measure(run, run.load_best(), "validating the best so far")
        best = best._replace(top1=found.top1, balanced=found.balanced, num_images=found.num_images)
    if best is None or candidate.score(best_by) > best.score(best_by):
        best = candidate
    if is_last and row["val_images"] < FEW_IMAGES:
        last = steadiest(row)
        return last if best.score(best_by) - last.score(best_by) < CLEARLY * best.standard_error(best_by) else best
    return best


def skip_step(run: Run, batch: Batch, loss_sum: float) -> None:
    """Counts and records a step that is not taken; ends the run when too many come one after another."""
    progress = run.progress
    progress.bad_steps += 1
    progress.bad_in_a_row += 1
    epoch, number = divmod(progress.step, run.steps_per_epoch)
    names = [run.source.train.names[index] for index in batch.indices.tolist()]
    files = [name for names_of_one in run.machine.gather(names) for name in names_of_one]
    run.checkpointer.record_bad_step({"epoch": epoch, "batch": number, "loss": str(loss_sum), "files": files})
    run.display.say(
        f"warning: epoch {epoch + 1}, batch {number + 1}: the loss or its gradient is not finite; "
        f"step skipped, its images are in {run.directory.bad_steps}"
    )
    if progress.bad_in_a_row >= MAX_BAD_STEPS:
        last = run.directory.last
        kept = f"{last} is the last good checkpoint" if last.exists() else "nothing saved"
        raise UserError(
            f"{MAX_BAD_STEPS} steps in a row had no finite loss; {kept}. Look at the images in "
            f"{run.directory.bad_steps}; lower --lr, set --clip-grad 1, or use --no-amp, in another --output."
        )


def warn_of_unreadable(run: Run, batch: Batch) -> None:
    """Names the images of a batch that could not be read, each once in a run."""
    if news := [sentence for sentence in batch.unreadable if sentence not in run.progress.unreadable]:
        run.progress.unreadable += news
        warn(run, "training goes on without", news)


def warn(run: Run, what: str, sentences: list[str] | tuple[str, ...]) -> None:
    """Prints a warning with the first of the sentences."""
    run.display.say(f"warning: {what}: {abbreviate(sentences, separator='; ')}")


def columns(run: Run) -> list[str]:
    """The heading of the table on the terminal."""
    kind = "balanced" if run.config.best_by == "balanced" else "top-1"
    probe = [] if run.probe is None else ["probe %"]
    return ["step", "epoch", "loss", "val loss", f"{kind} %", "average %", *probe, "images/s", "left"]


def progress_cells(run: Run) -> list[str]:
    """The row of the table on the terminal after an evaluation."""
    row, kind = run.progress.metrics[-1], run.config.best_by
    average = f"{row[f'ema_{kind}']:.2f}" if "ema_top1" in row else ""
    return [
        f"{row['step']:,}",
        f"{row['epoch'] + 1}",
        _loss_in_words(row),
        f"{row['val_loss']:.4f}",
        f"{row[f'val_{kind}']:.2f}",
        average,
        *([] if run.probe is None else [f"{row['probe_top1']:.2f}"]),
        f"{row['images_per_second']:,.0f}",
        format_duration(_remaining_s(run)),
    ]


def _loss_in_words(row: dict[str, Any]) -> str:
    return "none" if row["train_loss"] is None else f"{row['train_loss']:.4f}"


def _remaining_s(run: Run) -> float:
    row, progress = run.progress.metrics[-1], run.progress
    return row["elapsed_s"] / progress.step * (progress.plan.num_steps - progress.step)


def progress_line(run: Run) -> str:
    """The line of a log after an evaluation."""
    row, progress = run.progress.metrics[-1], run.progress
    num_steps = progress.plan.num_steps
    kind, name = ("balanced", "balanced") if run.config.best_by == "balanced" else ("top1", "top-1")
    step = f"step {progress.step:{len(str(num_steps))}d}/{num_steps}"
    ema = f"  EMA {row[f'ema_{kind}']:6.2f} %" if "ema_top1" in row else ""
    probe = "" if run.probe is None else f"  probe {row['probe_top1']:6.2f} %"
    return (
        f"{step}  epoch {row['epoch'] + 1}  loss {_loss_in_words(row)}  "
        f"val loss {row['val_loss']:.4f}  {name} {row[f'val_{kind}']:6.2f} %{ema}{probe}  lr {row['lr']:.2e}  "
        f"{row['images_per_second']:.0f} images/s  {shares_in_words(row)}  {row['memory_gb']:.1f} GB  "
        f"{format_duration(_remaining_s(run))} left"
    )
