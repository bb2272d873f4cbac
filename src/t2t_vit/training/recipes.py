"""Recipes: named values for a training run's settings. One loop runs them all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2t_vit.errors import UserError, closest


@dataclass(frozen=True)
class Recipe:
    """Values for the settings that a user leaves open.

    Attributes:
        about: what it is for, and what it gives.
        values: settings of `TrainConfig` by name.
    """

    about: str
    values: Mapping[str, Any]


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        "scikit-learn's 1,797 handwritten digits at 64 pixels; `make quickstart`",
        {
            "model": "t2t_vit_7",
            "img_size": 64,
            "epochs": 20,
            "batch_size": 64,
            "lr": 1e-3,
            "warmup_epochs": 2,
            "drop_path": 0.0,
            "model_ema_decay": 0.998,  # some 500 steps in all: the average must not remember the start
            "scale": (0.7, 1.0),
            "hflip": 0.0,  # a mirrored digit is another digit, or none
            "color_jitter": None,
            "crop_pct": 1.0,
        },
    ),
    "small": Recipe(
        "a folder of hundreds to thousands of images",
        {
            "model": "t2t_vit_7",
            "epochs": 100,
            "batch_size": 64,
            "lr": 5e-4,
            "warmup_epochs": 5,
            "model_ema_decay": 0.999,
            "aa": "rand-m9-mstd0.5-inc1",
            "reprob": 0.25,
        },
    ),
}
DATA_RECIPES = {"digits": "digits"}


def recipe_for(name: str | None, *, data: str) -> dict[str, Any]:
    """The values of a recipe.

    Args:
        name: the recipe; None takes the one that fits the data.
        data: what is trained on.

    Returns:
        Settings by name, the recipe's own name among them.

    Raises:
        UserError: for an unknown recipe.
    """
    name = name or DATA_RECIPES.get(data, "small")
    if name not in RECIPES:
        raise UserError(closest(name, RECIPES, "recipe"))
    return {**RECIPES[name].values, "recipe": name}
