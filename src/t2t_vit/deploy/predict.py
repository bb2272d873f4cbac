"""Labels with probabilities, for images from anywhere."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2t_vit.data.images import image_extensions
from t2t_vit.deploy.config import PredictConfig
from t2t_vit.errors import UserError
from t2t_vit.inference.predictor import Prediction, Predictor
from t2t_vit.runtime.downloads import is_url
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


def find_images(words: Sequence[str]) -> list[Path | str]:
    """The files and URLs that are named, and the images in the folders that are, at any depth.

    Raises:
        UserError: for a folder without images.
    """
    found: list[Path | str] = []
    for word in words:
        path = Path(word).expanduser()
        images = [word] if is_url(word) else _images_below(path) if path.is_dir() else [path]
        if not images:
            raise UserError(f"The folder {path} holds no image (.jpg, .png, .webp, .tif, .npy or others).")
        found += images
    return found


def _images_below(folder: Path) -> list[Path]:
    """The image files in a folder, sorted, without hidden files and folders. Links are followed."""
    found, seen = [], set[str]()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # links may lead round in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in image_extensions())


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
