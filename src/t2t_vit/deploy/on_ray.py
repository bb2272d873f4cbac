"""Many machines: the same `Predictor` mapped over paths by Ray Data, and the same server in replicas of Ray Serve."""

import dataclasses
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from t2t_vit.deploy.config import PredictConfig, ServeConfig
from t2t_vit.errors import UserError
from t2t_vit.inference.exported import need
from t2t_vit.inference.predictor import Prediction, Predictor
from t2t_vit.runtime.downloads import is_url

APPLICATION = "t2t_vit"
NUM_PARTS = 4
"""Batches of a task: what is lost, and done again, where a machine dies."""


class RayPredictor:
    """A `Predictor` in an actor of Ray: maps a batch of paths to their predictions, as Ray Data wants both."""

    def __init__(self, config: PredictConfig, top_k: int) -> None:
        import torch

        torch.set_num_threads(1)  # an actor has a core; more actors use more
        self.config, self.top_k = config, top_k
        self.predictor = Predictor(
            config.checkpoint,
            device=config.device,
            background=config.background,
            runtime=config.runtime,
            trust_code=config.trust_code,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        paths = [str(path) for path in batch["path"]]
        found = self.predictor(
            paths,
            self.top_k,
            embed=self.config.embed,
            flip=self.config.flip,
            batch_size=self.config.batch_size,
            workers=0,  # other actors read meanwhile
        )
        return {"prediction": [_plain(prediction) for prediction in found]}


def predict_on_ray(
    config: PredictConfig, paths: Sequence[Path | str], *, top_k: int, batch_size: int
) -> Iterator[Prediction]:
    """The predictions of some files, in order, by one actor for each of `--ray` places in a cluster.

    The cluster is the one that RAY_ADDRESS names, else one of this machine that lives as long as the command. All of
    its machines must see the files and the checkpoint under the same paths. What a machine that dies was working on is
    done again by others.

    Raises:
        UserError: Ray is not installed, or its cluster does not start.
    """
    ray = need("ray", "ray")
    need("ray.data", "ray")
    assert config.ray is not None
    with _ray_errors_told():
        _join_cluster(ray)
    config = dataclasses.replace(config, checkpoint=absolute(config.checkpoint))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    num_gpus = _gpus_of_each(ray, config)
    num_blocks = max(1, -(-len(paths) // (NUM_PARTS * batch_size)))
    items = ray.data.from_items([{"path": absolute(str(path))} for path in paths], override_num_blocks=num_blocks)
    rows = items.map_batches(
        RayPredictor,
        fn_constructor_args=(config, top_k),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=config.ray),
        num_gpus=num_gpus or None,
        max_restarts=-1,
        max_task_retries=-1,
    )
    for path, row in zip(paths, rows.iter_rows(), strict=True):
        yield _prediction(row["prediction"])._replace(name=str(path))


def serve_on_ray(
    config: ServeConfig, build: Callable[[], Any], *, host: str, port: int, stop_s: float, started: Callable[[], None]
) -> None:
    """Serves an application in one to `--ray` replicas, until SIGTERM or Ctrl-C, and then answers what it has.

    The cluster is the one that RAY_ADDRESS names, else one of this machine that lives as long as the command. Ray
    Serve must not run there yet. All of its machines must see the checkpoint under the same path. A replica that dies
    is replaced.

    Args:
        build: makes the application, in each replica.
        host, port: where each machine with a replica listens.
        stop_s: how long a replica that is stopped waits for its last request.
        started: called when the first replica answers.

    Raises:
        UserError: the cluster or a replica does not start, or Ray Serve runs there.
    """
    ray, ray_serve = need("ray", "ray"), need("ray.serve", "ray")
    assert config.ray is not None
    with _ray_errors_told():
        _join_cluster(ray)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray has set its own
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if ray_serve.status().proxies:
            raise UserError(
                "Ray Serve runs in this cluster already, and would stay at its own address: end it (serve shutdown), "
                "or start another cluster."
            )
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        replica = ray_serve.deployment(
            ray_serve.ingress(lambda: build())(),  # Ray knows functions alone, and no partial ones
            # A replica for each batch in hand; each computes one while the next gathers.
            autoscaling_config={
                "min_replicas": 1,
                "max_replicas": config.ray,
                "target_ongoing_requests": config.batch_size,
            },
            max_ongoing_requests=2 * config.batch_size,
            max_queued_requests=config.queue,
            ray_actor_options={"num_cpus": 1, "num_gpus": _gpus_of_each(ray, config)},
            graceful_shutdown_timeout_s=stop_s,
        )
        try:
            ray_serve.start(http_options={"host": host, "port": port, "request_timeout_s": stop_s})
            ray_serve.run(replica.bind(), name=APPLICATION, logging_config={"log_level": "ERROR"})
            started()
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
            _finish(ray_serve, stop_s)
        except KeyboardInterrupt:
            pass  # before anything was served
        finally:
            ray_serve.shutdown()
            ray.shutdown()


def _finish(ray_serve: Any, stop_s: float) -> None:
    """Lets the replicas answer what they have, which a shutdown does not."""
    ray_serve.delete(APPLICATION, _blocking=False)
    deadline = time.monotonic() + stop_s + 10
    while APPLICATION in ray_serve.status().applications and time.monotonic() < deadline:
        time.sleep(0.2)


@contextmanager
def _ray_errors_told() -> Iterator[None]:
    """Ray's errors, of which those of a cluster are builtin ones, as errors for users."""
    ray = need("ray", "ray")
    kinds = (ConnectionError, RuntimeError, TimeoutError, ValueError, ray.exceptions.RayError)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, kinds) and not type(error).__module__.startswith("ray."):
            raise
        lines = str(error).strip().splitlines()
        raise UserError(f"Ray failed: {lines[0] if lines else type(error).__name__}") from error


def _join_cluster(ray: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of each cluster
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own future
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="error")


def _gpus_of_each(ray: Any, config: PredictConfig | ServeConfig) -> float:
    """The GPU, or the part of one, of each of `--ray` processes."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if config.device in ("auto", "cuda") else 0
    return 1 / math.ceil((config.ray or 1) / gpus) if gpus else 0.0


def absolute(path: str) -> str:
    """A path that means the same in whatever folder a process of the cluster works; addresses stay."""
    return path if is_url(path) else str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 (Path's may raise)


def _plain(prediction: Prediction) -> dict[str, Any]:
    embedding = None if prediction.embedding is None else prediction.embedding.tolist()
    return {**prediction._asdict(), "embedding": embedding}


def _prediction(plain: dict[str, Any]) -> Prediction:
    import torch

    embedding = None if plain["embedding"] is None else torch.tensor(plain["embedding"])
    labels = [(str(label), float(probability)) for label, probability in plain["labels"]]
    return Prediction(plain["name"], labels, error=plain["error"], embedding=embedding)
