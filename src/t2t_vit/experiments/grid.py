"""Accuracy against labels: every model with every number of labels and every seed, in the same number of steps.

What is chosen in a run is chosen on a part of its labels, and reported on images by which nothing is chosen. A finished
run leaves result.json, so that a comparison that was stopped goes on with the others.
"""

import json
import math
import shlex
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from t2t_vit.data.label_budget import limit_labels
from t2t_vit.data.sources import Source, absolute_path, open_configured
from t2t_vit.data.statistics import typical_size
from t2t_vit.errors import UserError
from t2t_vit.experiments.config import SETTINGS, CompareConfig, starts_in_words, train_config
from t2t_vit.inference.predictor import Predictor
from t2t_vit.insight.complexity import count_parameters
from t2t_vit.models.names import SHIPPED, resolve_name
from t2t_vit.options import in_words, read_settings
from t2t_vit.pictures.label_curves import labels_figure
from t2t_vit.runtime.console import Display, new_table, print_table
from t2t_vit.runtime.durations import format_duration
from t2t_vit.runtime.files import plain, write_csv, write_text
from t2t_vit.runtime.machine import find_machine
from t2t_vit.training.interruption import EXIT_CODES, Terminated, sigterm_raised
from t2t_vit.training.plan import FEWEST_STEPS
from t2t_vit.training.run_directory import SPLIT, RunDirectory
from t2t_vit.training.settings import absolute_checkpoint
from t2t_vit.training.sizing import BATCH_SIZE, model_for
from t2t_vit.training.train import TrainResult, run_training

TABLE, SUMMARY, PICTURE = "comparison.csv", "comparison_summary.csv", "comparison.png"
RESULT, LOG = "result.json", "log.txt"
"""Files of a run beside those that training leaves."""
EVALUATIONS = 10
"""Weights that a run has to choose from. More would be chosen by chance where the images to choose by are few."""
GROWING = ("models", "labels", "seeds")
"""Settings of which a comparison may get more when it is resumed."""
HARMLESS = ("data_dir", "device", "measure", "output", "resume", "workers")
"""Settings that may change when a comparison is resumed."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    model: str
    labels: int
    seed: int

    @property
    def folder(self) -> Path:
        """Its run directory, below the comparison's folder."""
        return Path(self.model) / f"labels-{self.labels}" / f"seed-{self.seed}"

    def __str__(self) -> str:
        return f"{self.model}, {self.labels:,} labels, seed {self.seed}"


def run_grid(config: CompareConfig) -> int | None:
    """Trains each model with each number of labels and each seed, or goes on with that.

    It leaves a table with a row for each run, one with mean and spread, and a picture.

    Returns:
        The exit code of a comparison that was interrupted.

    Raises:
        UserError: as training does; the folder holds a comparison and is not to be resumed, or one of other settings.
    """
    config, source = _settle(config)
    config = _keep_settings(config, source)
    cells, folder, starts = cells_of(config), config.folder, starts_in_words(config)
    print(
        f"{len(cells)} runs, each of {config.steps:,} steps of at most {config.batch_size} images at "
        f"{in_words(config.img_size)} pixels; in each a fifth of the labels is to choose by",
        *starts,
        sep="\n",
    )
    try:
        with sigterm_raised():
            code = _train_all(cells, config)
    except KeyboardInterrupt as error:  # between two runs, where nothing is lost
        code = EXIT_CODES[signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT]
    rows = [row for cell in cells if (row := _result(folder / cell.folder)) is not None]
    if rows:
        _sum_up(rows, config, starts)
    if code is not None:
        print(
            f"Stopped after {len(rows)} of {len(cells)} runs. "
            f"To go on: t2t-vit compare --resume --output {shlex.quote(str(folder))}"
        )
    return code


def cells_of(config: CompareConfig) -> list[Cell]:
    """The runs in their order: all of the first seed first, so that one stopped early has every model and number."""
    seeds = range(config.seed, config.seed + (config.seeds or 1))
    counts = [int(count) for count in config.labels or ()]
    return [Cell(model, count, seed) for seed in seeds for count in counts for model in config.models]


