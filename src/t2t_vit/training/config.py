"""The settings of a training run. No torch here: the command line reads this for its help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_vit.data.config import DATA_HELP
from t2t_vit.options import argument, option, read_settings
from t2t_vit.training.recipes import RECIPES, recipe_for

CONFIG_FILE = "config.yaml"
SCHEDULE, REGULARISATION, AUGMENTATION, MACHINE = "Schedule", "Regularisation", "Augmentation", "Machine"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a model from scratch on labelled images.

    A recipe gives the defaults of the flags left open. Those shown are the ones of `small`, the recipe for any data but
    digits; --show prints the settings with any other.
    """

    data: str = argument(DATA_HELP)
    recipe: str | None = option(None, f"named defaults: {', '.join(RECIPES)}")
    model: str = option("t2t_vit_14", "network to train, as `t2t-vit models` lists them")
    img_size: int | tuple[int, int] | None = option(
        None, "side, or height and width, of the images in pixels; by default the model's own", metavar="N"
    )
    val_fraction: float = option(0.2, "share of the images kept for validation where the data has no val/")
    data_dir: str | None = option(
        None, "folder of cifar10 and cifar100, by default data; cache of hfds/NAME", metavar="DIR"
    )
    checkpoint: str | None = option(
        None, "weights to start from, in any known format: a path or an http(s) URL", metavar="PATH"
    )
    output: str | None = option(None, "run directory; by default runs/DATA-MODEL", metavar="DIR")
    resume: bool = option(False, "continue the run in the output directory; with nothing there yet, start it")
    show: bool = option(False, "print the settings that would run, and stop")

    epochs: int = option(100, "passes over the training images", group=SCHEDULE)
    batch_size: int = option(64, "images in an optimiser step, over all processes", short="b", group=SCHEDULE)
    opt: str = option("adamw", "optimiser, by timm's name", group=SCHEDULE)
    lr: float = option(5e-4, "peak learning rate", group=SCHEDULE)
    min_lr: float = option(1e-5, "learning rate at the end of the cosine", group=SCHEDULE)
    warmup_lr: float = option(1e-6, "learning rate at the start of the warm-up", group=SCHEDULE)
    warmup_epochs: int = option(5, "epochs of linear warm-up, part of the epochs", group=SCHEDULE)
    cooldown_epochs: int = option(0, "epochs at the lowest rate at the end, part of the epochs", group=SCHEDULE)
    momentum: float | None = option(None, "momentum, where the optimiser has it", group=SCHEDULE)
    layer_decay: float | None = option(
        None, "factor of the learning rate from a block to the one below", group=SCHEDULE
    )
    backbone_lr_scale: float | None = option(
        None, "learning rate of everything but the head over the head's", group=SCHEDULE
    )
    freeze_backbone: bool = option(False, "train the head alone", group=SCHEDULE)
    grad_accum_steps: int = option(1, "parts of a batch that go through the network one after another", group=SCHEDULE)
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
    model_ema_warmup: bool = option(True, "let the decay rise from 0 over the first steps", group=REGULARISATION)
    mixup_off_epoch: int = option(0, "epoch from which on nothing is mixed, 0 for never", group=REGULARISATION)
    teacher: str | None = option(None, "any timm model to distil from", group=REGULARISATION, metavar="MODEL")
    teacher_checkpoint: str | None = option(
        None, "the teacher's weights; by default its pretrained ones", group=REGULARISATION, metavar="PATH"
    )
    distill_alpha: float = option(0.5, "share of the teacher's part in the loss", group=REGULARISATION)
    distill_temperature: float = option(1.0, "softmax temperature of that part", group=REGULARISATION)

    scale: tuple[float, float] = option((0.08, 1.0), "area of random crops, from and to", group=AUGMENTATION)
    ratio: tuple[float, float] = option((0.75, 1.3333), "aspect ratio of random crops, from and to", group=AUGMENTATION)
    hflip: float = option(0.5, "probability of a horizontal flip", group=AUGMENTATION)
    vflip: float = option(0.0, "probability of a vertical flip", group=AUGMENTATION)
    color_jitter: float | None = option(0.4, "colour jitter; beside --aa only with 3a", group=AUGMENTATION)
    aa: str | None = option(
        None,
        "timm's policy: rand-m9-mstd0.5-inc1 and the like, original, v0, augmix-m3, or 3a for 3-augment",
        group=AUGMENTATION,
        metavar="POLICY",
    )
    reprob: float = option(0.0, "probability of random erasing", group=AUGMENTATION)
    crop_padding: float | None = option(
        None, "instead of random crops: pad by this share of the side, crop the size", group=AUGMENTATION
    )
    aug_repeats: int = option(1, "times an image is drawn in an epoch, with fewer images in it", group=AUGMENTATION)
    crop_pct: float | None = option(
        None, "share of the side that evaluation crops; by default the model's", group=AUGMENTATION
    )

    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group=MACHINE)
    amp: bool | None = option(None, "half precision; by default bfloat16 where the machine has it", group=MACHINE)
    amp_dtype: str = option("bfloat16", "type of half precision", choices=("bfloat16", "float16"), group=MACHINE)
    compile: bool = option(False, "torch.compile the network", group=MACHINE)
    channels_last: bool = option(False, "lay images out with the channels innermost", group=MACHINE)
    grad_checkpointing: bool = option(False, "recompute activations instead of keeping them", group=MACHINE)
    workers: int | None = option(
        None, "processes that load images, for each training process; by default one a core", short="j", group=MACHINE
    )
    cache: bool = option(False, "decode each image once, before training, and keep it in memory", group=MACHINE)
    checkpoint_every: int = option(0, "steps between checkpoints inside an epoch, 0 for none", group=MACHINE)
    checkpoint_hist: int = option(1, "checkpoints kept of the last epochs", group=MACHINE)
    seed: int = option(42, "of weights, order, augmentation and dropout", group=MACHINE)
    log_to: tuple[str, ...] | None = option(
        None,
        "trackers that get the metrics too",
        choices=("tensorboard", "wandb", "mlflow"),
        metavar="TRACKER",
        group=MACHINE,
    )

    @classmethod
    def defaults_for(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Values for what the user left open: the recipe's, or those that a run to be resumed was started with."""
        values = recipe_for(given.get("recipe"), given=given)
        if given.get("resume"):
            recorded = Path(cls(**values | given).run_directory) / CONFIG_FILE if "data" in given else Path()
            if recorded.is_file():
                values |= read_settings(cls, recorded)
        return values

    @property
    def run_directory(self) -> str:
        """Where the run is kept."""
        return self.output or f"runs/{Path(self.data).resolve().name.removesuffix('.tar')}-{self.model}"


@dataclass(frozen=True, kw_only=True)
class TransferConfig(TrainConfig):
    """Train a released or own checkpoint on other classes.

    The defaults shown are those of the recipe `transfer`; --show prints the settings with any other.
    """

    checkpoint: str = option(
        ..., "weights to start from, in any known format: a path or an http(s) URL", metavar="PATH"
    )

    @classmethod
    def defaults_for(cls, given: dict[str, Any]) -> dict[str, Any]:
        """As for training, with the transfer recipe where none is named."""
        return super().defaults_for({"recipe": "transfer"} | given)
