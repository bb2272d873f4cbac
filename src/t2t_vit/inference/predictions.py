"""What a network says of all images of a set, from every process that has a part of them."""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader

from t2t_vit.data.loading import Batch
from t2t_vit.inference.predictor import Predictor
from t2t_vit.runtime.console import Display


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says of the N images that can be read, in their order.

    Attributes:
        indices: rows of the images in their set, (N,).
        labels: (N,).
        logits: (N, K), float32, not calibrated.
        embeddings: the pooled features before the head, (N, D), float32.
    """

    indices: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    embeddings: np.ndarray


def predict_all(
    predictor: Predictor, loader: "DataLoader[Batch]", display: Display, *, label: str = "predicting"
) -> Predictions:
    """Predicts the images of a loader, of which each process has a part. All processes call this and get them all.

    Raises:
        RuntimeError: it failed, in any process; in all of them, since they wait for one another.
    """
    columns: list[tuple[np.ndarray, ...]] = []
    try:
        for batch, logits, embeddings in predictor.stream(loader, embed=True, display=display, label=label):
            if embeddings is not None:
                answers = logits.float().cpu().numpy(), embeddings.float().cpu().numpy()
                columns.append((batch.indices.numpy(), batch.targets.numpy(), *answers))
        mine: list[tuple[np.ndarray, ...]] | str = columns
    except Exception as error:  # the other processes wait in gather
        mine = f"{type(error).__name__}: {error}"
    parts = predictor.machine.gather(mine)
    if failures := [part for part in parts if isinstance(part, str)]:
        raise RuntimeError(failures[0])
    found = [column for part in parts for column in part]
    if not found:
        none = np.empty(0, int)
        return Predictions(none, none, np.empty((0, len(predictor.class_names)), np.float32), np.empty((0, 0)))
    whole = [np.concatenate(column) for column in zip(*found, strict=True)]
    order = np.argsort(whole[0])
    return Predictions(*(column[order] for column in whole))
