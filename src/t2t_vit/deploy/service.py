"""The HTTP interface of a network: labels of images, the Open Inference Protocol, a page for people, and metrics."""

import asyncio
import base64
import binascii
import hmac
import importlib.resources
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

import t2t_vit
from t2t_vit.data.loading import default_workers
from t2t_vit.data.pixels import PixelFormat
from t2t_vit.data.transforms import eval_transform
from t2t_vit.deploy.attention_maps import attention_maps, layers_shown
from t2t_vit.deploy.batching import Batcher, QueueFull
from t2t_vit.deploy.limits import Limits, Rejected, decode
from t2t_vit.inference.predictor import Predictor

_logger = logging.getLogger("t2t_vit.serve")
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it tells of every form that is damaged

KEY_VARIABLE = "T2T_VIT_API_KEY"
"""The environment variable with the key that requests must have; without it all are answered."""
OPEN_PATHS = ("/", "/health", "/ready", "/model.json", "/openapi.json", "/v2/health/live", "/v2/health/ready")
RETRY_AFTER_S = 1
PENDING = "t2t_vit.pending_bytes"
"""The entry of a request's scope with the bytes that it holds."""


class Label(BaseModel):
    label: str
    probability: float


class Result(BaseModel):
    """Of one image: the labels, the likeliest first."""

    name: str
    labels: list[Label]


class Answer(BaseModel):
    model: str
    results: list[Result]


class Encoded(BaseModel):
    """Image files in base64."""

    model_config = ConfigDict(extra="forbid")
    images: list[str] = Field(min_length=1)


class Problem(BaseModel):
    error: str


class Tensors(BaseModel):
    """A tensor of the Open Inference Protocol."""

    model_config = ConfigDict(strict=True)
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferRequest(BaseModel):
    id: str | None = None
    inputs: list[Tensors] = Field(min_length=1)


class Overlay(BaseModel):
    """How the class token attends to the pixels, a layer after the other, as PNG images in base64."""

    height: int
    width: int
    layers: list[str]
    maps: list[str]


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": why}
    for status, why in {
        400: "the body is not what its type says",
        401: "the key is missing or wrong",
        413: "too many bytes, pixels or images",
        415: "no image, or a body of another type",
        422: "a damaged image, or a value out of range",
        429: "too many images are waiting: see Retry-After",
        503: "not ready, or stopping",
        504: "it took too long",
    }.items()
}
BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "application/json": {"schema": Encoded.model_json_schema()},
        },
    }
}


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
            task.exception()  # told by the first that failed

    async def predict(self, contents: Sequence[bytes], names: Sequence[str], top_k: int | None) -> dict[str, Any]:
        """The labels of image files."""
        probabilities = await self.batcher.submit(await self.decode(contents, names))
        self.images.inc(len(contents))
        results = [
            {"name": name, "labels": [{"label": label, "probability": value} for label, value in labels]}
            for name, labels in zip(names, self.predictor.labels_of(probabilities, top_k), strict=True)
        ]
        return {"model": self.name, "results": results}

    async def infer(self, request: InferRequest, contents: Sequence[bytes] | None) -> dict[str, Any]:
        """The answer of the Open Inference Protocol, for image files or for normalised images."""
        (tensor,) = request.inputs
        names = [f"image {row}" for row in range(tensor.shape[0])]
        if contents is not None:
            probabilities = await self.batcher.submit(await self.decode(contents, names))
        else:
            run = partial(self.predictor.answer, _as_tensor(tensor), normalised=True)
            probabilities = await self.batcher.alone(run, num_images=len(names))
        self.images.inc(len(names))
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

    async def attention(self, content: bytes) -> Overlay:
        """Where the class token of each layer looks."""
        if not self.layers:
            raise Rejected(404, f"{self.name} has no attention that can be shown")
        image = await self.decode([content], ["image"])
        watch = partial(attention_maps, self.predictor, image, self.layers)
        found = await self.batcher.alone(watch, num_images=1)  # its hooks are the network's
        height, width = image.shape[-2:]
        return Overlay(height=height, width=width, layers=self.layers, maps=found)

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


