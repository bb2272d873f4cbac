"""All that `visualize` shows of one image in one network, as numbers."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2t_vit.data.pixels import as_seen
from t2t_vit.errors import UserError, abbreviate, closest
from t2t_vit.inference.predictor import Predictor
from t2t_vit.insight.attention import AttentionMap, AttentionTooLarge, attention_layers, record_attention, tokens_of
from t2t_vit.insight.features import Features, LayerStatistics, capture_features, feature_layers, tells_layers
from t2t_vit.insight.geometry import TOKEN_TRANSFORMERS, Grid, num_class_tokens
from t2t_vit.insight.receptive import ReceptiveField, receptive_fields
from t2t_vit.insight.relevance import METHODS, reasons_against
from t2t_vit.models.t2t_vit import T2TViT


@dataclass(frozen=True)
class AttentionRow:
    """The attention of one query in a layer.

    Attributes:
        heads: weights of the image's tokens, (heads, N).
        grid: where these lie.
        of_pixel: whether the query is the pixel's patch, as where there is no class token; else it is that.
    """

    heads: Tensor
    grid: Grid
    of_pixel: bool


@dataclass(frozen=True)
class Examination:
    """What was found of one image.

    Attributes:
        image: as the network gets it, (H, W, 3), uint8.
        answer: the likeliest class and its probability.
        asked: the class whose score is explained.
        pixel: the pixel, (x, y), whose patch is followed.
        features: maps of the chosen layers, B = 1.
        last: tokens or maps before the head, (C, h, w).
        statistics: by which each layer is measured.
        attention: of chosen layers.
        relevance: maps of the methods that fit the network, (H, W).
        reasons: why the others do not.
        fields: receptive fields of the pixel's token; empty for networks of timm.
    """

    image: np.ndarray
    answer: tuple[str, float]
    asked: str
    pixel: tuple[int, int]
    features: dict[str, Features]
    last: Tensor
    statistics: dict[str, LayerStatistics]
    attention: dict[str, AttentionRow]
    relevance: dict[str, Tensor]
    reasons: dict[str, str]
    fields: list[ReceptiveField]


@dataclass(frozen=True)
class Plan:
    """What to look at in one network.

    Attributes:
        measured: layers along which channels and norms are counted; the last one's tokens are coloured.
        layers: whose maps are shown.
        attention_layers: whose attention is shown.
        methods: of relevance, by name.
        label: the class whose score is explained; None takes the likeliest.
        pixel: (x, y), whose patch is followed; None takes the middle.
    """

    measured: tuple[str, ...]
    layers: tuple[str, ...]
    attention_layers: tuple[str, ...]
    methods: tuple[str, ...]
    label: int | None = None
    pixel: tuple[int, int] | None = None


def make_plan(
    predictor: Predictor,
    *,
    layers: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    label: str | None = None,
    pixel: tuple[int, int] | None = None,
    num_layers: int = 5,
) -> Plan:
    """What to look at, checked before any image is read; what is left open is chosen.

    Args:
        layers: names of modules; by default so many of its layers, evenly spaced.
        methods: names of METHODS; by default all that are cheap.
        label: a class name.
        pixel: (x, y) of the network's input.

    Raises:
        UserError: a layer or a class does not exist, or the pixel lies outside the image; one message tells what does.
    """
    model = predictor.network
    known = {name for name, _ in model.named_modules() if name}
    for layer in layers or ():
        if layer not in known:
            usual = feature_layers(model) if tells_layers(model) else sorted(known)
            raise UserError(f"{closest(layer, known, 'layer')} Usual ones: {abbreviate(usual, limit=30)}.")
    number = None if label is None else _class_number(label, predictor.class_names)
    height, width = predictor.data_config["input_size"][1:]
    if pixel is not None:
        Grid.spread((1, 1), (height, width)).token_at(*pixel)
    with_attention = [name for name in attention_layers(model) if name not in TOKEN_TRANSFORMERS]
    token_transformers = [name for name in attention_layers(model) if name in TOKEN_TRANSFORMERS]
    measured = tuple(layers) if layers and not tells_layers(model) else tuple(feature_layers(model))
    return Plan(
        measured,
        tuple(layers) if layers else _evenly(measured, num_layers),
        (*token_transformers, *_evenly(with_attention, 3)),
        tuple(methods) if methods else tuple(name for name, method in METHODS.items() if method.is_cheap),
        number,
        pixel,
    )


def _class_number(label: str, class_names: Sequence[str]) -> int:
    """The class of this name; or of which it is one of several names, as in ImageNet's "tabby, tabby cat"."""
    if label in class_names:
        return class_names.index(label)
    alike = [number for number, name in enumerate(class_names) if label in name.split(", ")]
    if len(alike) != 1:
        raise UserError(closest(label, class_names, "class"))
    return alike[0]


