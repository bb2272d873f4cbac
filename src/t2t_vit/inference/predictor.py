"""The one path from images to probabilities, for `eval`, `predict`, `compare` and the report of a run."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from t2t_vit.data.images import ImageSet
from t2t_vit.data.loading import Batch, Draw, DrawnImages, EvaluationBatches, collate, make_loader
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.transforms import Normalize, eval_transform
from t2t_vit.errors import UserError
from t2t_vit.inference.exported import ExportedNetwork, exported_file, open_exported
from t2t_vit.inference.inputs import ImageOrPath, image_set
from t2t_vit.models.checkpoint_formats import Checkpoint
from t2t_vit.models.factory import load_model
from t2t_vit.models.preprocessing import data_config_of
from t2t_vit.runtime.console import Display
from t2t_vit.runtime.downloads import is_url
from t2t_vit.runtime.machine import Machine, find_machine

ABOUT = ("split", "calibration", "chosen", "exported")
"""What a predictor keeps of a checkpoint's further entries."""
Network = Callable[[Tensor], Tensor]
"""Maps normalised images, (B, C, H, W), float32, to logits, (B, num_classes)."""


class Prediction(NamedTuple):
    """The answer for one image.

    Attributes:
        name: the path or URL of the file, or what the image set calls the image.
        labels: class names with their probabilities, the likeliest first; empty for an unreadable image.
        error: why the image cannot be read; None for a readable one.
        embedding: the pooled features before the head, (C,), float32, on the CPU; None unless asked for.
    """

    name: str
    labels: list[tuple[str, float]]
    error: str | None = None
    embedding: Tensor | None = None


