"""The settings of a training run. No torch here: the command line reads this for its help."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from t2t_vit.data.config import (
    BACKGROUND_HELP,
    DATA_DIR_HELP,
    DATA_HELP,
    EXCLUDE_HELP,
    GROUP_BY_HELP,
    IN_CHANS_HELP,
    SOURCES,
    VAL_FRACTION_HELP,
)
from t2t_vit.errors import UserError
from t2t_vit.models.names import SHIPPED
from t2t_vit.options import URLS, Settings, argument, missing, option, read_settings
from t2t_vit.runtime.durations import wrong_duration
from t2t_vit.training.recipes import RECIPES, recipe_for

CONFIG_FILE = "config.yaml"
BUDGETS = ("epochs", "steps", "max_time")
PROBE_HELP = "other data to try the features on at each evaluation, by a linear classifier"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Train a model on labelled images.

    A recipe gives the defaults of the flags left open. Those shown are the ones of `small`, the recipe for any data but
    digits; --show prints the settings with any other.
    """

    essential: ClassVar[frozenset[str]] = frozenset(
        {"recipe", "model", "img_size", "checkpoint", "pretrained", "output", "resume", "epochs", "steps", "max_time",
         "patience", "batch_size", "lr", "device", "workers", "seed"}
    )  # fmt: skip

    data: str = argument(DATA_HELP, exists=SOURCES)
    recipe: str | None = option(None, "named defaults", choices=RECIPES)
    model: str | None = option(
        None, "network to train, as `t2t-vit models` lists them; by default the checkpoint's, or chosen for the images"
    )
    img_size: int | tuple[int, int] | None = option(
        None,
        "side, or height and width, of the images in pixels; by default the checkpoint's, chosen, or the model's own",
        at_least=1,
    )
    in_chans: int = option(3, IN_CHANS_HELP, at_least=1)
    background: str = option("white", BACKGROUND_HELP, metavar="COLOUR")
    val_fraction: float = option(0.2, VAL_FRACTION_HELP, above=0, below=1)
    group_by: str | None = option(None, GROUP_BY_HELP, metavar="REGEX")
    exclude: str | None = option(None, EXCLUDE_HELP, metavar="FILE", exists=())
    labels: int | None = option(
        None,
        "labelled training images to use, drawn by the seed: of these a fifth is to choose by, and what DATA validates "
        "on, or its test/, is only reported on",
        at_least=1,
    )
    data_dir: str | None = option(None, DATA_DIR_HELP, metavar="DIR")
    checkpoint: str | None = option(
        None,
        "weights to start from, in any known format: a path or an http(s) URL; or formulas, the package's own",
        metavar="PATH",
        exists=(*URLS, *SHIPPED),
    )
    pretrained: bool = option(
        False,
        "start from the released weights of the model, downloaded once; a tag, t2t_vit_14.in1k, means it too",
        needs="model",
        unless="checkpoint",
    )
    output: str | None = option(None, "run directory; by default runs/DATA, or runs/DATA-MODEL", metavar="DIR")
    resume: bool = option(False, "continue the run in the output directory; with nothing there yet, start it")
    show: bool = option(False, "print the settings that would run, and stop")

    epochs: int | None = option(
        None, "passes over the training images", at_least=1, unless="steps or max_time", heading="Schedule"
    )
    steps: int | None = option(None, "optimiser steps, instead of epochs", at_least=1, unless="max_time")
    max_time: str | None = option(
        None, "time that the run may take, such as 90s, 20m or 1h30m, instead of epochs or steps", metavar="TIME"
    )
    patience: int | None = option(
        None, "early stopping: evaluations without a better one after which training ends", at_least=1
    )
    eval_every: int | None = option(None, "steps between evaluations; by default as --eval-share has it", at_least=1)
    eval_share: float = option(
        0.1,
        "largest share of the time that evaluations take; 1 evaluates after each epoch",
        above=0,
        at_most=1,
        unless="eval_every",
    )
    batch_size: int | None = option(
        64,
        "images in an optimiser step, over all processes; auto: what fits the images and the GPU",
        short="b",
        at_least=1,
    )
    balance: bool = option(
        False, "draw all classes equally often, where some have fewer images: those are seen several times an epoch"
    )
    best_by: Literal["top1", "balanced"] = option(
        "top1",
        "what best.pt is the best by: the share of right images, or its mean over the classes; balanced with --balance",
    )
    opt: str = option("adamw", "optimiser, by timm's name")
    lr: float = option(5e-4, "peak learning rate", above=0)
    min_lr: float = option(1e-5, "learning rate at the end of the cosine", at_least=0, at_most="lr")
    warmup_lr: float = option(1e-6, "learning rate at the start of the warm-up", at_least=0)
    warmup_epochs: int | None = option(
        None,
        "epochs of linear warm-up, part of the epochs; by default a twentieth of the steps",
        at_least=0,
        below="epochs",
    )
    cooldown_epochs: int = option(0, "epochs at the lowest rate at the end, part of the epochs", at_least=0)
    momentum: float | None = option(None, "momentum, where the optimiser has it", at_least=0, below=1)
    layer_decay: float | None = option(
        None, "learning rate of a block over that of the block above", above=0, at_most=1, unless="freeze_backbone"
    )
    backbone_lr_scale: float | None = option(
        None, "backbone's learning rate over the head's", above=0, at_most=1, unless="freeze_backbone or layer_decay"
    )
    freeze_backbone: bool = option(False, "train the head alone")
    refit_head: bool = option(
        False, "after training, fit the head anew to the features of the training images, without augmentation"
    )
    start_share: float = option(
        0.0,
        "how far the weights go back to those that the run started from, before the head is fitted anew: 0 not at all",
        at_least=0,
        below=1,
        needs="refit_head",
        unless="freeze_backbone",
    )
    grad_accum_steps: int = option(1, "parts of a batch that go through the network one after another", at_least=1)
    weight_decay: float = option(0.05, "weight decay; biases, norms and the class token have none", at_least=0)
    clip_grad: float | None = option(None, "largest norm of the gradient", above=0)

    drop: float = option(0.0, "dropout before the classifier", at_least=0, below=1, heading="Regularisation")
    drop_path: float = option(0.1, "stochastic depth of the last block", at_least=0, below=1)
    smoothing: float = option(0.1, "label smoothing", at_least=0, below=1)
    mixup: float = option(0.0, "mixup alpha, 0 for none", at_least=0)
    cutmix: float = option(0.0, "CutMix alpha, 0 for none", at_least=0)
    mixup_switch_prob: float = option(
        0.5, "share of CutMix where mixup is on too", at_least=0, at_most=1, needs="mixup and cutmix"
    )
    model_ema: bool = option(True, "keep an exponential moving average of the weights")
    model_ema_decay: float = option(
        0.9998, "decay of that average once it is warm", above=0, below=1, needs="model_ema"
    )
    model_ema_warmup: bool = option(True, "let the decay rise from 0 over the first steps", needs="model_ema")
    mixup_off_epoch: int = option(
        0, "epoch from which on nothing is mixed, 0 for never", at_least=0, below="epochs", needs="mixup or cutmix"
    )
    teacher: str | None = option(None, "any timm model to distil from", metavar="MODEL")
    teacher_checkpoint: str | None = option(
        None, "the teacher's weights; by default its pretrained ones", metavar="PATH", needs="teacher", exists=URLS
    )
    distill_alpha: float = option(0.5, "share of the teacher's part in the loss", above=0, at_most=1, needs="teacher")
    distill_temperature: float = option(1.0, "softmax temperature of that part", above=0, needs="teacher")

    hflip: float | None = option(
        0.5,
        "probability of a horizontal flip; auto: none where mirrored images look like others",
        at_least=0,
        at_most=1,
        heading="Augmentation",
    )
    vflip: float = option(0.0, "probability of a vertical flip", at_least=0, at_most=1)
    scale: tuple[float, float] = option(
        (0.08, 1.0), "area of random crops, from and to", above=0, at_most=1, ascending=True, unless="crop_padding"
    )
    ratio: tuple[float, float] = option(
        (0.75, 1.3333), "aspect ratio of random crops, from and to", above=0, ascending=True, unless="crop_padding"
    )
    affine: float = option(
        0.0,
        "strength of random rotations, shears, shifts and zooms: 1 is up to 15 degrees and a tenth of the side",
        at_least=0,
    )
    color_jitter: float | None = option(0.4, "colour jitter; beside --aa only with 3a", at_least=0)
    aa: str | None = option(
        None, "timm's policy, such as rand-m9-mstd0.5-inc1, original, v0, augmix-m3 or 3a (3-augment)", metavar="POLICY"
    )
    reprob: float = option(0.0, "probability of random erasing", at_least=0, at_most=1)
    crop_padding: float | None = option(
        None, "instead of random crops: pad by this share of the side, crop the size", at_least=0, below=1
    )
    aug_repeats: int = option(1, "times an image is drawn in an epoch, with fewer images in it", at_least=1)
    crop_pct: float | None = option(
        None, "share of the side that evaluation crops; by default the model's", above=0, at_most=1
    )

    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", heading="Machine")
    amp: bool | None = option(None, "half precision; by default bfloat16 where the machine has it")
    amp_dtype: Literal["bfloat16", "float16"] = option("bfloat16", "type of half precision", needs="amp")
    compile: bool = option(False, "torch.compile the network")
    channels_last: bool = option(False, "lay images out with the channels innermost")
    grad_checkpointing: bool = option(False, "recompute activations instead of keeping them")
    workers: int | None = option(
        None, "processes that load images, for each training process; by default one a core", short="j", at_least=0
    )
    cache: bool = option(False, "decode each image once, before training, and keep it in memory")
    checkpoint_every: int = option(0, "steps between checkpoints inside an epoch, 0 for none", at_least=0)
    checkpoint_hist: int = option(1, "checkpoints kept of the last evaluated epochs", at_least=1)
    seed: int = option(42, "of weights, order, augmentation and dropout", at_least=0)
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None = option(
        None, "trackers that get the metrics too", metavar="TRACKER"
    )
    probe: str | None = option(None, PROBE_HELP, exists=SOURCES)
    probe_labels: int = option(100, "labelled images that this classifier learns from", at_least=1, needs="probe")

    @classmethod
    def defaults_for(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values for what the user left open: the recipe's, or those that a run to be resumed was started with.

        Model, image size and channels are the checkpoint's, unless a recipe that the user chose has a size for it.
        """
        start = _settings_of(given)
        known = {**start, **given}
        values = recipe_for(given.get("recipe", cls.recipe), given=known)  # cls.recipe is the default of the field
        if known.get("in_chans", 3) not in (1, 3):
            values |= {"aa": None, "color_jitter": None}  # they know colours, and nothing of other channels
        if "recipe" in given and "img_size" in values:
            start.pop("img_size", None)
        values |= {"best_by": "balanced"} if known.get("balance") else {}
        values |= {"pretrained": "." in (given.get("model") or "") and "checkpoint" not in given, **start}
        if given.get("resume") and ("data" in given or "output" in given):
            known = {"data": ""} | values | dict(given)
            file = Path(run_directory(known["data"], known.get("model"), known.get("output"))) / CONFIG_FILE
            if file.is_file():
                values |= read_settings(cls, file)
                if any(given.get(name) for name in BUDGETS):  # another one is refused later, and told how to train on
                    values |= dict.fromkeys(BUDGETS)
            elif "data" not in given:
                raise UserError(f"{file.parent} holds no run to go on with: give its folder to --output, or DATA.")
        return values

    def contradictions(self) -> Iterable[str]:
        """Problems between settings that no rule of one of them tells."""
        yield from wrong_duration("--max-time", self.max_time)
        if self.warmup_epochs == 0 and "warmup_lr" in self.changed:
            yield "--warmup-lr has no effect beside --warmup-epochs 0."
        if self.warmup_epochs != 0 and self.warmup_lr > self.lr:
            yield f"--warmup-lr must be at most --lr {self.lr:g}, got {self.warmup_lr:g}."
        if self.epochs and (self.warmup_epochs or 0) + self.cooldown_epochs >= self.epochs:
            yield (
                f"--warmup-epochs {self.warmup_epochs} and --cooldown-epochs {self.cooldown_epochs} "
                f"leave none of --epochs {self.epochs} between them."
            )
        if self.in_chans not in (1, 3) and (self.aa or self.color_jitter):
            yield f"--aa and --color-jitter change colours, and have no effect on --in-chans {self.in_chans}."
        elif "color_jitter" in self.changed and "3a" not in (self.aa or "3a"):
            yield f"--color-jitter has no effect beside --aa {self.aa}."

    @property
    def run_directory(self) -> str:
        """Where the run is kept."""
        return run_directory(self.data, self.model, self.output)


@dataclass(frozen=True, kw_only=True)
class TransferConfig(TrainConfig):
    """Train a released or own checkpoint on other classes.

    The defaults shown are those of the recipe `transfer`; --show prints the settings with any other.
    """

    recipe: str | None = option("transfer", "named defaults", choices=RECIPES)

    def contradictions(self) -> Iterable[str]:
        """Those of training, and that there is nothing to start from."""
        yield from super().contradictions()
        if self.checkpoint is None and not self.pretrained:
            yield "Missing --checkpoint: weights to start from. Or give --pretrained for the released ones of --model."


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainConfig):
    """Train a network on images drawn from formulas, endless and without any data, for others to start from.

    The defaults shown are those of the recipe `formulas`; --show prints the settings with any other.
    """

    data: str = option("formulas", DATA_HELP, exists=SOURCES)
    recipe: str | None = option("formulas", "named defaults", choices=RECIPES)
    probe: str | None = option("digits", PROBE_HELP, exists=SOURCES)


def _settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint that a run starts from says of its model, where there is one."""
    path = given.get("checkpoint")
    if path is None or missing(path, (*URLS, *SHIPPED)):  # which is told later, without waiting for torch
        return {}
    from t2t_vit.models.factory import settings_of  # here, because it imports torch

    return settings_of(path, model=given.get("model"))


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Write the report of a run, finished or not: report.html in its folder."""

    run: str = argument("the run directory", metavar="RUN", exists=())
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")


def run_directory(data: str, model: str | None, output: str | None = None) -> str:
    """Where a run is kept, by its settings."""
    name = Path(data).resolve().name.removesuffix(".tar")
    return output or (f"runs/{name}-{model}" if model else f"runs/{name}")
