"""Settings of the commands that train several models."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_vit.data.config import BACKGROUND_HELP, DATA_DIR_HELP, IN_CHANS_HELP, SOURCES
from t2t_vit.errors import UserError
from t2t_vit.models.names import SHIPPED, resolve_name
from t2t_vit.options import URLS, Settings, argument, configure, option, read_settings
from t2t_vit.training.config import TrainConfig

SETTINGS = "comparison.yaml"
NOT_OF_A_RUN = ("models", "labels", "seeds", "measure", "checkpoint")
"""What differs between the runs of a comparison, or is no setting of one."""
TWINS = ("t2t_vit_7", "t2t_vit_7_no_t2t")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """Train models side by side on the same data with the same settings; without DATA, list what they cost.

    With --labels or --seeds, accuracy against labels: each model is trained with each number of labels and each seed in
    the same number of steps, chosen on a fifth of its labels, and reported on other images.
    """

    data: str | None = argument(
        "data to train on, as for train; models stand behind --models", default=None, exists=SOURCES
    )
    data_dir: str | None = option(None, DATA_DIR_HELP, metavar="DIR", needs="data")
    models: tuple[str, ...] = option(
        (),
        f"the models: names of this package or of timm; by default {' and '.join(TWINS)}, and without DATA all of ours "
        "and those that they are compared with",
        metavar="MODEL",
        commas=True,
    )
    labels: tuple[str, ...] | None = option(
        None, "numbers of training images with a label, such as 50,100,all", metavar="N", commas=True, needs="data"
    )
    seeds: int | None = option(
        None, "runs with seeds of their own, from --seed on, which draw other labels too", at_least=1, needs="data"
    )
    checkpoint: str | None = option(
        None,
        "weights that one of the models starts from, the one that they are of: a path, a URL, or formulas; the others "
        "start as they do without",
        metavar="PATH",
        needs="data",
        exists=(*URLS, *SHIPPED),
    )
    output: str | None = option(
        None,
        "folder of the runs, the table and the picture; by default runs/compare-DATA, or runs/labels-DATA, and without "
        "DATA none is written",
        metavar="DIR",
    )
    measure: bool = option(False, "measure images per second, one model after the other in turns", unless="data")
    resume: bool = option(False, "continue the runs in the output folder from where they stopped", needs="data")
    recipe: str | None = option(None, "named defaults of all runs; by default the one that fits the data", needs="data")
    epochs: int | None = option(
        None, "passes over the training images; by default the recipe's", at_least=1, needs="data", unless="steps"
    )
    steps: int | None = option(
        None, "optimiser steps, instead of epochs; with --labels or --seeds 600 by default", at_least=1, needs="data"
    )
    batch_size: int | None = option(
        None,
        "images in an optimiser step; by default the recipe's; without DATA those of a measured step, by default 32",
        short="b",
        at_least=1,
        needs="data or measure",
    )
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, in pixels; by default the recipe's, or each model's own", at_least=1
    )
    in_chans: int | None = option(
        None, f"{IN_CHANS_HELP}; by default 3, or what the arrays have", at_least=1, needs="data"
    )
    background: str = option("white", BACKGROUND_HELP, metavar="COLOUR", needs="data")
    seed: int = option(42, "of weights, order, augmentation and dropout", at_least=0, needs="data")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", needs="data or measure")
    workers: int | None = option(
        None, "processes that load images; by default one a core", short="j", at_least=0, needs="data"
    )

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of the comparison that is to be resumed, or else two models to train. Counted are all."""
        if given.get("resume") and {"data", "output"} & given.keys():
            file = comparison_folder(given) / SETTINGS
            if file.is_file():
                return read_settings(cls, file)
            if "data" not in given:
                raise UserError(
                    f"{file.parent} holds no comparison to go on with: give its folder to --output, or DATA."
                )
        return {"models": TWINS} if given.get("data") else {}

    def contradictions(self) -> Iterable[str]:
        """Problems between settings that no rule of one of them tells."""
        if wrong := [word for word in self.labels or () if word != "all" and not (word.isdecimal() and int(word))]:
            yield f"--labels must be numbers of images, or all, got {' '.join(wrong)}."
        if self.is_grid and self.epochs is not None:
            yield f"--epochs {self.epochs} would give few labels fewer steps: give --steps, which are the same for all."

    @property
    def is_grid(self) -> bool:
        """Whether each model is trained several times."""
        return self.labels is not None or self.seeds is not None

    @property
    def folder(self) -> Path:
        """Where the runs, the table and the picture are kept."""
        return comparison_folder(vars(self))


def comparison_folder(settings: Mapping[str, Any]) -> Path:
    """Where a comparison is kept, by its settings."""
    if output := settings.get("output"):
        return Path(output)
    is_grid = settings.get("labels") is not None or settings.get("seeds") is not None
    return Path("runs") / f"{'labels' if is_grid else 'compare'}-{Path(settings['data']).resolve().name}"


def model_of_weights(config: CompareConfig) -> str | None:
    """Which of the models starts from the checkpoint; None where there is none.

    Raises:
        UserError: it is of another model, of several of them, or of none that is known.
    """
    if config.checkpoint is None:
        return None
    from t2t_vit.models.checkpoint_formats import read_checkpoint  # here, because they import torch
    from t2t_vit.models.factory import names_of

    checkpoint, names = read_checkpoint(config.checkpoint), [resolve_name(name) for name in config.models]
    if len(names) == 1 and checkpoint.model is None:
        return names[0]
    fitting = names_of(checkpoint, None)
    found = [name for name in names if name in fitting]
    if len(found) > 1:
        raise UserError(f"--checkpoint {config.checkpoint} fits {' and '.join(found)}: compare one of them at a time.")
    if not found:
        whose = " or ".join(fitting)
        raise UserError(
            f"--checkpoint {config.checkpoint} is of {whose}, and compared are {' and '.join(names)}: "
            f"add {fitting[0]} to --models, or leave the weights out."
        )
    return found[0]


def starts_in_words(config: CompareConfig) -> list[str]:
    """A line where a model starts from weights."""
    name = model_of_weights(config)
    return [] if name is None else [f"{name} starts from {'/'.join(Path(str(config.checkpoint)).parts[-2:])}"]


def train_config(config: CompareConfig, *, model: str, output: Path, **of_run: Any) -> TrainConfig:
    """The settings of one run: the comparison's, its own, and the recipe's for what both leave open."""
    names = [field.name for field in dataclasses.fields(config) if field.name not in NOT_OF_A_RUN]
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    if model == model_of_weights(config):
        given["checkpoint"] = config.checkpoint
    return configure(TrainConfig, **{**given, "model": model, "output": output, **of_run})
