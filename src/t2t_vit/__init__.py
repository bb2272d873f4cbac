"""Tokens-to-Token ViT for timm and PyTorch (Yuan et al., ICCV 2021, https://arxiv.org/abs/2101.11986).

Importing this package registers its models with timm, in whichever order the two are imported:

    import t2t_vit, timm
    model = timm.create_model("t2t_vit_14", num_classes=10)

torch is imported only when one of the names below is first used, which keeps `t2t-vit --help` quick.
Every registered model is also a function here: `t2t_vit.t2t_vit_14(num_classes=10)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from t2t_vit import registration
from t2t_vit.errors import closest
from t2t_vit.models.names import list_models

if TYPE_CHECKING:
    from t2t_vit.inference.evaluate import evaluate
    from t2t_vit.inference.predictor import Predictor
    from t2t_vit.insight.attention import capture_attention
    from t2t_vit.models.factory import create_model
    from t2t_vit.models.t2t_vit import T2TViT
    from t2t_vit.models.tokens import TokensToToken
    from t2t_vit.models.weights import load_checkpoint, load_for_transfer_learning
    from t2t_vit.training.train import train

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "T2TViT",
    "TokensToToken",
    "__version__",
    "capture_attention",
    "create_model",
    "evaluate",
    "list_models",
    "load_checkpoint",
    "load_for_transfer_learning",
    "train",
]

_HOMES = {
    "Predictor": "t2t_vit.inference.predictor",
    "T2TViT": "t2t_vit.models.t2t_vit",
    "TokensToToken": "t2t_vit.models.tokens",
    "capture_attention": "t2t_vit.insight.attention",
    "create_model": "t2t_vit.models.factory",
    "evaluate": "t2t_vit.inference.evaluate",
    "load_checkpoint": "t2t_vit.models.weights",
    "load_for_transfer_learning": "t2t_vit.models.weights",
    "train": "t2t_vit.training.train",
    **dict.fromkeys(list_models(), "t2t_vit.models.variants"),
}

registration.register_with_timm()


def __getattr__(name: str) -> Any:
    """Imports a public name from its home when it is first used (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name.startswith("t2t_vit_"):
        raise AttributeError(closest(name, list_models(), "model"))
    raise AttributeError(f"module 't2t_vit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOMES})
