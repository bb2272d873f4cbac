"""Settings of the commands that look at networks."""

from dataclasses import dataclass
from typing import Literal

from t2t_vit.options import argument, option


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """List the models: structure, parameters, multiply-accumulates, published accuracy."""

    names: tuple[str, ...] = argument("timm models to list besides", default=(), metavar="NAME")
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, in pixels; by default each model's own", metavar="N"
    )
    json: bool = option(False, "print JSON instead of the table")
    csv: str | None = option(None, "write the table to this file as well", metavar="FILE")


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


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure the speed and memory of models side by side, on random images."""

    models: tuple[str, ...] = argument(
        "names of this package or of timm (default: t2t_vit_14 vit_small_patch16_224)",
        default=("t2t_vit_14", "vit_small_patch16_224"),
        metavar="MODEL",
    )
    mode: tuple[Literal["infer", "train"], ...] = option(("infer",), "inference, or whole steps of training")
    precision: tuple[Literal["float32", "bfloat16", "float16", "amp_bfloat16", "amp_float16"], ...] = option(
        ("float32",), "of weights and images; amp: autocast"
    )
    batch_size: tuple[int, ...] = option((32,), "images in a step", short="b", metavar="N")
    img_size: tuple[int, ...] = option((), "side in pixels; by default each model's own", metavar="N")
    compile: Literal["no", "yes", "both"] = option("no", "torch.compile")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = option("default", "mode of torch.compile")
    channels_last: bool = option(False, "channels-last layout")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    threads: int | None = option(None, "of each process on the CPU; by default torch's choice")
    rounds: int = option(5, "how often each model has its turn")
    seconds: float = option(1.0, "how long a turn lasts at least")
    baseline: str | None = option(None, "the model that ratios refer to; by default the first", metavar="NAME")
    official: str | None = option(
        None, "folder with a copy of the official repository: its models compete too", metavar="PATH"
    )
    csv: str | None = option(None, "write the table to this file", metavar="FILE")
    plot: str | None = option(None, "draw the table: a .png or .svg file", metavar="FILE")
