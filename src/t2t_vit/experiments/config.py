"""Settings of the commands that train several models."""

from dataclasses import dataclass

from t2t_vit.options import argument, option


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Train models side by side on the same data with the same settings; without DATA, list what they cost."""

    data: str | None = argument("what to train on, as for train", default=None)
    data_dir: str | None = option(
        None, "folder of cifar10 and cifar100, by default data; cache of hfds/NAME", metavar="DIR"
    )
    models: tuple[str, ...] = option(
        ("t2t_vit_7", "t2t_vit_7_no_t2t"), "the models: names of this package or of timm", metavar="MODEL"
    )
    output: str | None = option(
        None, "folder of the runs, the table and the picture; by default runs/compare-DATA", metavar="DIR"
    )
    resume: bool = option(False, "continue the runs in the output folder from where they stopped")
    recipe: str | None = option(None, "named defaults of all runs; by default the one that fits the data")
    epochs: int | None = option(None, "passes over the training images; by default the recipe's")
    batch_size: int | None = option(None, "images in an optimiser step; by default the recipe's", short="b")
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, in pixels; by default the recipe's, or each model's own", metavar="N"
    )
    seed: int = option(42, "of weights, order, augmentation and dropout")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    workers: int | None = option(None, "processes that load images; by default one a core", short="j")
