"""A linear probe: what the features of a network under training are worth on other data, with few labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from t2t_vit.data.label_budget import limit_labels
from t2t_vit.data.loading import Batch
from t2t_vit.data.sources import open_source
from t2t_vit.errors import UserError
from t2t_vit.inference.predictions import predict_all
from t2t_vit.inference.predictor import Predictor, evaluation_loader
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.machine import Machine
from t2t_vit.training.config import TrainConfig

STRENGTHS = np.logspace(-1, 5, 13)
"""Strengths of the ridge penalty among which the labels choose, each left out once."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Data to try features on.

    Attributes:
        name: of the data, and how many labels.
        labelled: the images that a ridge classifier is fitted to, in two parts.
        others: those that it is measured on.
        classifier: of scikit-learn, not fitted yet.
    """

    name: str
    labelled: "tuple[DataLoader[Batch], DataLoader[Batch]]"
    others: "DataLoader[Batch]"
    classifier: Any

    def measure(self, model: nn.Module, machine: Machine, data_config: dict[str, Any]) -> float:
        """Top-1 in percent of a ridge classifier on the pooled features. All processes call this together."""
        predictor = Predictor(model, machine=machine, data_config=data_config, class_names=["any"])
        *few, rest = (predict_all(predictor, loader, Display(silent=True)) for loader in (*self.labelled, self.others))
        embeddings, labels = (
            np.concatenate([getattr(part, name) for part in few]) for name in ("embeddings", "labels")
        )
        return 100 * float(self.classifier.fit(embeddings, labels).score(rest.embeddings, rest.labels))


def open_probe(config: TrainConfig, machine: Machine, data_config: dict[str, Any]) -> Probe | None:
    """The probe of a run, None without one.

    Raises:
        UserError: there is no such data, or it has fewer labels.
    """
    if config.probe is None:
        return None
    from sklearn.linear_model import RidgeClassifierCV  # here, because they take a second to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if config.probe == config.data:
        raise UserError(f"--probe must be other data than {config.data}, which is trained on.")
    data, count = config.probe, config.probe_labels
    source = machine.main_process_first(lambda: open_source(data))
    source = limit_labels(source, count, seed=config.seed, flag="--probe-labels")
    assert source.test is not None
    first, second, others = (
        evaluation_loader(images, data_config, batch_size=64, machine=machine, workers=0)
        for images in (source.train, source.val, source.test)
    )
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(STRENGTHS))
    return Probe(f"{source.short_name}, {count} labels", (first, second), others, classifier)
