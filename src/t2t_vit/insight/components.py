"""Principal components of patch tokens as colours, fitted over all images, so that colours can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LOW_PERCENT, HIGH_PERCENT = 2.0, 98.0
"""The percentiles of a component, over all foreground tokens, that become the darkest and the brightest colour."""


@dataclass(frozen=True)
class ColouredTokens:
    """The tokens of an image.

    Attributes:
        foreground: which of them are foreground, (h, w), bool.
        colours: red, green and blue, (h, w, 3), float32 from 0 to 1; 0 in the background.
    """

    foreground: np.ndarray
    colours: np.ndarray


def colour_tokens(maps: Sequence[Tensor]) -> tuple[list[ColouredTokens], list[float]]:
    """Colours tokens by their principal components (as Oquab et al., 2023, show those of DINOv2).

    The first component of all tokens tells foreground from background: foreground is the side of zero that is rarer at
    the edges of the images. Three components of the foreground's tokens become red, green and blue. A component's sign
    is that of its largest entry, so that the same images give the same colours.

    Args:
        maps: of each image, (C, h, w), of the same layer.

    Returns:
        The coloured tokens of each image, and the three components' shares of the foreground's variance.
    """
    tokens = np.concatenate([_rows(found) for found in maps]).astype(np.float64)
    is_edge = np.concatenate([_edge(found.shape[1], found.shape[2]).ravel() for found in maps])
    first = _scores(tokens, 1)[0][:, 0]
    above = first > 0
    if (~is_edge).any() and above[is_edge].mean() > above[~is_edge].mean():
        above = ~above
    if above.sum() <= 3:  # three components need four tokens
        above = np.ones_like(above)
    scores, shares = _scores(tokens[above], 3)
    low, high = np.percentile(scores, [LOW_PERCENT, HIGH_PERCENT], axis=0)
    colours = np.zeros((len(tokens), 3), np.float32)
    colours[above, : scores.shape[1]] = ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    coloured, begin = [], 0
    for found in maps:
        height, width = found.shape[1:]
        end = begin + height * width
        own = above[begin:end].reshape(height, width), colours[begin:end].reshape(height, width, 3)
        coloured.append(ColouredTokens(*own))
        begin = end
    return coloured, shares


def _scores(tokens: np.ndarray, count: int) -> tuple[np.ndarray, list[float]]:
    """The largest principal components of tokens, (N, C), each with its share of the variance.

    Returns:
        The tokens' scores, (N, count), or of fewer where C is less, and the shares.
    """
    centred = tokens - tokens.mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # in ascending order
    variances, axes = variances[::-1][:count], axes[:, ::-1][:, :count]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    total = max(float(np.square(centred).sum()), 1e-12)
    return centred @ (axes * signs), (variances.clip(0) / total).tolist()


def _rows(found: Tensor) -> np.ndarray:
    return found.detach().to("cpu", torch.float32).flatten(1).t().numpy()


def _edge(height: int, width: int) -> np.ndarray:
    edge = np.zeros((height, width), bool)
    edge[[0, -1]] = True
    edge[:, [0, -1]] = True
    return edge
