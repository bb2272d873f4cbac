"""Labels with probabilities, for images from anywhere."""

import sys
from pathlib import Path
from typing import Any

from t2t_vit.deploy.config import PredictConfig
from t2t_vit.errors import UserError
from t2t_vit.inference.inputs import find_images
from t2t_vit.inference.predictor import Prediction, Predictor
from t2t_vit.runtime.files import json_text, write_csv

NUM_LABELS = 5


def predict(config: PredictConfig) -> None:
    """Prints the labels of images.

    Raises:
        UserError: for unreadable images, named, after all others were predicted.
    """
    paths = find_images(config.images)
    predictor = Predictor(config.checkpoint, device=config.device, background=config.background)
    print(predictor.checkpoint.report, file=sys.stderr)
    done = []
    for prediction in predictor(paths, config.top_k or NUM_LABELS, batch_size=config.batch_size):
        done.append(prediction)
        if not config.json and prediction.error is None:
            lines = [f"{probability:8.1%}  {label}" for label, probability in prediction.labels]
            if len(paths) > 1:
                lines = [f"{prediction.name}{', '.join(lines[: config.top_k or 1])}"]
            else:
                lines = [prediction.name, *lines]
            print("\n".join(lines), flush=True)  # at once, so that a long list can be watched
    if config.csv:
        write_csv(Path(config.csv), [_as_row(prediction) for prediction in done])
    if config.json:
        print(json_text([_as_json(prediction) for prediction in done]))
    unreadable = [prediction.error for prediction in done if prediction.error is not None]
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(done)} images could not be read: {'; '.join(unreadable)}.")


def _as_json(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"image": prediction.name, "error": prediction.error}
    labels = [{"label": label, "probability": probability} for label, probability in prediction.labels]
    return {"image": prediction.name, "labels": labels}


def _as_row(prediction: Prediction) -> dict[str, Any]:
    """Columns of the table: the likeliest label, then the others by their rank; for an unreadable image the reason."""
    row: dict[str, Any] = {"name": prediction.name}
    for rank, (label, probability) in enumerate(prediction.labels, start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        row |= {f"label{suffix}": label, f"probability{suffix}": probability}
    return row if prediction.error is None else {**row, "error": prediction.error}
