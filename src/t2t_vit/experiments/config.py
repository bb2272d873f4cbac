"""Settings of the commands that train several models."""

from dataclasses import dataclass

from t2t_vit.data.config import BACKGROUND_HELP, DATA_DIR_HELP, IN_CHANS_HELP, SOURCES
from t2t_vit.options import Settings, argument, option


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Settings):
    """Train models side by side on the same data with the same settings; without DATA, list what they cost."""

    data: str | None = argument(
        "data to train on, as for train; models stand behind --models", default=None, exists=SOURCES
    )
    data_dir: str | None = option(None, DATA_DIR_HELP, metavar="DIR", needs="data")
    models: tuple[str, ...] = option(
        ("t2t_vit_7", "t2t_vit_7_no_t2t"), "the models: names of this package or of timm", metavar="MODEL"
    )
    output: str | None = option(
        None, "folder of the runs, the table and the picture; by default runs/compare-DATA", metavar="DIR", needs="data"
    )
    resume: bool = option(False, "continue the runs in the output folder from where they stopped", needs="data")
    recipe: str | None = option(None, "named defaults of all runs; by default the one that fits the data", needs="data")
    epochs: int | None = option(
        None, "passes over the training images; by default the recipe's", at_least=1, needs="data"
    )
    batch_size: int | None = option(
        None, "images in an optimiser step; by default the recipe's", short="b", at_least=1, needs="data"
    )
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, in pixels; by default the recipe's, or each model's own", at_least=1
    )
    in_chans: int | None = option(
        None, f"{IN_CHANS_HELP}; by default 3, or what the arrays have", at_least=1, needs="data"
    )
    background: str = option("white", BACKGROUND_HELP, metavar="COLOUR", needs="data")
    seed: int = option(42, "of weights, order, augmentation and dropout", at_least=0, needs="data")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", needs="data")
    workers: int | None = option(
        None, "processes that load images; by default one a core", short="j", at_least=0, needs="data"
    )
