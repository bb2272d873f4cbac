"""Registers every network of the table with timm."""

from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from t2t_vit.models.names import RELEASES, VARIANTS, Variant, Weights


def _pretrained_cfg(variant: Variant, weights: Weights | None) -> dict[str, Any]:
    return {
        "url": RELEASES + weights.file if weights else "",
        "custom_load": weights is not None,  # the official files need more than a state dict's loader
        "num_classes": 1000,
        "input_size": (3, *variant.input_size),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": (),  # the stem normalises unfolded patches: weights.py adapts it to other input channels
        "classifier": "head",
        "license": "bsd-3-clause-clear",
        "origin_url": "https://github.com/yitu-opensource/T2T-ViT",
        "paper_name": "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
        "paper_ids": "arXiv:2101.11986",
        **(weights.cfg if weights else {}),
    }


default_cfgs = generate_default_cfgs(
    {
        f"{name}.{weights.tag}" if weights else name: _pretrained_cfg(variant, weights)
        for name, variant in VARIANTS.items()
        for weights in (variant.weights or (None,))
    }
)


def _register(name: str, variant: Variant) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # Here, because this module is imported at the end of timm's import, which may be on behalf of these two.
        from t2t_vit.models.t2t_vit import T2TViT
        from t2t_vit.models.weights import fit_state_dict

        return build_model_with_cfg(
            T2TViT,
            name,
            pretrained,
            pretrained_filter_fn=fit_state_dict,
            feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
            **{**variant.model_args, **kwargs},
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name}: `T2TViT` with {variant.model_args}."
    return register_model(build)


globals().update({name: _register(name, variant) for name, variant in VARIANTS.items()})