def make_app(service: Service, *, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """The application of a service.

    Args:
        hosts: the names by which it may be called; a page of somebody else's, whose name was made to lead here, has
            another one.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start())  # meanwhile requests are told that it is not ready
        yield
        await starting
        await service.stop()

    # FastAPI's pages on the interface take their programs from another host.
    app = FastAPI(title="t2t_vit", version=t2t_vit.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    if "*" not in hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts])
    _add_guards(app, service)
    _add_status(app, service)
    _add_predictions(app, service)
    _add_open_inference(app, service)
    return app


def _problem(status: int, reason: str) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return JSONResponse({"error": reason}, status_code=status, headers=headers)


def _add_guards(app: FastAPI, service: Service) -> None:
    """Keys and times, and errors as JSON."""

    app.add_middleware(Guard, service=service)

    @app.exception_handler(Rejected)
    async def rejected(request: Request, error: Rejected) -> JSONResponse:
        return _problem(error.status, error.reason)

    @app.exception_handler(QueueFull)
    async def full(request: Request, error: QueueFull) -> JSONResponse:
        return _problem(429, "too many images are waiting: try again")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail))


class Guard:
    """Asks for the key, gives up what takes too long, tells failures without their details, and counts."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, statuses = perf_counter(), list[int]()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        problem = None
        key = os.environ.get(KEY_VARIABLE)
        if key and scope["path"] not in OPEN_PATHS and not _has_key(Request(scope), key):
            problem = _problem(401, "the key is missing or wrong: send it as X-API-Key")
        else:
            try:
                async with asyncio.timeout(self.service.limits.timeout_s):
                    await self.app(scope, receive, counted)
            except ClientDisconnect:
                pass  # nobody is there to be told
            except TimeoutError:
                problem = _problem(504, f"no answer within {self.service.limits.timeout_s:g} s")
            except Exception:
                _logger.exception("a request failed")
                problem = _problem(500, "this should not have happened; the server's log says what did")
        if problem is not None and not statuses:
            await problem(scope, receive, counted)
        self.service.num_pending_bytes -= scope.get(PENDING, 0)
        path = getattr(scope.get("route"), "path", "other")
        self.service.requests.labels(path, str(statuses[0] if statuses else 499)).inc()
        self.service.seconds.observe(perf_counter() - start)


def _has_key(request: Request, key: str) -> bool:
    given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(given.encode("latin-1", "replace"), key.encode())  # as starlette decodes headers


def _add_status(app: FastAPI, service: Service) -> None:
    page = importlib.resources.files("t2t_vit.deploy").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/model.json", include_in_schema=False)
    async def about() -> dict[str, Any]:
        return service.about()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    @app.get("/ready", responses={503: PROBLEMS[503]})
    async def ready() -> Any:
        """Whether images are answered."""
        return {"status": "ready"} if service.is_ready else _problem(503, "not ready")

    @app.get("/metrics", responses={401: PROBLEMS[401]})
    async def metrics() -> Response:
        """Counts for Prometheus."""
        registry = service.registry
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            _forget_dead_processes(Path(folder))
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _forget_dead_processes(folder: Path) -> None:
    """Removes the counts of what waits in processes that are gone."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists():
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post("/predict", response_model=Answer, responses=PROBLEMS, openapi_extra=BODIES)
    async def predict(
        contents: Annotated[list[tuple[str, bytes]], Depends(_contents(service))],
        top_k: Annotated[int | None, Query(ge=1, le=100_000, description="labels of an image")] = 5,
    ) -> JSONResponse:
        """Labels of the images in a body: one file, several of a form, or base64 in JSON."""
        names, files = zip(*contents, strict=True)
        return JSONResponse(await service.predict(files, names, top_k))  # of our own making: not validated again

    @app.post("/attention", responses={404: {"model": Problem}, **PROBLEMS}, openapi_extra=BODIES)
    async def attention(contents: Annotated[list[tuple[str, bytes]], Depends(_contents(service))]) -> Overlay:
        """Where the class token of each layer looks on the first image of a body."""
        return await service.attention(contents[0][1])


def _contents(service: Service) -> Callable[[Request], Awaitable[list[tuple[str, bytes]]]]:
    """Reads the files of a request, with their names."""
    limits = service.limits
    loop = asyncio.get_running_loop

    async def read(request: Request) -> list[tuple[str, bytes]]:
        if not service.is_ready:
            raise Rejected(503, "not ready")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await _files_of_form(request, service)
        body = await _body(request, service)
        if kind == "application/json":  # not in this thread: large bodies take long
            return await loop().run_in_executor(service.decoders, _files_of_json, body, limits)
        if kind in ("", "application/octet-stream") or kind.startswith("image/"):
            return [("image", body)]
        raise Rejected(415, f"expected an image, a form or JSON, got {kind}")

    return read


async def _body(request: Request, service: Service) -> bytes:
    """The body, unless it is too large; what it says of its length need not be true."""
    limits = service.limits
    told = request.headers.get("content-length", "0")
    if told.isdecimal() and int(told) > limits.max_bytes:
        raise Rejected(413, f"the body has more than {limits.max_bytes:,} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        request.scope[PENDING] = request.scope.get(PENDING, 0) + len(chunk)
        service.num_pending_bytes += len(chunk)
        if service.num_pending_bytes > limits.max_pending_bytes:
            raise QueueFull
        if len(body) > limits.max_bytes:
            raise Rejected(413, f"the body has more than {limits.max_bytes:,} bytes")
    return bytes(body)


async def _files_of_form(request: Request, service: Service) -> list[tuple[str, bytes]]:
    body, limits = await _body(request, service), service.limits

    async def again() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        # The form is parsed from what was counted.
        async with Request(request.scope, again).form(
            max_files=limits.max_images, max_fields=limits.max_images
        ) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            found = [(_as_text(file.filename or f"image {row}"), await file.read()) for row, file in enumerate(files)]
    except (MultiPartException, HTTPException) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", None) or str(error)
        raise Rejected(413 if "Too many" in str(reason) else 400, f"the form cannot be read: {reason}") from error
    except Exception as error:  # the parser's, on a stranger's bytes
        raise Rejected(400, "the form cannot be read") from error
    if not found:
        raise Rejected(422, "the form has no file")
    return found


def _as_text(name: str) -> str:
    """A file's name without what is no letter of any alphabet."""
    return name.encode("utf-8", "replace").decode()


def _files_of_json(body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    try:
        encoded = Encoded.model_validate_json(body)
    except ValueError as error:
        raise Rejected(422, 'expected JSON such as {"images": ["<base64>"]}') from error
    if len(encoded.images) > limits.max_images:
        raise Rejected(413, f"more than {limits.max_images} images")
    return [(f"image {row}", _from_base64(text)) for row, text in enumerate(encoded.images)]


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)  # also of a data URL
    except (binascii.Error, ValueError) as error:
        raise Rejected(422, "an image is not in base64") from error


def _add_open_inference(app: FastAPI, service: Service) -> None:
    """The routes of the Open Inference Protocol (KServe v2)."""
    unknown: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "another model"}}

    def known(name: str) -> None:
        if name != service.name:
            raise Rejected(404, f"there is no model {name[:100]} here, but {service.name}")

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """This server."""
        return {"name": "t2t_vit", "version": t2t_vit.__version__, "extensions": []}

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """Whether the process is alive."""
        return {"live": True}

    @app.get("/v2/health/ready", responses={503: PROBLEMS[503]})
    async def all_ready() -> Any:
        """Whether images are answered."""
        return {"ready": True} if service.is_ready else _problem(503, "not ready")

    @app.get("/v2/models/{name}", responses=unknown)
    async def model(name: str) -> dict[str, Any]:
        """The model's inputs and outputs."""
        known(name)
        outputs = [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(service.predictor.class_names)]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ]
        about = {"name": service.name, "versions": ["1"], "platform": "t2t_vit"}
        return {**about, "inputs": service.inputs(), "outputs": outputs}

    @app.get("/v2/models/{name}/ready", responses={**unknown, 503: PROBLEMS[503]})
    async def model_ready(name: str) -> Any:
        """Whether the model answers."""
        known(name)
        return {"ready": True} if service.is_ready else _problem(503, "not ready")

    @app.post(
        "/v2/models/{name}/infer",
        responses={**unknown, **PROBLEMS},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
                    }
                },
            }
        },
    )
    async def infer(name: str, request: Request) -> Any:
        """Probabilities of image files in base64 (input image, BYTES), or of normalised images (input images, FP32)."""
        known(name)
        if not service.is_ready:
            raise Rejected(503, "not ready")
        try:
            body = await _body(request, service)
            loop = asyncio.get_running_loop()
            asked = await loop.run_in_executor(service.decoders, InferRequest.model_validate_json, body)
        except ValueError as error:
            raise Rejected(422, "expected a request of the Open Inference Protocol") from error
        contents = await loop.run_in_executor(service.decoders, _checked, asked, service)
        return await service.infer(asked, contents)


