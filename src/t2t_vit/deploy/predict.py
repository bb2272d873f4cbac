"""Labels with probabilities, for image files from anywhere."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2t_vit.data.images import image_extensions
from t2t_vit.deploy.config import PredictConfig
from t2t_vit.errors import UserError
from t2t_vit.inference.predictor import Prediction, Predictor


def predict(config: PredictConfig) -> None:
    """Prints the labels of images.

    Raises:
        UserError: for a path that does not exist, before anything is predicted; for unreadable images, named, after
            all others were.
    """
    paths = find_images(config.images)
    predictor = Predictor(config.checkpoint, device=config.device, background=config.background)
    print(predictor.checkpoint.report, file=sys.stderr)
    done = []
    for prediction in predictor(paths, config.top_k, batch_size=config.batch_size):
        done.append(prediction)
        if not config.json and prediction.error is None:
            lines = [f"{probability:8.1%}  {label}" for label, probability in prediction.labels]
            print("\n".join([prediction.name, *lines]), flush=True)  # at once, so that a long list can be watched
    if config.json:
        print(json.dumps([_as_json(prediction) for prediction in done], indent=2))
    unreadable = [prediction.error for prediction in done if prediction.error is not None]
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(done)} images could not be read: {'; '.join(unreadable)}.")


def find_images(words: Sequence[str]) -> list[Path]:
    """The files that are named, and the images in the folders that are, at any depth.

    Raises:
        UserError: for a path that does not exist, or a folder without images.
    """
    paths = [Path(word).expanduser() for word in words]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise UserError(f"Expected image files or folders of them, but these do not exist: {', '.join(missing)}.")
    found: list[Path] = []
    for path in paths:
        images = _images_below(path) if path.is_dir() else [path]
        if not images:
            raise UserError(f"The folder {path} holds no image (.jpg, .png, .webp, .tif, .npy or others).")
        found += images
    return found


def _images_below(folder: Path) -> list[Path]:
    """Image files by name, hidden ones and those in hidden folders left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in image_extensions()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _as_json(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"image": prediction.name, "error": prediction.error}
    labels = [{"label": label, "probability": probability} for label, probability in prediction.labels]
    return {"image": prediction.name, "labels": labels}