class Predictor:
    """A trained network that maps images to class names with probabilities.

    Args:
        source: a path, a run's folder or an http(s) URL of a checkpoint in any known format; an exported file, or a
            folder with one; or a network.
        device: a torch device, or "auto" for the GPU if there is one.
        amp: whether to compute in half precision; None does if the hardware is faster at it.
        machine: replaces `device` and `amp`; `runtime.machine.find_machine` makes one.
        background: the colour behind transparent pixels; by default the checkpoint's, else white.
        runtime: what runs an exported file, "onnxruntime" or "openvino"; by default the first that is for such a file.
        trust_code: open a .pt2 file, which runs the code that whoever made it put there.
        data_config: timm's data configuration; by default the checkpoint's, else the network's.
        class_names: by default the checkpoint's, else ImageNet's if the network has as many classes, else numbers.
        build: how to build the checkpoint's network, such as `use_ema=False` or `img_size=384`.

    Attributes:
        network: the network, in evaluation mode.
        checkpoint: what the file says besides its weights; empty for a network in memory.
        temperature: what logits are divided by, so that probabilities mean what they say; 1 unless the checkpoint has
            one.

    Raises:
        UserError: the checkpoint cannot be read or has no head, or the device does not exist.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Network,
        *,
        device: str = "auto",
        amp: bool | None = False,
        machine: Machine | None = None,
        background: str | None = None,
        runtime: str | None = None,
        trust_code: bool = False,
        data_config: dict[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        **build: Any,
    ) -> None:
        self.machine = machine or find_machine(device, amp=amp)
        self.network: Any = source
        self.checkpoint = Checkpoint(path="", kind="network in memory", state_dict={})
        if isinstance(source, str | os.PathLike):
            path = os.fspath(source)
            exported = None if is_url(path) else exported_file(path)
            if exported is not None:
                _refuse_changes(exported, build)
                opened = open_exported(exported, self.machine, runtime=runtime, trust_code=trust_code)
                self.network, checkpoint = opened
            else:
                if runtime is not None or trust_code:
                    raise UserError(f"{path} is no exported file: leave out --runtime and --trust-code.")
                self.network, checkpoint = self.machine.main_process_first(lambda: load_model(path, **build))
                self.network.eval()
            if self.network.num_classes == 0:
                raise UserError(f"{path} has no head, so that it cannot name classes. Train one: t2t-vit transfer.")
            names = class_names or checkpoint.class_names
            if names and len(names) != self.network.num_classes:
                raise UserError(
                    f"There are {len(names)} class names, and the network of {path} tells {self.network.num_classes} "
                    "classes apart: name each of them."
                )
            known = {key: value for key, value in checkpoint.extra.items() if key in ABOUT}
            self.checkpoint = dataclasses.replace(checkpoint, state_dict={}, extra=known)
        if isinstance(self.network, nn.Module):
            self.network.to(self.machine.device)
        if data_config is None:
            own = self.checkpoint.data_config or {}
            is_exported = isinstance(self.network, ExportedNetwork)
            data_config = own if is_exported else data_config_of(self.network, img_size=build.get("img_size"), **own)
        if background is not None:
            data_config = {**data_config, "background": background}
        self.data_config, self.normalize = data_config, Normalize(data_config, self.machine.device)
        self.temperature = float(self.checkpoint.extra.get("calibration", {}).get("temperature", 1.0))
        self.class_names = tuple(class_names or self.checkpoint.class_names or _published_class_names(self.network))

    @overload
    def __call__(self, images: ImageOrPath, top_k: int | None = None, **options: Any) -> Prediction: ...

    @overload
    def __call__(
        self, images: ImageSet | Iterable[ImageOrPath], top_k: int | None = None, **options: Any
    ) -> Iterator[Prediction]: ...

    def __call__(self, images: Any, top_k: int | None = None, **options: Any) -> Prediction | Iterator[Prediction]:
        """Predicts one image or many.

        Args:
            images: an open image, or the path or http(s) URL of one; an iterable of these; or an image set.
            top_k: how many labels to give, the likeliest; None gives all.
            options: `embed=True` adds embeddings, which networks of timm have; `flip=True` averages the answers for
                the image and its mirror image; `batch_size`, by default 32, on a GPU 256; `workers`, processes that
                read more images than one batch, by default one a core.

        Returns:
            The prediction of one image, or an iterator over the predictions of many, in order.

        Raises:
            UserError: the one image cannot be read. Among many images, the prediction's `error` says so.
        """
        if not isinstance(images, str | os.PathLike | Image.Image):
            return self._predict(images if isinstance(images, ImageSet) else image_set(list(images)), top_k, **options)
        (prediction,) = self._predict(image_set([images]), top_k, **options)
        if prediction.error is not None:
            raise UserError(prediction.error)
        return prediction

    def _predict(
        self,
        images: ImageSet,
        top_k: int | None,
        *,
        embed: bool = False,
        flip: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Iterator[Prediction]:
        batch_size = batch_size or (32 if self.machine.device.type == "cpu" else 256)
        loader: DataLoader[Batch] | Sequence[Batch]
        if len(images) == 1:  # for which a loader is slow
            loader = [collate([_prepared(images, self.data_config)[Draw(0, 0, 0)]])]
        else:
            machine = dataclasses.replace(self.machine, rank=0, world_size=1)  # no other process shares these images
            workers = workers if len(images) > batch_size else 0
            loader = evaluation_loader(
                images, self.data_config, batch_size=batch_size, machine=machine, workers=workers
            )
        first = 0
        for batch, logits, embeddings in self.stream(loader, embed=embed, flip=flip):
            labels_of_all = self.labels_of(self.probabilities(logits).cpu(), top_k)
            features = repeat(None) if embeddings is None else embeddings.to("cpu", torch.float32, copy=True)
            columns = (batch.indices.tolist(), labels_of_all, features)
            readable = {
                index: Prediction(images.names[index], labels, embedding=embedding)
                for index, labels, embedding in zip(*columns, strict=False)  # `repeat` has no end
            }
            reasons, end = iter(batch.unreadable), first + len(readable) + len(batch.unreadable)
            for index in range(first, end):
                yield readable.get(index) or Prediction(images.names[index], [], error=next(reasons))
            first = end

    @torch.inference_mode()
    def stream(
        self,
        loader: "DataLoader[Batch] | Sequence[Batch]",
        *,
        embed: bool = False,
        flip: bool = False,
        display: Display | None = None,
        label: str = "predicting",
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[Batch, Tensor, Tensor | None]]:
        """Runs the network in evaluation mode on each batch of this process's loader.

        Args:
            flip: whether logits and embeddings are the means over each image and its mirror image.
            display: shows the progress, under `label`.
            stop: called after each batch; True ends the loop. All processes must get the same answer.

        Yields:
            A batch; its logits, (B, num_classes); with `embed` its embeddings, (B, C), else None.
        """
        was_training = getattr(self.network, "training", False)
        if was_training:
            self.network.eval()
        try:
            with nullcontext() if display is None else display.steps(label, len(loader)) as steps:
                for batch in loader:
                    yield batch, *self._run(batch.images, embed, flip)
                    if steps is not None:
                        steps.advance()
                    if stop():
                        break
        finally:
            if was_training:
                self.network.train()

    @torch.inference_mode()
    def answer(self, images: Tensor, *, normalised: bool = False) -> Tensor:
        """Probabilities, (B, num_classes), on the CPU, of images as a loader gives them or normalised, (B, C, H, W)."""
        if normalised:
            logits, _ = self._forward(images.to(self.machine.device), embed=False)
        else:
            logits, _ = self._run(images, embed=False, flip=False)
        return self.probabilities(logits).cpu()

    def labels_of(self, probabilities: Tensor, top_k: int | None = None) -> list[list[tuple[str, float]]]:
        """For each row of (B, num_classes) the names of the likeliest classes with their probabilities."""
        num_classes = len(self.class_names)
        best = probabilities.topk(min(top_k or num_classes, num_classes))  # (B, top_k)
        return [
            [(self.class_names[label], value) for label, value in zip(labels, values, strict=True)]
            for labels, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits of this network, (B, num_classes), as calibrated probabilities, float32."""
        return (logits.float() / self.temperature).softmax(dim=-1)

    def _run(self, images: Tensor, embed: bool, flip: bool) -> tuple[Tensor, Tensor | None]:
        if len(images) == 0:
            return torch.empty(0, len(self.class_names), device=self.machine.device), None
        images = self.normalize(images)
        logits, embeddings = self._forward(images, embed)
        if flip:
            mirrored = self._forward(images.flip(-1), embed)
            logits = (logits + mirrored[0]) / 2
            embeddings = None if mirrored[1] is None else (embeddings + mirrored[1]) / 2
        return logits, embeddings

    def _forward(self, images: Tensor, embed: bool) -> tuple[Tensor, Any]:
        with self.machine.autocast():
            if not embed:
                return self.network(images), None
            if isinstance(self.network, ExportedNetwork):
                raise UserError("An exported file has no features to give: leave out --embed, or give the checkpoint.")
            features = self.network.forward_features(images)
            return self.network.forward_head(features), self.network.forward_head(features, pre_logits=True)


