"""Labels with probabilities, for images from anywhere."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from t2t_vit.data.crops import Crop
from t2t_vit.data.loading import DrawnImages, Normalize, eval_transform, evaluation_batches, make_loader
from t2t_vit.data.sources import ImageSet, read_image
from t2t_vit.deploy.config import PredictConfig
from t2t_vit.errors import UserError
from t2t_vit.inference.evaluate import data_config_of
from t2t_vit.models.weights import Checkpoint, build_model
from t2t_vit.runtime.machine import find_machine

Labels = list[tuple[str, float]]
"""Labels and their probabilities, the likeliest first."""


class Prediction(NamedTuple):
    """What came of one image: labels, or the reason why it could not be read."""

    image: str
    labels: Labels
    error: str | None = None


class Predictor:
    """A trained network that takes images as they are and answers with labels.

    Args:
        model: gives logits.
        class_names: a label for each of them.
        data_config: input size, mean, std, crop and interpolation under timm's keys.
        device: where it runs.
    """

    def __init__(
        self, model: nn.Module, class_names: Sequence[str], data_config: dict[str, Any], device: torch.device
    ) -> None:
        self.model = model.to(device).eval()
        self.class_names = tuple(class_names)
        self.transform = eval_transform(data_config)
        self.normalize = Normalize(data_config, device)

    def __call__(self, image: Image.Image | str | os.PathLike[str], top_k: int | None = None) -> Labels:
        """The labels of one image, an open one or a file.

        Raises:
            UnreadableImage: when the file is none, or is cut off.
        """
        opened = image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))
        return self.label_batch(self.transform(opened).unsqueeze(0), top_k)[0]

    def label_files(
        self, paths: Sequence[str | os.PathLike[str]], *, top_k: int | None = None, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """What each file shows, in order, read ahead in parallel when they are many."""
        names = [os.fspath(path) for path in paths]
        images = ImageSet(names, [0] * len(names), partial(_read_one, names))
        batches = evaluation_batches(len(names), batch_size=batch_size)
        workers = None if len(batches) > 1 else 0
        loader = make_loader(DrawnImages(images, self.transform), batches, workers=workers)
        for draws, batch in zip(batches, loader, strict=True):
            labels = dict(zip(batch.indices.tolist(), self.label_batch(batch.images, top_k), strict=True))
            reasons = iter(batch.unreadable)
            for index in (draw.image_index for draw in draws):
                readable = index in labels
                yield Prediction(names[index], labels.get(index, []), None if readable else next(reasons))

    @torch.inference_mode()
    def label_batch(self, images: Tensor, top_k: int | None = None) -> list[Labels]:
        """The labels of transformed images, (B, C, H, W), uint8, of any number of them."""
        if not len(images):
            return []
        probabilities = self.model(self.normalize(images)).float().softmax(dim=-1).cpu()  # (B, num_classes)
        best = probabilities.topk(min(top_k or len(self.class_names), len(self.class_names)))
        return [
            [(self.class_names[index], value) for index, value in zip(indices, values, strict=True)]
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def load_predictor(checkpoint: str | os.PathLike[str], device: str = "auto") -> Predictor:
    """A predictor of the network and the classes in a checkpoint.

    Our own checkpoints say their classes and how images are prepared. For other files that is the network's published
    configuration, ImageNet's class names where their number is ImageNet's, and else numbers.

    Args:
        checkpoint: a path or an http(s) URL in any format that `t2t_vit.load_checkpoint` reads.
        device: a torch device, or "auto" for the GPU where there is one.

    Raises:
        UserError: when the checkpoint cannot be read, has no head, or the device does not exist.
    """
    return _open_predictor(checkpoint, device)[0]


def predict(config: PredictConfig) -> None:
    """Prints the labels of images.

    Raises:
        UserError: for a path that does not exist, before anything is predicted; for unreadable images, named, after
            all others were.
    """
    paths = find_images(config.images)
    predictor, checkpoint = _open_predictor(config.checkpoint, config.device)
    print(checkpoint.report, file=sys.stderr)
    predictions = predictor.label_files(paths, top_k=config.top_k, batch_size=config.batch_size)
    if config.json:
        done = list(predictions)
        print(json.dumps([_as_json(prediction) for prediction in done], indent=2))
    else:
        done = [_shown(prediction) for prediction in predictions]
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
            raise UserError(f"The folder {path} holds no image ({' '.join(IMG_EXTENSIONS)}).")
        found += images
    return found


def _images_below(folder: Path) -> list[Path]:
    """Image files by name, hidden ones and those in hidden folders left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _open_predictor(path: str | os.PathLike[str], device: str) -> tuple[Predictor, Checkpoint]:
    model, checkpoint = build_model(os.fspath(path))
    if model.num_classes == 0:
        raise UserError(f"{checkpoint.path} has no head, so that it cannot name classes. Train one: t2t-vit transfer.")
    data_config = data_config_of(model, **(checkpoint.data_config or {}))
    return Predictor(model, _class_names(model, checkpoint), data_config, find_machine(device).device), checkpoint


def _class_names(model: nn.Module, checkpoint: Checkpoint) -> Sequence[str]:
    subset = infer_imagenet_subset(model)
    published: list[str] = ImageNetInfo(subset).label_descriptions() if subset else []
    return checkpoint.class_names or published or [str(label) for label in range(cast(int, model.num_classes))]


def _read_one(paths: Sequence[str], index: int, crop: Crop | None = None) -> Image.Image:
    return read_image(paths[index], crop)


def _as_json(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"image": prediction.image, "error": prediction.error}
    labels = [{"label": label, "probability": probability} for label, probability in prediction.labels]
    return {"image": prediction.image, "labels": labels}


def _shown(prediction: Prediction) -> Prediction:
    """Prints a prediction for people, at once, so that a long list can be watched."""
    if prediction.error is None:
        lines = [f"{probability:8.1%}  {label}" for label, probability in prediction.labels]
        print("\n".join([prediction.image, *lines]), flush=True)
    return prediction
