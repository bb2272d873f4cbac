"""How far a relevance map can be believed: what it says is relevant must be what the network's answer depends on."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from t2t_vit.insight.relevance import Method, random_map
from t2t_vit.models.t2t_vit import T2TViT

NUM_STEPS = 20
NUM_GROUPS = 10
NUM_RESAMPLES = 1000
FEWEST = 5
"""Of fewer values resampling says nothing."""
RANDOM = "random"
"""What the row of a map of smooth noise is called."""


@dataclass(frozen=True)
class Faithfulness:
    """A row of faithfulness.csv: a method's scores, means over images, from five on with 95 % intervals (bootstrap).

    Attributes:
        deletion: area under the class probability while the most relevant pixels are replaced first: low is good.
        insertion: the same while they are put back into a blurred image: high is good.
        saco: SaCo, from -1 to 1: whether parts with more relevance change the probability more: high is good.
        after_randomising: rank correlation with the map of the same network with random weights: near 0 is good. A map
            that stays shows the image, not what the network learnt. None for the random map.
    """

    model: str
    method: str
    images: int
    deletion: float
    deletion_low: float | None
    deletion_high: float | None
    insertion: float
    insertion_low: float | None
    insertion_high: float | None
    saco: float
    saco_low: float | None
    saco_high: float | None
    after_randomising: float | None


def measure_faithfulness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    methods: Mapping[str, Method],
    *,
    model_name: str = "",
    each: Callable[[], None] = lambda: None,
) -> list[Faithfulness]:
    """Scores the maps of methods, and a random map, on the same images.

    Args:
        model: in evaluation mode.
        images: normalised, (B, C, H, W).
        labels: the class that is explained of each, (B,).
        methods: by name.
        each: called after each method, and after the random map.
    """
    randomised = with_random_weights(model)
    rows = []
    for name, method in {**methods, RANDOM: random_map}.items():
        pairs = list(zip(torch.split(images, 1), torch.split(labels, 1), strict=True))
        relevance = torch.cat([method(model, image, label) for image, label in pairs])
        scores = {
            "deletion": deletion(model, images, labels, relevance),
            "insertion": insertion(model, images, labels, relevance),
            "saco": saco(model, images, labels, relevance),
        }
        columns: dict[str, Any] = {}
        for column, values in scores.items():
            low, high = interval(values.tolist())
            columns |= {column: float(values.mean()), f"{column}_low": low, f"{column}_high": high}
        agreement = None
        if name != RANDOM:
            others = torch.cat([method(randomised, image, label) for image, label in pairs])
            agreement = float(np.mean(rank_correlations(relevance, others)))
        rows.append(Faithfulness(model_name, name, len(images), **columns, after_randomising=agreement))
        each()
    return rows


@torch.no_grad()
def deletion(model: nn.Module, images: Tensor, labels: Tensor, relevance: Tensor) -> Tensor:
    """Deletion (Petsiuk et al., 2018): the area under the class probability while pixels take the image's mean colour.

    In NUM_STEPS equal steps.

    Args:
        relevance: (B, H, W); the most relevant pixels are replaced first.

    Returns:
        (B,), from 0 to 1.
    """
    return _area_while_replacing(model, images, _mean_colour(images), labels, relevance)


@torch.no_grad()
def insertion(model: nn.Module, images: Tensor, labels: Tensor, relevance: Tensor) -> Tensor:
    """Insertion (Petsiuk et al., 2018): the same area while the image's pixels are put into a blurred copy of it.

    The blur is Gaussian with a deviation of a tenth of the shorter side.
    """
    return _area_while_replacing(model, _blurred(images), images, labels, relevance)


@torch.no_grad()
def saco(model: nn.Module, images: Tensor, labels: Tensor, relevance: Tensor) -> Tensor:
    """The salience-guided faithfulness coefficient (Wu et al., CVPR 2024), (B,), from -1 to 1.

    The pixels are put in NUM_GROUPS groups by their rank; g_i is the relevance in group i, and d_i what the class
    probability loses where that group takes the image's mean colour. Each pair of groups i, j with g_i >= g_j counts
    g_i - g_j, for the map if d_i >= d_j, else against it; the result is their sum over the sum of all g_i - g_j.
    """
    count = relevance[0].numel()
    ranks = _ranks(relevance)  # 0 is the most relevant
    group = ranks * NUM_GROUPS // count  # (B, H, W)
    substitute = _mean_colour(images)
    whole = _probability(model, images, labels)
    gains, losses = [], []
    for number in range(NUM_GROUPS):
        chosen = group == number
        gains.append((relevance * chosen).sum(dim=(1, 2)))
        replaced = torch.where(chosen.unsqueeze(1), substitute, images)
        losses.append(whole - _probability(model, replaced, labels))
    g, d = torch.stack(gains, dim=1), torch.stack(losses, dim=1)  # (B, groups)
    weights = g[:, :, None] - g[:, None, :]
    agrees = d[:, :, None] >= d[:, None, :]
    pairs = torch.ones(NUM_GROUPS, NUM_GROUPS, device=g.device).triu(diagonal=1)
    signed = torch.where(agrees, weights, -weights) * pairs
    return signed.sum(dim=(1, 2)) / (weights.abs() * pairs).sum(dim=(1, 2)).clamp(min=1e-12)


def with_random_weights(model: nn.Module) -> nn.Module:
    """A copy of a network whose weights were never trained (the test of Adebayo et al., 2018)."""
    random = copy.deepcopy(model).eval()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if isinstance(random, T2TViT):
            random.init_weights()
            return random
        for module in random.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
                continue
            for parameter in module.parameters(recurse=False):  # such as a class token, or the scale of a branch
                nn.init.trunc_normal_(parameter, std=0.02)
    return random


def rank_correlations(ours: Tensor, theirs: Tensor) -> list[float]:
    """Spearman's rank correlation of each pair of maps, (B, H, W); 0 where one is constant."""
    from scipy.stats import spearmanr  # slow to import

    found = []
    for one, other in zip(ours.flatten(1).cpu().numpy(), theirs.flatten(1).cpu().numpy(), strict=True):
        is_constant = one.max() == one.min() or other.max() == other.min()
        found.append(0.0 if is_constant else float(spearmanr(one, other).statistic))
    return found


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean, by resampling the values; none of fewer than FEWEST."""
    if len(values) < FEWEST:
        return None, None
    drawn = np.random.default_rng(0).choice(np.asarray(values), (NUM_RESAMPLES, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def share_inside(relevance: Tensor, inside: Tensor) -> Tensor:
    """The share of the relevance, (B, H, W), that lies where `inside`, of the same shape, is true: (B,)."""
    return (relevance * inside).sum(dim=(1, 2)) / relevance.sum(dim=(1, 2)).clamp(min=1e-12)


def _area_while_replacing(model: nn.Module, before: Tensor, after: Tensor, labels: Tensor, relevance: Tensor) -> Tensor:
    """The area under the class probability on the way from one image to another, the most relevant pixels first."""
    ranks, count = _ranks(relevance), relevance[0].numel()
    values = []
    for step in range(NUM_STEPS + 1):
        replaced = (ranks * NUM_STEPS < step * count).unsqueeze(1)  # (B, 1, H, W)
        values.append(_probability(model, torch.where(replaced, after, before), labels))
    return torch.trapezoid(torch.stack(values), dim=0) / NUM_STEPS


def _ranks(relevance: Tensor) -> Tensor:
    """The place of each pixel, (B, H, W), where 0 is the most relevant; equal ones are in a random order."""
    flat = relevance.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return ranks.reshape(relevance.shape)


def _probability(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).float().softmax(dim=1).gather(1, labels[:, None]).squeeze(1)


def _mean_colour(images: Tensor) -> Tensor:
    return images.mean(dim=(2, 3), keepdim=True).expand_as(images)


def _blurred(images: Tensor) -> Tensor:
    """Images so blurred that little can be told: with a deviation of a tenth of the shorter side."""
    sigma = min(images.shape[-2:]) / 10
    size = min(2 * round(2 * sigma) + 1, min(images.shape[-2:]) // 2 * 2 - 1)
    return gaussian_blur(images, [size, size], [sigma, sigma])
