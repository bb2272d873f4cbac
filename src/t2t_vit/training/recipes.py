"""Recipes: named values for a training run's settings. One loop runs them all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from t2t_vit.errors import UserError, closest
from t2t_vit.models.names import resolve_name


@dataclass(frozen=True)
class Recipe:
    """Values for the settings that a user leaves open.

    Attributes:
        about: what it is for, its source, and what it gives.
        values: settings of `TrainConfig` by name.
        by_model: further settings for the model of a name, and for those whose name goes on with an underscore.
        by_opt: further settings for an optimiser, by its name.
        lr_batch_size: images in the optimiser step that the learning rates are meant for; with others all of them are
            scaled in proportion.
    """

    about: str
    values: Mapping[str, Any]
    by_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_opt: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lr_batch_size: int | None = None


LEARNING_RATES = ("lr", "min_lr", "warmup_lr")
MUON = {"muon": {"lr": 3e-3}}
"""It takes larger steps than other optimisers."""
SMALLEST = {"lr": 1e-3, "weight_decay": 0.03}

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        "scikit-learn's 1,797 handwritten digits at 64 pixels; `make quickstart`",
        {
            "img_size": 64,  # the model is chosen: see sizing.py
            "val_fraction": 0.5,  # 899 images: one is 0.1 %, and 898 to learn from are few
            "epochs": 6,
            "eval_share": 1.0,
            "batch_size": 32,
            "opt": "muon",
            "lr": 5e-4,
            "warmup_epochs": 2,
            "drop_path": 0.0,
            "model_ema_decay": 0.998,  # some 340 steps in all: the average must not remember the start
            "scale": (0.8, 1.0),
            "ratio": (0.85, 1.18),
            "hflip": 0.0,  # a mirrored digit is another digit, or none
            "color_jitter": None,
            "crop_pct": 1.0,
        },
        by_opt=MUON,
    ),
    "small": Recipe(
        "a folder of hundreds to thousands of images, from weights that have seen no photograph",
        {
            # Model, size, steps and flips are chosen for the images and the machine: see sizing.py and plan.py.
            "batch_size": None,
            "hflip": None,
            "opt": "muon",  # from 260 letters in 300 steps 53 %, where AdamW learns 41 % (docs/small-data.md)
            "lr": 5e-4,
            "model_ema_decay": 0.998,
            "refit_head": True,  # from ten letters a class 90 %, with the trained head 85 % (docs/log.md)
            "start_share": 0.25,  # and 92 %, with CutMix 91 %
            # From 100 MNIST digits in 600 steps this learns 90 %; RandAugment and crops of any size learn 77 %.
            "affine": 1.0,
            "scale": (0.7, 1.0),
            "ratio": (0.85, 1.18),
        },
        by_opt=MUON,
    ),
    "imagenet": Recipe(
        "ImageNet from scratch as the official code trains it: 8 GPUs x 64 images, 300 epochs and 10 at the lowest "
        "rate. Published: 71.7 % (t2t_vit_7) to 82.6 % (t2t_vit_t_24); not measured here",
        {
            "model": "t2t_vit_14",
            "epochs": 310,
            "cooldown_epochs": 10,
            "warmup_epochs": 10,
            "warmup_lr": 1e-6,
            "min_lr": 1e-5,
            "batch_size": 512,
            "lr": 5e-4,
            "weight_decay": 0.05,
            "drop_path": 0.1,
            "mixup": 0.8,
            "cutmix": 1.0,
            "mixup_switch_prob": 0.5,
            "smoothing": 0.1,
            "aa": "rand-m9-mstd0.5-inc1",
            "color_jitter": 0.4,
            "reprob": 0.25,
            "scale": (0.08, 1.0),
            "model_ema_decay": 0.99996,
            "model_ema_warmup": False,  # 775,000 steps: it forgets the start by itself
        },
        by_model={
            "t2t_vit_7": SMALLEST,
            "t2t_vit_10": SMALLEST,
            "t2t_vit_12": SMALLEST,
            "t2t_vit_19": {"weight_decay": 0.065},
            "t2t_vit_t_19": {"weight_decay": 0.065},
            "t2t_vit_24": {"weight_decay": 0.065},
            "t2t_vit_t_24": {"weight_decay": 0.065},
        },
        lr_batch_size=512,
    ),
    "formulas": Recipe(
        "pre-training from nothing on images drawn from formulas; `t2t-vit pretrain`. Measured: 91.9 % of 2,560 "
        "classes after 8,000 steps, an hour and a half on one core",
        {
            "model": "t2t_vit_7_local",
            "img_size": 64,
            "batch_size": 64,
            "opt": "muon",  # in the steps in which it learns most classes AdamW learns hardly any (docs/log.md)
            "lr": 5e-4,
            "drop_path": 0.0,
            "model_ema_decay": 0.999,
            # The images vary by themselves.
            "scale": (1.0, 1.0),
            "ratio": (1.0, 1.0),
            "hflip": 0.0,  # a mirrored sign is another one
            "color_jitter": None,
            "crop_pct": 1.0,
        },
        by_opt=MUON,
    ),
    "transfer": Recipe(
        "released weights to other classes, as the official code fine-tunes on CIFAR: the head at lr, all else at a "
        "hundredth of it. Published for t2t_vit_14: CIFAR-10 98.3 %, CIFAR-100 88.4 %; not measured here",
        {
            "model": "t2t_vit_14",
            "epochs": 60,
            "batch_size": 64,
            "opt": "momentum",  # plain SGD: timm's "sgd" is Nesterov's
            "momentum": 0.9,
            "lr": 0.05,
            "min_lr": 2e-4,
            "backbone_lr_scale": 0.01,
            "weight_decay": 5e-4,
            "warmup_epochs": 0,
            "smoothing": 0.0,
            "model_ema": False,
            "crop_padding": 0.125,
            "hflip": 0.5,
            "color_jitter": None,
        },
    ),
    "finetune-384": Recipe(
        "a network trained at 224 pixels goes on at 384: a short run at a low rate, with the augmentation it had. "
        "The values are DeiT's for the same purpose; not measured here",
        {
            "model": "t2t_vit_14",
            "img_size": 384,
            "epochs": 30,
            "batch_size": 512,
            "lr": 5e-6,
            "min_lr": 5e-6,
            "warmup_epochs": 0,
            "weight_decay": 1e-8,
            "mixup": 0.8,
            "cutmix": 1.0,
            "aa": "rand-m9-mstd0.5-inc1",
            "reprob": 0.25,
            "model_ema_decay": 0.9999,
        },
        lr_batch_size=512,
    ),
}
DATA_RECIPES = {"digits": "digits", "formulas": "formulas"}


def recipe_for(name: str | None, *, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe, for the model and the batch size that the user gave.

    Args:
        name: the recipe; None takes the one that fits the data.
        given: the settings that the user gave.

    Returns:
        Settings by name, the recipe's own name among them.

    Raises:
        UserError: for an unknown recipe or model.
    """
    name = name or DATA_RECIPES.get(given.get("data", ""), "small")
    if name not in RECIPES:
        raise UserError(closest(name, RECIPES, "recipe"))
    recipe = RECIPES[name]
    values = {**recipe.values, "recipe": name}
    if recipe.by_model:
        model = resolve_name(given.get("model", values["model"])).partition(".")[0]
        values |= next((more for name, more in recipe.by_model.items() if f"{model}_".startswith(f"{name}_")), {})
    values |= recipe.by_opt.get(given.get("opt", values.get("opt")), {})
    if given.get("freeze_backbone") or given.get("layer_decay") is not None:
        values.pop("backbone_lr_scale", None)  # they rule the rates of the backbone themselves
    batch_size = given.get("batch_size") or values["batch_size"]
    if recipe.lr_batch_size is not None:
        values |= {rate: values[rate] * batch_size / recipe.lr_batch_size for rate in LEARNING_RATES if rate in values}
    has_few_labels = given.get("labels") is not None and "epochs" not in given
    if has_few_labels:
        values.pop("eval_share", None)  # an epoch may be a single step
    if "steps" in given or "max_time" in given or has_few_labels:  # the warm-up is a share of the steps
        values |= {"epochs": None, "warmup_epochs": None, "cooldown_epochs": 0}
    elif (
        "epochs" in given and "epochs" in values
    ):  # a short run has a short warm-up, and no longer cool-down than itself
        values["warmup_epochs"] = min(values["warmup_epochs"], given["epochs"] // 2)
        values["cooldown_epochs"] = min(values.get("cooldown_epochs", 0), given["epochs"] // 4)
    return values


def scaling_in_words(settings: Mapping[str, Any]) -> str:
    """What the recipe's learning rate was scaled from, " (0.0005 for 512, scaled)"; empty where it was not."""
    recipe = RECIPES.get(settings["recipe"] or "")
    if recipe is None or recipe.lr_batch_size in (None, settings["batch_size"]):
        return ""
    if settings["lr"] != recipe_for(settings["recipe"], given=settings)["lr"]:
        return ""
    meant = settings["lr"] * recipe.lr_batch_size / settings["batch_size"]
    return f" ({meant:.3g} for {recipe.lr_batch_size}, scaled)"