def _checked(request: InferRequest, service: Service) -> list[bytes] | None:
    """The image files of a request; None for normalised images."""
    if len(request.inputs) != 1:
        raise Rejected(422, "expected one input: image or images")
    (tensor,) = request.inputs
    count = tensor.shape[0] if tensor.shape else 0
    if not 0 < count <= service.limits.max_images:
        raise Rejected(413 if count > 0 else 422, f"expected 1 to {service.limits.max_images} images")
    if tensor.datatype == "BYTES" and tensor.name == "image":
        if len(tensor.shape) != 1 or len(tensor.data) != count or not all(isinstance(one, str) for one in tensor.data):
            raise Rejected(422, "expected as many texts in base64 as the shape says")
        return [_from_base64(text) for text in tensor.data]
    wanted = [count, *service.predictor.data_config["input_size"]]
    if tensor.datatype != "FP32" or tensor.name != "images" or tensor.shape != wanted:
        raise Rejected(422, f"expected image, BYTES [n], or images, FP32 [n, {', '.join(map(str, wanted[1:]))}]")
    size = torch.Size(wanted).numel()
    tensor.data = _flatten(tensor.data, size)
    if len(tensor.data) != size or not all(type(value) in (int, float) for value in tensor.data):
        raise Rejected(422, f"expected {size:,} numbers")
    return None


def _flatten(values: Sequence[Any], size: int) -> list[Any]:
    """Nested lists as one, at any depth that a tensor has; no further where there are more than `size` values."""
    flat = list(values)
    for _ in range(4):
        if len(flat) > size or not any(isinstance(value, list) for value in flat):
            break
        flat = [inner for value in flat for inner in (value if isinstance(value, list) else [value])]
    return flat


def _as_tensor(tensor: Tensors) -> Tensor:
    try:
        images = torch.tensor(tensor.data, dtype=torch.float32).reshape(tensor.shape)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise Rejected(422, "the images have values that are no float32") from error
    if not torch.isfinite(images).all():
        raise Rejected(422, "the images have values that are not finite")
    return images