def _settle(config: CompareConfig) -> tuple[CompareConfig, Source]:
    """The settings with what they leave open and all runs share, and the data."""
    assert config.data is not None
    names = tuple(dict.fromkeys(resolve_name(name) for name in config.models))
    bases = [train_config(config, model=name, output=config.folder, resume=False) for name in names]
    base, source = bases[0], open_configured(bases[0])
    if len({base.in_chans for base in bases}) > 1:
        raise UserError("The weights take other channels than the other models do: give --in-chans.")
    # Weights have a size, but for the package's own, which train takes at the size that is chosen.
    with_size = sorted((base for base in bases if base.checkpoint not in SHIPPED), key=lambda base: not base.checkpoint)
    img_size = config.img_size or next((base.img_size for base in with_size if base.img_size), None)
    if img_size is None:
        on_cpu = find_machine(config.device).device.type == "cpu"
        img_size = model_for(min(typical_size(source)), len(source.train), on_cpu=on_cpu)[1]
    words = config.labels or ("all",)
    counts = sorted({len(source.train) if word == "all" else int(word) for word in words})
    settled = replace(
        config,
        data=absolute_path(config.data),
        checkpoint=absolute_checkpoint(config.checkpoint),
        models=names,
        labels=tuple(str(count) for count in counts),
        seeds=config.seeds or 1,
        steps=config.steps or FEWEST_STEPS,
        batch_size=config.batch_size or base.batch_size or BATCH_SIZE,
        img_size=img_size,
    )
    for count in counts:
        limit_labels(source, count, seed=config.seed)  # refused now, not after the runs before it
    return settled, source


