"""The small-data study: arms over sets, labels a class and seeds, one row a run, and a table with paired differences.

    python benchmarks/small_sets.py sets
    python benchmarks/small_study.py --sets-folder sets --sets digits,letters,crops --labels 10,20 --seeds 5 --steps 300 \\
        --arms t2t,resnet18 --output results.csv
    python benchmarks/small_study.py --summary results.csv --base t2t --plot curves.png

An arm is a name with settings of `t2t_vit.train`, a line of small_arms.yaml; what it leaves open is the recipe's. Beside
--grid lr=2e-4,5e-4 weight_decay=0.05,0.2 each arm runs with each pair of values. Runs whose row is in the output are
skipped, so that a study goes on where it was stopped. Two of them may run at once, each with its own output.

A run trains as `t2t_vit.train` does, and writes no report. All arms see the same labels with the same seed. top1 and
loss are of the weights that the run chose by a fifth of its labels, average_top1 of the averaged weights of the last
step, both on val/, by which nothing is chosen; where the arm fits heads anew, both with such a head. cpu_s and wall_s are
of the steps, the evaluations between them, and that head.
"""

import argparse
import csv
import itertools
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure

from t2t_vit.errors import UserError, closest
from t2t_vit.inference.evaluate import Accuracy, measure_accuracy
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.insight.complexity import count_parameters
from t2t_vit.options import build
from t2t_vit.pictures.label_curves import draw_label_curves
from t2t_vit.pictures.style import styled
from t2t_vit.runtime.console import Display
from t2t_vit.training.build import goes_back
from t2t_vit.training.config import BUDGETS, TrainConfig
from t2t_vit.training.head import part_of_the_way_back, refit, refit_best
from t2t_vit.training.loop import fit
from t2t_vit.training.setup import Run, setup

ARMS = Path(__file__).with_name("small_arms.yaml")
SHARED: dict[str, Any] = {
    "img_size": 64,
    "crop_pct": 1.0,  # timm's networks crop to 0.875 to 0.95 of an image, each its own part
    "device": "cpu",
    "workers": 0,
}
EVALUATIONS = 10  # weights that a run chooses from
COLUMNS = (
    "arm", "set", "labels_per_class", "labels", "seed", "budget", "steps", "top1", "loss", "average_top1", "val_top1",
    "train_loss", "cpu_s", "wall_s", "parameters", "settings",
)  # fmt: skip
METRICS = {"top1": "Top-1", "average_top1": "Top-1 of averaged weights", "loss": "Loss"}
IDENTITY = ("arm", "set", "labels_per_class", "seed", "budget")
GAIN, ERRORS = 1.0, 2.0  # points, and standard errors, that a change must gain on a set (docs/small-data.md)

Row = dict[str, Any]
Cell = tuple[str, str]
"""A set and the labels of a class."""


@dataclass(frozen=True)
class Job:
    """A run: the first columns of its row, and its settings."""

    row: Row
    config: TrainConfig

    @property
    def identity(self) -> tuple[str, ...]:
        return identity(self.row)

    def __str__(self) -> str:
        return "{arm}, {set}, {labels_per_class} labels a class, seed {seed}, {budget}".format(**self.row)


def identity(row: Row) -> tuple[str, ...]:
    """What no two rows share."""
    return tuple(str(row[name]) for name in IDENTITY)


# Runs