def examine(predictor: Predictor, pixels: Tensor, plan: Plan) -> Examination:
    """Looks at one image.

    Args:
        pixels: as a loader of `evaluation_loader` yields it, (1, C, H, W), uint8 or float32.

    Raises:
        UserError: a chosen layer returns neither maps nor tokens.
    """
    model: Any = predictor.network
    image = predictor.normalize(pixels)
    size = image.shape[-2], image.shape[-1]
    pixel = plan.pixel or (size[1] // 2, size[0] // 2)
    reasons = reasons_against(model, plan.methods)
    recorded: Mapping[str, AttentionMap] = {}
    layers = list({*plan.measured, *plan.layers})
    with torch.no_grad(), predictor.machine.autocast(), capture_features(model, layers) as found:
        try:
            with contextlib.ExitStack() as stack:
                if plan.attention_layers:
                    recorded = stack.enter_context(record_attention(model))
                logits = model(image)
        except AttentionTooLarge as error:
            reasons["attention"], recorded = str(error), {}
            logits = model(image)
    if missing := [layer for layer in layers if layer not in found]:
        raise UserError(
            f"{abbreviate(missing)} of {type(model).__name__} is part of another layer and never runs by itself. "
            f"Choose among {abbreviate(plan.measured, limit=30)}."
        )
    probabilities = predictor.probabilities(logits)[0]
    best = int(probabilities.argmax())
    label = best if plan.label is None else plan.label
    attention = _attention(model, recorded, plan, pixel, size)
    if recorded and not attention:
        reasons["attention"] = f"{type(model).__name__} attends within windows: no query looks at the whole image."
    relevance, labels = {}, torch.tensor([label], device=image.device)
    for name in (name for name in plan.methods if name not in reasons):
        method = METHODS[name]
        shared = {"recorded": recorded} if method.takes_attention else {}
        try:
            relevance[name] = method.run(model, image, labels, **shared)[0].float().cpu()
        except UserError as error:
            reasons[name] = str(error)
    return Examination(
        image=_picture(pixels[0]),
        answer=(predictor.class_names[best], float(probabilities[best])),
        asked=predictor.class_names[label],
        pixel=pixel,
        features={layer: Features(found[layer].maps.cpu(), found[layer].grid) for layer in plan.layers},
        last=found[plan.measured[-1]].maps[0].cpu(),
        statistics={layer: LayerStatistics.of(found[layer]) for layer in plan.measured},
        attention=attention,
        relevance=relevance,
        reasons=reasons,
        fields=receptive_fields(model, image, pixel) if isinstance(model, T2TViT) else [],
    )


def _attention(
    model: nn.Module, recorded: Mapping[str, AttentionMap], plan: Plan, pixel: tuple[int, int], size: tuple[int, int]
) -> dict[str, AttentionRow]:
    """What is shown of the chosen layers' attention; layers that attend within windows are left out."""
    rows = {}
    for name in (name for name in plan.attention_layers if name in recorded):
        try:
            grid, num_prefix_tokens = tokens_of(model, name, size, recorded[name])
        except UserError:
            continue
        of_pixel = not (num_prefix_tokens and num_class_tokens(model))
        query = num_prefix_tokens + grid.token_at(*pixel) if of_pixel else 0
        heads = recorded[name].rows([query])[0, :, 0, num_prefix_tokens:]
        rows[name] = AttentionRow(heads.cpu(), grid, of_pixel)
    return rows


def evenly_spaced(total: int, count: int) -> list[int]:
    """So many of the numbers from 0 to total - 1, or all, evenly spaced, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, total - 1, min(count, total)).tolist()})


def _evenly(names: Sequence[str], count: int) -> tuple[str, ...]:
    return tuple(names[place] for place in evenly_spaced(len(names), count))


def _picture(pixels: Tensor) -> np.ndarray:
    """What a network gets, (C, H, W), before it is normalised, to look at: (H, W, 3), uint8."""
    if pixels.dtype == torch.uint8:
        return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return np.asarray(as_seen(pixels))