def _keep_settings(config: CompareConfig, source: Source) -> CompareConfig:
    """Writes the settings and the split of the comparison; refuses others than it was begun with.

    Returns:
        The settings, with what the comparison had before in front of what is new.
    """
    folder, file = config.folder, config.folder / SETTINGS
    split = limit_labels(source, len(source.train), seed=0).split  # with what is reported on
    if file.exists():
        if not config.resume:
            raise UserError(f"{folder} holds a comparison: continue it with --resume, or choose another --output.")
        begun = {"checkpoint": None} | read_settings(CompareConfig, file)
        now = plain(asdict(config))
        changed = [
            f"{name} was {in_words(old)}, now {in_words(now[name])}"
            for name, old in plain(begun).items()
            if name not in HARMLESS and not (_has_grown if name in GROWING else _is_same)(old, now[name])
        ]
        if json.loads((folder / SPLIT).read_text(encoding="utf-8")) != split:
            changed.append("the data has other images or classes")
        if changed:
            raise UserError(
                f"The comparison in {folder} cannot go on under other settings: {'; '.join(changed)}. Leave them as "
                "they were (models, labels and seeds may be added), or start another one with another --output."
            )
        config = replace(config, models=tuple(dict.fromkeys((*begun["models"], *config.models))))
    elif (folder / TABLE).exists():
        raise UserError(f"{folder} holds a comparison without --labels and --seeds: choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in plain(asdict(config)).items() if name not in HARMLESS}
    write_text(folder / SPLIT, json.dumps(split, indent=2) + "\n")
    write_text(file, yaml.safe_dump(kept, sort_keys=False))
    return config


def _is_same(old: Any, new: Any) -> bool:
    return bool(old == new)


def _has_grown(old: Any, new: Any) -> bool:
    return bool(old <= new) if isinstance(old, int) else set(old) <= set(new)


def _train_all(cells: Sequence[Cell], config: CompareConfig) -> int | None:
    """Trains what is not finished, with a line for each run. Returns the exit code for a signal that came."""
    display, folder = Display(), config.folder
    rows = {cell: row for cell in cells if (row := _result(folder / cell.folder)) is not None}
    took = {cell: row["seconds"] for cell, row in rows.items()}
    if rows:
        display.say(f"{len(rows)} of {len(cells)} runs are finished already")
    with (
        display.table("run", "model", "labels", "seed", "top-1 %", "time", "left") as table,
        display.steps("runs", len(cells), done=len(rows)) as bar,
    ):
        for cell in (cell for cell in cells if cell not in rows):
            bar.advance(str(cell), by=0)
            began_s = time.monotonic()
            result = _train(cell, config)
            if result.interrupted is not None:
                return result.interrupted
            rows[cell] = row = _keep_result(cell, result)
            took[cell] = time.monotonic() - began_s
            write_csv(folder / TABLE, [rows[cell] for cell in cells if cell in rows])
            number = f"{len(rows)} of {len(cells)}"
            top1, lasted = f"{row['top1']:.2f}", format_duration(took[cell])
            left = format_duration(time_left_s(cells, took))
            line = f"run {number}: {cell}: {top1} %, in {lasted}; about {left} left"
            table.add([number, cell.model, str(cell.labels), str(cell.seed), top1, lasted, left], line, is_best=False)
            bar.advance()
    return None


def time_left_s(cells: Sequence[Cell], took: Mapping[Cell, float]) -> float:
    """What the runs that are not finished will take: as much as those of the same model did, or as all did."""
    of_models: dict[str, list[float]] = {}
    for cell, seconds in took.items():
        of_models.setdefault(cell.model, []).append(seconds)
    overall = statistics.fmean(took.values())
    means = {model: statistics.fmean(seconds) for model, seconds in of_models.items()}
    return sum(means.get(cell.model, overall) for cell in cells if cell not in took)


def _train(cell: Cell, config: CompareConfig) -> TrainResult:
    """Trains one run, or goes on with it. What it tells goes into its log."""
    assert config.steps is not None
    folder = config.folder / cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = train_config(
        config,
        model=cell.model,
        output=folder,
        labels=cell.labels,
        seed=cell.seed,
        # Not once an epoch, which is a step or two of few images.
        eval_every=math.ceil(config.steps / EVALUATIONS),
        resume=True,
    )
    with (folder / LOG).open("a", encoding="utf-8") as log:
        try:
            return run_training(settings, Display(file=log))
        except UserError as error:
            raise UserError(f"{cell}: {error}") from error


def _keep_result(cell: Cell, result: TrainResult) -> Row:
    """Writes a finished run's row of the table, and removes last.pt, which is large and has no more use."""
    assert result.test is not None
    row = {
        **asdict(cell),
        "steps": result.metrics[-1]["step"],
        "top1": result.test.top1,
        "val_top1": result.best_top1,
        "num_test": result.test.num_images,
        "seconds": result.seconds,
        "parameters": count_parameters(Predictor(result.output / "best.pt", device="cpu").network)[1],
    }
    write_text(result.output / RESULT, json.dumps(row, indent=2) + "\n")
    RunDirectory(result.output).last.unlink()
    return row


def _result(folder: Path) -> Row | None:
    """The result of a run, None where it is not finished."""
    file = folder / RESULT
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Mean and spread over the seeds, for each model and number of labels; no spread of a single seed."""
    groups: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["labels"]), []).append(row["top1"])
    return [
        {
            "model": model,
            "labels": labels,
            "seeds": len(found),
            "top1_mean": statistics.fmean(found),
            "top1_std": statistics.stdev(found) if len(found) > 1 else None,
        }
        for (model, labels), found in groups.items()
    ]


def _sum_up(rows: Sequence[Row], config: CompareConfig, starts: Sequence[str]) -> None:
    """Writes the tables and the picture, and prints the table with mean and spread."""
    folder, summary = config.folder, summarize(rows)
    write_csv(folder / TABLE, rows)
    write_csv(folder / SUMMARY, summary)
    accuracies: dict[str, dict[int, list[float]]] = {}
    for row in sorted(rows, key=lambda row: row["labels"]):
        accuracies.setdefault(row["model"], {}).setdefault(row["labels"], []).append(row["top1"])
    num_test = rows[0]["num_test"]
    seeds = max(row["seeds"] for row in summary)
    over = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    note = f"{over}, {config.steps:,} steps each; {num_test:,} images by which nothing was chosen"
    note = "\n".join((note, *starts))
    ordered = {model: accuracies[model] for model in config.models if model in accuracies}
    labels_figure(ordered, folder / PICTURE, title=f"Top-1 on {Path(str(config.data)).name}, %", note=note)

    print(f"\nTop-1 in %: {note}\n")
    counts = [int(count) for count in config.labels or ()]
    table = new_table("Model", *(f"{count:,} labels" for count in counts))
    found = {(row["model"], row["labels"]): row for row in summary}
    for model in ordered:
        table.add_row(model, *(_in_words(found.get((model, count))) for count in counts))
    print_table(table)
    files = {"Table": TABLE, "Means": SUMMARY, "Picture": PICTURE, "Runs": "MODEL/labels-N/seed-S"}
    print("", *(f"{name + ':':9}{folder / file}" for name, file in files.items()), sep="\n")


def _in_words(row: Row | None) -> str:
    if row is None:
        return ""
    spread = "" if row["top1_std"] is None else f" ± {row['top1_std']:.2f}"
    return f"{row['top1_mean']:.2f}{spread}"