def read_arms(file: Path, names: Sequence[str], grid: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings of arms by name, each arm once for each point of the grid, which its name gets."""
    arms: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    for name in names:
        if name not in arms:
            raise UserError(closest(name, arms, "arm"))
    if spaced := [name for name in arms if " " in name]:
        raise UserError(f"Names of arms have no spaces, as the grid adds some: {', '.join(spaced)} in {file}.")
    axes = []
    for words in grid:
        setting, equals, values = words.partition("=")
        if not equals:
            raise UserError(f"--grid takes SETTING=VALUE,VALUE, got {words!r}.")
        axes.append([(setting, value) for value in values.split(",")])
    return {
        " ".join([name, *("=".join(pair) for pair in point)]): {**arms[name], **dict(point)}
        for name in names or arms
        for point in itertools.product(*axes)
    }


def jobs_of(arms: Mapping[str, Mapping[str, Any]], words: argparse.Namespace) -> Iterator[Job]:
    """All runs; all of the first seed first, so that a study that is stopped has every arm on every set.

    Raises:
        UserError: a set is not there, or an arm has settings that cannot be.
    """
    budget: dict[str, Any] = {"max_time": f"{words.time}s"} if words.time else {"steps": words.steps}
    budget_in_words = f"{words.time} s" if words.time else f"{words.steps} steps"
    sets = {name: train_counts(words.sets_folder / name) for name in words.sets}
    for seed, (name, counts), per_class, arm in itertools.product(range(words.seeds), sets.items(), words.labels, arms):
        labels = sum(counts) if per_class == "all" else int(per_class) * len(counts)
        own = dict(arms[arm])
        given = SHARED | ({} if own.keys() & set(BUDGETS) else budget) | own | {"labels": labels, "seed": seed}
        if (steps := given.get("steps")) and not own.keys() & {"eval_every", "eval_share"}:
            given["eval_every"] = math.ceil(int(steps) / EVALUATIONS)
        given |= {"data": str(words.sets_folder / name), "output": "."}  # the output is set when it runs
        config = build(TrainConfig, given, sources={key: f"{key} of {arm}" for key in given})
        row = {"arm": arm, "set": name, "labels_per_class": per_class, "labels": labels, "seed": seed}
        settings = json.dumps({key: getattr(config, key) for key in sorted(own)})
        yield Job({**row, "budget": budget_in_words, "settings": settings}, config)


def train_counts(folder: Path) -> list[int]:
    """The number of training images of each class of a set."""
    counts = [len(list(path.iterdir())) for path in folder.glob("train/*")]
    if not counts:
        raise UserError(f"There is no set {folder}: write it with small_sets.py.")
    return counts


def run_jobs(jobs: Sequence[Job], output: Path, *, keep: Path | None, quiet: bool) -> int:
    """Trains what has no row yet, and appends a row for each run. Returns an exit code."""
    done = {identity(row): row["settings"] for row in read_rows([output])} if output.exists() else {}
    for job in jobs:
        if done.get(job.identity, job.row["settings"]) != job.row["settings"]:
            raise UserError(
                f"{output} has {job} with other settings: {done[job.identity]}, now {job.row['settings']}. "
                "Give the arm another name, or choose another --output."
            )
    left = [job for job in jobs if job.identity not in done]
    print(f"{len(left)} of {len(jobs)} runs are left", flush=True)
    failures = 0
    for number, job in enumerate(left, start=1):
        try:
            with run_folder(job, keep) as folder:
                row = run_job(job, folder, Display(silent=quiet))
        except Exception as error:  # the others may run
            failures += 1
            print(f"{number} of {len(left)}: {job}: FAILED: {type(error).__name__}: {error}", flush=True)
            continue
        if isinstance(row, int):
            return row
        append(output, row)
        print(
            f"{number} of {len(left)}: {job}: {row['top1']:.2f} %, in {row['cpu_s']:.0f} s of CPU, {row['wall_s']:.0f} s",
            flush=True,
        )
    if failures:
        print(f"{failures} of {len(left)} runs failed; the same command tries them again.")
    return int(failures > 0)


@contextmanager
def run_folder(job: Job, keep: Path | None) -> Iterator[Path]:
    """A folder for a run: one to keep, emptied of what an interrupted run left there, or one that is removed."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="small-study-") as scratch:
            yield Path(scratch) / "run"
        return
    folder = keep.joinpath(*(word.replace("/", "_") for word in job.identity))
    shutil.rmtree(folder, ignore_errors=True)
    yield folder


def run_job(job: Job, folder: Path, display: Display) -> Row | int:
    """Trains, and measures on the images to report on. Returns the row, or the exit code of an interrupted run."""
    run = setup(replace(job.config, output=str(folder)), display)
    cpu_s, wall_s = time.process_time(), time.monotonic()
    fit(run)
    refit_best(run)
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    if not run.is_finished():
        return run.interruption.exit_code() or 1
    best = run.progress.best
    assert best is not None
    chosen = measure(run, Predictor(run.directory.best, machine=run.machine))
    average = None
    if run.config.model_ema:
        model, names = run.learner.averaged_model(), run.source.class_names
        if run.config.refit_head:
            if goes_back(run.config, model):
                model = part_of_the_way_back(run, model)
            refit(run, model)
        predictor = Predictor(model, machine=run.machine, data_config=run.data_config, class_names=names)
        average = measure(run, predictor).top1
    return {
        **job.row,
        "steps": run.progress.step,
        "top1": chosen.top1,
        "loss": chosen.loss,
        "average_top1": average,
        "val_top1": best.top1,
        "train_loss": run.progress.metrics[-1]["train_loss"],
        "cpu_s": round(cpu_s, 2),
        "wall_s": round(wall_s, 2),
        "parameters": count_parameters(run.model)[1],
    }


def measure(run: Run, predictor: Predictor) -> Accuracy:
    """Accuracy on the images to report on."""
    assert run.source.test is not None
    loader = evaluation_loader(
        run.source.test, predictor.data_config, batch_size=64, machine=run.machine, workers=run.config.workers
    )
    return measure_accuracy(predictor, loader, run.display, label="testing")


# Rows


def append(file: Path, row: Row) -> None:
    """Adds a row in one write; what a killed process left of a row is removed before."""
    with file.open("a+", encoding="utf-8", newline="") as table:
        table.seek(0)
        text = table.read()
        table.truncate(len(text[: text.rfind("\n") + 1].encode()))
        lines = [row] if "\n" in text else [dict(zip(COLUMNS, COLUMNS, strict=True)), row]
        csv.DictWriter(table, COLUMNS, lineterminator="\n").writerows(lines)


def read_rows(files: Sequence[Path]) -> list[Row]:
    """The whole rows of some tables; of rows of the same run the last."""
    rows: dict[tuple[str, ...], Row] = {}
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        for row in csv.DictReader(line for line in lines if line.endswith("\n")):
            rows[identity(row)] = row
    return list(rows.values())


# Summary


def summarize(rows: Sequence[Row], *, base: str, metric: str, best_of_grid: bool) -> str:
    """Markdown: accuracies, differences from the base arm over the seeds that both have, and CPU seconds."""
    blocks = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        found = [row for row in rows if row["budget"] == budget]
        if best_of_grid:
            best = best_points(found, metric)
            blocks.append(f"{budget}: best of the grid by {metric}: {', '.join(best.values())}")
            arms = {name: arm for arm, name in best.items()}
            found = [{**row, "arm": arms[row["arm"]]} for row in found if row["arm"] in arms]
        values = by_arm(found, metric)
        blocks.append(f"{budget}: {metric}, mean ± standard error over the seeds\n\n{table(values, mean_in_words)}")
        if base in values and len(values) > 1:
            gains = {arm: gains_of(cells, values[base]) for arm, cells in values.items() if arm != base}
            told = (
                f"{metric} less that of {base} with the same seed; bold: {GAIN:g} point and {ERRORS:g} standard errors"
            )
            blocks.append(f"{budget}: {told}\n\n{table(gains, gain_in_words)}")
        seconds = table(by_arm(found, "cpu_s"), lambda numbers: f"{statistics.median(numbers.values()):.0f}")
        blocks.append(f"{budget}: CPU seconds, median\n\n{seconds}")
    return "\n\n".join(blocks)


def best_points(rows: Sequence[Row], metric: str) -> dict[str, str]:
    """The best point of the grid of each arm, by its name: that of the highest mean over what all its points have."""
    points: dict[str, dict[str, dict[Cell, dict[str, float]]]] = {}
    for name, cells in by_arm(rows, metric).items():
        points.setdefault(name.partition(" ")[0], {})[name] = cells
    best: dict[str, str] = {}
    for arm, of_arm in points.items():
        common = set.intersection(*({(cell, seed) for cell in of for seed in of[cell]} for of in of_arm.values()))
        if not common:
            raise UserError(f"The points of the grid of {arm} have no run in common.")
        sums = {name: sum(of[cell][seed] for cell, seed in common) for name, of in of_arm.items()}
        best[arm] = (min if metric == "loss" else max)(sums, key=sums.__getitem__)
    return best


def by_arm(rows: Sequence[Row], metric: str) -> dict[str, dict[Cell, dict[str, float]]]:
    """The numbers of each arm, by set and labels of a class, by seed."""
    values: dict[str, dict[Cell, dict[str, float]]] = {}
    for row in rows:
        if row[metric]:
            cell = (row["set"], row["labels_per_class"])
            values.setdefault(row["arm"], {}).setdefault(cell, {})[row["seed"]] = float(row[metric])
    return values


def gains_of(
    ours: Mapping[Cell, Mapping[str, float]], base: Mapping[Cell, Mapping[str, float]]
) -> dict[Cell, dict[str, float]]:
    """Differences by seed, for each cell, and for each set as a whole: the mean over its numbers of labels."""
    gains = {
        cell: {seed: number - base[cell][seed] for seed, number in numbers.items() if seed in base[cell]}
        for cell, numbers in ours.items()
        if cell in base
    }
    whole: dict[Cell, dict[str, float]] = {}
    for name in dict.fromkeys(name for name, _ in gains):
        cells = [numbers for (of, _), numbers in gains.items() if of == name]
        seeds = [seed for seed in cells[0] if all(seed in numbers for numbers in cells)]
        if len(cells) > 1:
            whole[name, "mean"] = {seed: statistics.fmean(numbers[seed] for numbers in cells) for seed in seeds}
    return {cell: numbers for cell, numbers in (gains | whole).items() if numbers}


def mean(numbers: Mapping[str, float]) -> float:
    """The mean over the seeds."""
    return statistics.fmean(numbers.values())


def error(numbers: Mapping[str, float]) -> float:
    """The standard error of that mean; infinite for a single seed."""
    return statistics.stdev(numbers.values()) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.inf


def mean_in_words(numbers: Mapping[str, float], sign: str = "") -> str:
    """Such as 86.07 ± 1.10 (5), with the number of seeds."""
    spread = f" ± {error(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{mean(numbers):{sign}.2f}{spread} ({len(numbers)})"


def gain_in_words(numbers: Mapping[str, float]) -> str:
    """The same, bold where the gain counts by the rule of the study."""
    words = mean_in_words(numbers, "+")
    return f"**{words}**" if mean(numbers) >= GAIN and mean(numbers) > ERRORS * error(numbers) else words


def table(
    values: Mapping[str, Mapping[Cell, Mapping[str, float]]], in_words: Callable[[Mapping[str, float]], str]
) -> str:
    """A Markdown table with a row for each arm and a column for each set and number of labels."""
    found = dict.fromkeys(cell for cells in values.values() for cell in cells)
    names = list(dict.fromkeys(name for name, _ in found))
    cells = sorted(found, key=lambda cell: (names.index(cell[0]), int(cell[1]) if cell[1].isdecimal() else math.inf))
    lines = [["arm", *(" ".join(cell) for cell in cells)], ["---"] * (1 + len(cells))]
    lines += [[arm, *(in_words(of[cell]) if cell in of else "" for cell in cells)] for arm, of in values.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@styled
def plot(rows: Sequence[Row], path: Path, *, metric: str) -> None:
    """Writes accuracy against labels, a panel for each set, for the arms that have several numbers of labels."""
    if metric == "loss":
        raise UserError("--plot draws accuracies: choose another --metric.")
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        of_arm = curves.setdefault(row["set"], {}).setdefault(row["arm"], {})
        of_arm.setdefault(int(row["labels"]), []).append(float(row[metric]))
    curves = {name: {arm: of for arm, of in arms.items() if len(of) > 1} for name, arms in curves.items()}
    curves = {name: arms for name, arms in curves.items() if arms}
    if not curves:
        raise UserError("--plot draws accuracy against labels: the tables have no arm with several numbers of them.")
    figure = Figure(figsize=(11, 3.6 * math.ceil(len(curves) / 2)), dpi=130, layout="constrained")
    panels = figure.subplots(math.ceil(len(curves) / 2), 2, squeeze=False).flat
    for axes, (name, arms) in zip(panels, curves.items(), strict=False):
        draw_label_curves(axes, arms)
        axes.set_title(f"{METRICS[metric]}, %: {name}", loc="left", weight="bold")
    for axes in list(panels):  # an odd number leaves one empty
        axes.set_axis_off()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def several(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--sets-folder", type=Path, default=Path("sets"), help="what small_sets.py wrote")
    parser.add_argument("--sets", type=several, default=["digits", "letters", "crops"])
    parser.add_argument("--labels", type=several, default=["10"], help="of a class, such as 10,20,all")
    parser.add_argument("--seeds", type=int, default=5)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, default=300)
    budget.add_argument("--time", type=int, metavar="SECONDS", help="wall time of a run, instead of steps")
    parser.add_argument("--arms-file", type=Path, default=ARMS, help="YAML: settings by the names of arms")
    parser.add_argument("--arms", type=several, default=[], help="by default all of the file")
    parser.add_argument("--grid", nargs="+", default=[], metavar="SETTING=VALUE,VALUE", help="multiplies the arms")
    parser.add_argument("--output", type=Path, help="the table; rows are added")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the run directories there")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quiet", action="store_true", help="print a line a run")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="CSV", help="train nothing, and sum up these tables")
    parser.add_argument("--base", default="t2t", help="arm that the others are compared with")
    parser.add_argument("--metric", default="top1", choices=tuple(METRICS))
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw accuracy against labels beside the summary")
    parser.add_argument("--best-of-grid", action="store_true", help="sum up the best point of the grid of each arm")
    words = parser.parse_args()
    if words.output is None and words.summary is None:
        parser.error("give --output, the table of the runs, or --summary.")
    torch.set_num_threads(words.threads)
    try:
        if words.summary:
            rows = read_rows(words.summary)
            print(summarize(rows, base=words.base, metric=words.metric, best_of_grid=words.best_of_grid))
            if words.plot:
                plot(rows, words.plot, metric=words.metric)
            return 0
        jobs = list(jobs_of(read_arms(words.arms_file, words.arms, words.grid), words))
        return run_jobs(jobs, words.output, keep=words.keep, quiet=words.quiet)
    except UserError as problem:
        parser.error(str(problem))


if __name__ == "__main__":
    sys.exit(main())