def evaluation_loader(
    images: ImageSet, data_config: dict[str, Any], *, batch_size: int, machine: Machine, workers: int | None
) -> "DataLoader[Batch]":
    """This process's part of the images, resized and cropped as the data configuration says."""
    return make_loader(
        _prepared(images, data_config),
        EvaluationBatches(len(images), batch_size=batch_size, rank=machine.rank, world_size=machine.world_size),
        workers=workers,
        pin_memory=machine.device.type == "cuda",
    )


def _prepared(images: ImageSet, data_config: dict[str, Any]) -> DrawnImages:
    """The images resized and cropped as the data configuration says."""
    side = max(data_config["input_size"][1:])
    drawn = images.in_format(PixelFormat.of(data_config)).drawn_at(side)
    return DrawnImages(drawn, eval_transform(data_config), seed=None)


def _refuse_changes(file: Path, build: Mapping[str, Any]) -> None:
    if given := [f"--{name.replace('_', '-')}" for name in ("model", "img_size") if build.get(name) is not None]:
        raise UserError(f"{file} is exported, and stays as it is: leave out {' and '.join(given)}.")


def _published_class_names(network: Any) -> Sequence[str]:
    subset = infer_imagenet_subset(network)
    return ImageNetInfo(subset).label_descriptions() if subset else list(map(str, range(network.num_classes)))
