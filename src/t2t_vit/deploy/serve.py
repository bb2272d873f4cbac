"""`t2t-vit serve`: the HTTP server, in one process or several."""

import dataclasses
import json
import math
import os
import socket
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from t2t_vit.data.loading import default_workers
from t2t_vit.deploy.config import ServeConfig
from t2t_vit.deploy.limits import KEY_VARIABLE, Limits
from t2t_vit.deploy.on_ray import absolute, serve_on_ray
from t2t_vit.errors import UserError
from t2t_vit.inference.exported import need
from t2t_vit.inference.predictor import Predictor

if TYPE_CHECKING:
    from fastapi import FastAPI

SETTINGS_VARIABLE = "T2T_VIT_SERVE"
"""The environment variable that tells the processes of a server their settings, as JSON."""
GRACE_S = 5
"""How long after the time-out of the last request a server that is stopped waits for it."""
LOOPBACK = ("127.0.0.1", "::1", "[::1]", "localhost")


def serve(config: ServeConfig) -> None:
    """Serves until it is stopped.

    Raises:
        UserError: the checkpoint cannot be used, a package is missing, or the port is taken.
    """
    for package in ("fastapi", "uvicorn", "prometheus_client", "multipart"):
        need(package, "serve")
    if config.ray is not None:
        need("ray.serve", "ray")
    import uvicorn

    # What is wrong with the checkpoint is told here, in one line, and not by the processes of the server.
    predictor = predictor_of(config)
    print(predictor.checkpoint.report, file=sys.stderr)
    listening = _listen(config)
    host, port = listening.getsockname()[:2]
    announce = partial(_announce, host, port)
    stop_s = math.ceil(config.timeout) + GRACE_S
    if config.ray is not None:
        del predictor
        listening.close()  # Ray takes the port itself
        config = dataclasses.replace(config, checkpoint=absolute(config.checkpoint))
        build = partial(app_of_replica, config, os.environ.get(KEY_VARIABLE))
        print("starting Ray, and a first replica", file=sys.stderr, flush=True)
        serve_on_ray(config, build, host=host, port=port, stop_s=stop_s, started=announce)
        return
    announce()
    settings: dict[str, Any] = {
        "log_level": "warning",
        "timeout_graceful_shutdown": stop_s,
        "http": "h11",
        "server_header": False,
        "h11_max_incomplete_event_size": 64 * 1024,  # of a request's headers
    }
    if config.workers == 1:
        uvicorn.Server(uvicorn.Config(app_of(config, predictor), **settings)).run([listening])
        return
    del predictor  # each process has its own
    os.environ[SETTINGS_VARIABLE] = json.dumps(dataclasses.asdict(config))
    application = "t2t_vit.deploy.serve:app_of_environment"
    with tempfile.TemporaryDirectory() as counts:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts  # where the processes put their counts together
        uvicorn.run(application, factory=True, fd=listening.fileno(), workers=config.workers, **settings)


def _announce(host: str, port: int) -> None:
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(
        f"serving at {where} (the page), {where}/openapi.json (the interface); stop it with Ctrl-C",
        file=sys.stderr,
        flush=True,
    )
    if host not in LOOPBACK and not os.environ.get(KEY_VARIABLE):
        print(f"warning: other machines can reach it, and no key is asked for: set {KEY_VARIABLE}", file=sys.stderr)


def app_of_environment() -> "FastAPI":
    """The application of one process of a server, by the settings in its environment."""
    config = ServeConfig(**json.loads(os.environ[SETTINGS_VARIABLE]))
    torch.set_num_threads(max(1, torch.get_num_threads() // config.workers))
    return app_of(config, predictor_of(config))


def app_of_replica(config: ServeConfig, key: str | None) -> "FastAPI":
    """The application of one network in a Ray cluster, which asks for the key of whoever started it."""
    if key:
        os.environ[KEY_VARIABLE] = key
    torch.set_num_threads(1)  # a replica has a core; more replicas use more
    return app_of(config, predictor_of(config))


def app_of(config: ServeConfig, predictor: Predictor) -> "FastAPI":
    """The application that the settings ask for."""
    from t2t_vit.deploy.app import make_app  # here, as FastAPI is an extra
    from t2t_vit.deploy.service import Service

    limits = Limits(
        max_bytes=round(config.max_megabytes * 1e6),
        max_pixels=round(config.max_megapixels * 1e6),
        max_images=config.max_images,
        timeout_s=config.timeout,
    )
    service = Service(
        predictor,
        limits=limits,
        max_batch=config.batch_size,
        max_wait_s=config.max_wait_ms / 1000,
        capacity=config.queue,
        num_decoders=1 if config.ray is not None else max(1, default_workers() // config.workers),
    )
    hosts = LOOPBACK if config.host in LOOPBACK else ("*",)
    return make_app(service, hosts=hosts, starts_ready=config.ray is not None)


def predictor_of(config: ServeConfig) -> Predictor:
    """The network that the settings name."""
    return Predictor(
        config.checkpoint,
        device=config.device,
        amp=config.amp,
        background=config.background,
        runtime=config.runtime,
        trust_code=config.trust_code,
    )


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family)
    # Its connections inherit this. Without it each answer waits 40 ms to be acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"{config.host}, port {config.port} cannot be listened at: {error.strerror or error}. Choose another "
            "--port, or 0 for a free one."
        ) from error
    listening.listen(1024)  # from here on callers wait instead of being refused
    listening.set_inheritable(True)
    return listening
