"""The HTTP routes of a service: labels of images, the Open Inference Protocol, a page for people, and metrics."""

import asyncio
import hmac
import importlib.resources
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import t2t_vit
from t2t_vit.deploy.batching import QueueFull
from t2t_vit.deploy.bodies import IMAGES_BODY, INFER_SCHEMA, PENDING, read_images, read_tensors
from t2t_vit.deploy.limits import KEY_VARIABLE, Rejected
from t2t_vit.deploy.service import Service

_logger = logging.getLogger("t2t_vit.serve")
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it tells of every form that is damaged

OPEN_PATHS = ("/", "/health", "/ready", "/model.json", "/openapi.json", "/v2/health/live", "/v2/health/ready")
RETRY_AFTER_S = 1


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


class Problem(BaseModel):
    error: str


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
        503: "not ready yet",
        504: "it took too long",
    }.items()
}


def make_app(service: Service, *, hosts: Sequence[str] = ("*",), starts_ready: bool = False) -> FastAPI:
    """The application of a service.

    Args:
        hosts: the names by which it may be called; a page of somebody else's, whose name was made to lead here, has
            another one.
        starts_ready: start only when images are answered, for whom sends requests from the start on.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start())  # meanwhile requests are told that it is not ready
        starting.add_done_callback(_tell_failure)
        if starts_ready:
            await starting
        yield
        await asyncio.wait([starting])
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


def _tell_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _logger.error("the network failed on a blank image: nothing will be answered", exc_info=error)


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
    async def images(request: Request) -> list[tuple[str, bytes]]:
        _need_ready(service)
        return await read_images(request, service)

    @app.post("/predict", response_model=Answer, responses=PROBLEMS, openapi_extra=IMAGES_BODY)
    async def predict(
        contents: Annotated[list[tuple[str, bytes]], Depends(images)],
        top_k: Annotated[int | None, Query(ge=1, le=100_000, description="labels of an image")] = 5,
    ) -> JSONResponse:
        """Labels of the images in a body: one file, several of a form, or base64 in JSON."""
        names, files = zip(*contents, strict=True)
        return JSONResponse(await service.predict(files, names, top_k))  # of our own making: not validated again

    @app.post("/attention", responses={404: {"model": Problem}, **PROBLEMS}, openapi_extra=IMAGES_BODY)
    async def attention(contents: Annotated[list[tuple[str, bytes]], Depends(images)]) -> Overlay:
        """Where the class token of each layer looks on the first image of a body."""
        if not service.layers:
            raise Rejected(404, f"{service.name} has no attention that can be shown")
        return Overlay(**await service.attention(contents[0][1]))


def _need_ready(service: Service) -> None:
    if not service.is_ready:
        raise Rejected(503, "not ready")


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
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": INFER_SCHEMA}}}},
    )
    async def infer(name: str, request: Request) -> Any:
        """Probabilities of image files in base64 (input image, BYTES), or of normalised images (input images, FP32)."""
        known(name)
        _need_ready(service)
        return await service.infer(*await read_tensors(request, service))
