"""Images that are there twice: the same pixels, or nearly the same picture.

How near is near depends on the images: two different digits are as alike as two photographs of a scene. So the nearest
neighbour of an image is measured by the distance of its tenth nearest. In a space of m dimensions, of N images with no
copies among them about N (k - 1) r^m have a neighbour nearer than r times the k-th nearest; m is what the distances
themselves say (Levina & Bickel, 2004), and r is chosen so that half an image is to be expected. The tenth neighbour of
an image with ten copies is one of them: so no image's distance counts for less than that of the densest twentieth.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

NUM_NEIGHBOURS = 10
EXPECTED_FALSE = 0.5
FEATURELESS = 6.0
"""Contrast, of 255 grey levels, below which images are all alike: a wall, or the sky."""
SOFTENING = 100.0
"""Added to the norm by which a copy is divided, so that the noise of a pale image does not count like its content."""
DENSEST = 0.05


def equal_images(digests: Sequence[bytes]) -> list[list[int]]:
    """The positions of images with the same pixels, two at least in each group."""
    by_digest = defaultdict(list)
    for position, digest in enumerate(digests):
        by_digest[digest].append(position)
    return [positions for positions in by_digest.values() if len(positions) > 1]


def near_images(copies: np.ndarray) -> list[list[int]]:
    """The positions of images that are nearly the same, two at least in each group.

    Args:
        copies: tiny copies, (N, D), of which no two are the same image; D is pixels times channels.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors  # as slow to import

    pixels = copies.reshape(len(copies), 16 * 16, -1).astype(np.float32)
    centred = (pixels - pixels.mean(axis=1, keepdims=True)).reshape(len(copies), -1)
    norms = np.linalg.norm(centred, axis=1)
    told = np.flatnonzero(norms > FEATURELESS * centred.shape[1] ** 0.5)
    if len(told) <= NUM_NEIGHBOURS + 1:
        return []
    points = centred[told] / (norms[told, None] + SOFTENING)
    search = NearestNeighbors(n_neighbors=NUM_NEIGHBOURS + 1, algorithm="brute").fit(points)
    distances, neighbours = (found[:, 1:] for found in search.kneighbors(points))  # (N, k); the first is itself
    distances = np.maximum(distances, 1e-6)
    scale = distances[:, -1]
    logarithms = np.log(scale[:, None] / distances[:, :-1]).sum(axis=1)
    dimension = np.median((NUM_NEIGHBOURS - 1) / np.maximum(logarithms, 1e-6))
    nearness = (EXPECTED_FALSE / ((NUM_NEIGHBOURS - 1) * len(points))) ** (1 / dimension)
    scale = np.maximum(scale, np.quantile(scale, DENSEST))
    near = distances < nearness * np.minimum(scale[:, None], scale[neighbours])
    ones, places = np.nonzero(near)
    graph = coo_array((np.ones(len(ones)), (ones, neighbours[ones, places])), shape=(len(points),) * 2)
    number, group_of = connected_components(graph, directed=False)
    groups: list[list[int]] = [[] for _ in range(number)]
    for position, group in zip(told.tolist(), group_of.tolist(), strict=True):
        groups[group].append(position)
    return [group for group in groups if len(group) > 1]
