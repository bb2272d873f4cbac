"""A network behind a queue, for the routes of a server: decodes, computes, and counts."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from torch import Tensor

from t2t_vit.data.loading import default_workers
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.transforms import eval_transform
from t2t_vit.deploy.attention_maps import attention_maps, layers_shown
from t2t_vit.deploy.batching import Batcher, QueueFull
from t2t_vit.deploy.bodies import InferRequest
from t2t_vit.deploy.limits import KEY_VARIABLE, Limits, decode
from t2t_vit.inference.predictor import Predictor


class Service:
    """A predictor behind a queue, with its limits and its counts.

    Args:
        predictor: the network, ready.
        limits: of a request.
        max_batch, max_wait_s, capacity: as for `Batcher`.
        num_decoders: threads that decode.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        limits: Limits,
        max_batch: int = 16,
        max_wait_s: float = 0.005,
        capacity: int = 256,
        num_decoders: int | None = None,
    ) -> None:
        self.predictor, self.limits = predictor, limits
        self.format = PixelFormat.of(predictor.data_config)
        self.transform = eval_transform(predictor.data_config)
        self.shorter_px = max(predictor.data_config["input_size"][1:]) / predictor.data_config["crop_pct"]
        self.batcher = Batcher(predictor.answer, max_batch=max_batch, max_wait_s=max_wait_s, capacity=capacity)
        self.decoders = ThreadPoolExecutor(num_decoders or max(1, default_workers()), thread_name_prefix="decoder")
        self._is_started = False
        self.name = predictor.checkpoint.model or type(predictor.network).__name__
        self.layers = layers_shown(predictor)
        self._num_decoding = 0
        self.num_pending_bytes = 0
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "t2t_vit_requests", "requests by path and status", ["path", "status"], registry=self.registry
        )
        self.images = Counter("t2t_vit_images", "images that were answered", registry=self.registry)
        self.seconds = Histogram("t2t_vit_request_seconds", "from the request to the answer", registry=self.registry)
        self.batch_sizes = Histogram(
            "t2t_vit_batch_size", "images computed together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.waiting = Gauge("t2t_vit_waiting", "images that wait", registry=self.registry, multiprocess_mode="livesum")
        self.batcher.expects_more = lambda: self._num_decoding > 0
        self.batcher.sizes, self.batcher.waiting = self.batch_sizes.observe, self.waiting.set

    async def start(self) -> None:
        """Computes one image, as the first one takes long, and is ready."""
        self.batcher.start()
        await self.batcher.submit(torch.zeros(1, *self.predictor.data_config["input_size"], dtype=torch.uint8))
        self._is_started = True

    @property
    def is_ready(self) -> bool:
        """Whether images are answered."""
        return self._is_started and self.batcher.is_working

    async def stop(self) -> None:
        """Ends when what was accepted is answered."""
        await self.batcher.stop()
        self._is_started = False
        self.decoders.shutdown()

    async def decode(self, contents: Sequence[bytes], names: Sequence[str]) -> Tensor:
        """Images as tensors, (n, C, H, W)."""
        if self._num_decoding + len(contents) > self.batcher.capacity:
            raise QueueFull
        loop = asyncio.get_running_loop()
        self._num_decoding += len(contents)
        how: dict[str, Any] = {
            "format": self.format,
            "transform": self.transform,
            "shorter_px": self.shorter_px,
            "limits": self.limits,
        }
        tasks = [
            loop.run_in_executor(self.decoders, partial(decode, content, name=name, **how))
            for content, name in zip(contents, names, strict=True)
        ]
        for task in tasks:
            task.add_done_callback(self._decoded)
        return torch.stack(await asyncio.gather(*tasks))

    def _decoded(self, task: "asyncio.Future[Tensor]") -> None:
        self._num_decoding -= 1
        if not task.cancelled():
            task.exception()  # the first that failed tells it

    async def predict(self, contents: Sequence[bytes], names: Sequence[str], top_k: int | None) -> dict[str, Any]:
        """The labels of image files."""
        probabilities = await self.batcher.submit(await self.decode(contents, names))
        self.images.inc(len(contents))
        results = [
            {"name": name, "labels": [{"label": label, "probability": value} for label, value in labels]}
            for name, labels in zip(names, self.predictor.labels_of(probabilities, top_k), strict=True)
        ]
        return {"model": self.name, "results": results}

    async def infer(self, request: InferRequest, images: Sequence[bytes] | Tensor) -> dict[str, Any]:
        """The answer of the Open Inference Protocol, for image files or for normalised images, (n, C, H, W)."""
        if isinstance(images, Tensor):
            run = partial(self.predictor.answer, images, normalised=True)
            probabilities = await self.batcher.alone(run, num_images=len(images))
        else:
            names = [f"image {row}" for row in range(len(images))]
            probabilities = await self.batcher.submit(await self.decode(images, names))
        self.images.inc(len(images))
        best = probabilities.argmax(dim=1).tolist()
        return {
            "model_name": self.name,
            "id": request.id,
            "outputs": [
                {
                    "name": "probabilities",
                    "datatype": "FP32",
                    "shape": list(probabilities.shape),
                    "data": probabilities.flatten().tolist(),
                },
                {
                    "name": "label",
                    "datatype": "BYTES",
                    "shape": [len(best)],
                    "data": [self.predictor.class_names[label] for label in best],
                },
            ],
        }

    async def attention(self, content: bytes) -> dict[str, Any]:
        """Where the class token of each of `layers` looks on an image file: `attention_maps`, with their size."""
        image = await self.decode([content], ["image"])
        watch = partial(attention_maps, self.predictor, image, self.layers)
        maps = await self.batcher.alone(watch, num_images=1)  # its hooks are the network's
        height, width = image.shape[-2:]
        return {"height": height, "width": width, "layers": self.layers, "maps": maps}

    def about(self) -> dict[str, Any]:
        """What the page must know."""
        return {
            "engine": "http",
            "model": self.name,
            "classes": self.predictor.class_names,
            "data_config": self.predictor.data_config,
            "layers": self.layers,
            "max_bytes": self.limits.max_bytes,
            "needs_key": bool(os.environ.get(KEY_VARIABLE)),
        }

    def inputs(self) -> list[dict[str, Any]]:
        channels, height, width = self.predictor.data_config["input_size"]
        return [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "images", "datatype": "FP32", "shape": [-1, channels, height, width]},
        ]
