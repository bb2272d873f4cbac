"""The settings of a training run and of an evaluation. No torch here: the command line reads this for its help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from t2t_vit.options import argument, option
from t2t_vit.training.recipes import recipe_for

CONFIG_FILE = "config.yaml"
SCHEDULE, REGULARISATION, AUGMENTATION, MACHINE = "Schedule", "Regularisation", "Augmentation", "Machine"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a model from scratch on labelled images. A recipe gives the defaults of the flags left open."""

    data: str = argument("a folder with train/ and val/ (or only class folders), or a built-in name: digits")
    recipe: str | None = option(None, "named defaults: digits, small; by default the one that fits the data")
    model: str = option("t2t_vit_14", "network to train, as `t2t-vit models` lists them")
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, of the images in pixels; by default the model's own", metavar="N"
    )
    val_fraction: float = option(0.2, "share of the images kept for validation where the data has no val/")
    output: str | None = option(None, "run directory; by default runs/DATA-MODEL", metavar="DIR")
    resume: bool = option(False, "continue the run in the output directory from where it stopped")

    epochs: int = option(100, "passes over the training images", group=SCHEDULE)
    batch_size: int = option(64, "images in an optimiser step, over all processes", short="b", group=SCHEDULE)
    opt: str = option("adamw", "optimiser, by timm's name", group=SCHEDULE)
    lr: float = option(5e-4, "peak learning rate", group=SCHEDULE)
    min_lr: float = option(1e-5, "learning rate at the end of the cosine", group=SCHEDULE)
    warmup_lr: float = option(1e-6, "learning rate at the start of the warm-up", group=SCHEDULE)
    warmup_epochs: int = option(5, "epochs of linear warm-up, part of the epochs", group=SCHEDULE)
    weight_decay: float = option(0.05, "weight decay; biases, norms and the class token have none", group=SCHEDULE)
    clip_grad: float | None = option(None, "largest norm of the gradient", group=SCHEDULE)

    drop: float = option(0.0, "dropout before the classifier", group=REGULARISATION)
    drop_path: float = option(0.1, "stochastic depth of the last block", group=REGULARISATION)
    smoothing: float = option(0.1, "label smoothing", group=REGULARISATION)
    mixup: float = option(0.0, "mixup alpha, 0 for none", group=REGULARISATION)
    cutmix: float = option(0.0, "CutMix alpha, 0 for none", group=REGULARISATION)
    mixup_switch_prob: float = option(0.5, "share of CutMix where mixup is on too", group=REGULARISATION)
    model_ema: bool = option(True, "keep an exponential moving average of the weights", group=REGULARISATION)
    model_ema_decay: float = option(0.9998, "decay of that average once it is warm", group=REGULARISATION)

    scale: tuple[float, float] = option((0.08, 1.0), "area of random crops, from and to", group=AUGMENTATION)
    ratio: tuple[float, float] = option((0.75, 1.3333), "aspect ratio of random crops, from and to", group=AUGMENTATION)
    hflip: float = option(0.5, "probability of a horizontal flip", group=AUGMENTATION)
    vflip: float = option(0.0, "probability of a vertical flip", group=AUGMENTATION)
    color_jitter: float | None = option(0.4, "colour jitter; no effect beside an --aa policy", group=AUGMENTATION)
    aa: str | None = option(None, "timm's AutoAugment or RandAugment policy", group=AUGMENTATION, metavar="POLICY")
    reprob: float = option(0.0, "probability of random erasing", group=AUGMENTATION)
    crop_pct: float | None = option(
        None, "share of the side that evaluation crops; by default the model's", group=AUGMENTATION
    )

    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group=MACHINE)
    amp: bool | None = option(None, "half precision; by default bfloat16 where the machine has it", group=MACHINE)
    amp_dtype: str = option("bfloat16", "type of half precision", choices=("bfloat16", "float16"), group=MACHINE)
    workers: int | None = option(None, "processes that load images; by default one a core", short="j", group=MACHINE)
    seed: int = option(42, "of weights, order, augmentation and dropout", group=MACHINE)

    @classmethod
    def defaults_for(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Values for what the user left open: the recipe's, or those that a run to be resumed was started with."""
        values = recipe_for(given.get("recipe"), data=given.get("data", ""))
        if "epochs" in given:  # a short run has a short warm-up
            values["warmup_epochs"] = min(values["warmup_epochs"], given["epochs"] // 2)
        if given.get("resume"):
            recorded = Path(cls(**values | given).run_directory) / CONFIG_FILE if "data" in given else Path()
            if recorded.is_file():
                settings = yaml.safe_load(recorded.read_text())
                values |= {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return values

    @property
    def run_directory(self) -> str:
        """Where the run is kept."""
        return self.output or f"runs/{Path(self.data).resolve().name}-{self.model}"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure a checkpoint's accuracy on labelled images."""

    data: str = argument("a folder with val/ (or only class folders), or a built-in name: digits")
    checkpoint: str = option(..., "weights, in any known format: a path or an http(s) URL", metavar="PATH")
    model: str | None = option(None, "the network; by default the one that the file is for")
    img_size: int | tuple[int, int] | None = option(None, "side, or height and width, in pixels", metavar="N")
    batch_size: int = option(64, "images at a time", short="b")
    use_ema: bool = option(True, "take the moving average of the weights where the file has one")
    skip_unreadable: bool = option(False, "leave out images that cannot be read, instead of refusing")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    amp: bool = option(False, "half precision")
    amp_dtype: str = option("bfloat16", "type of half precision", choices=("bfloat16", "float16"))
    workers: int | None = option(None, "processes that load images; by default one a core", short="j")
