"""Networks that take turns at being timed, each in a process of its own.

A process of its own gives each network its own peak of memory, its own compiler, and its own modules: what the official
code needs from an old timm touches nobody else. One process at a time does a round; the others wait without using the
processor. The order of the networks is shuffled, and every second round goes through it backwards, so that a machine
that slows down or speeds up does so for all alike.
"""

import contextlib
import dataclasses
import importlib
import io
import math
import multiprocessing
import random
import re
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2t_vit.errors import UserError
from t2t_vit.insight.complexity import describe, input_size_of
from t2t_vit.models.factory import create_model
from t2t_vit.runtime.hardware import peak_bytes, reset_peak
from t2t_vit.runtime.memory import keep_freed_memory

WARM_UP_STEPS = 3  # CUDA graphs are recorded in the second step and replayed from the third
PATIENCE_S = 3.0  # with a process that is to end


class Network(NamedTuple):
    """What a contender's process builds."""

    module: nn.Module
    input_size: tuple[int, int, int]  # (C, H, W)
    macs: int  # of one image


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network and what it is to do.

    Attributes:
        name: as the results call it.
        build: makes the network; it is called in the contender's process, and must therefore be picklable.
        mode: "infer"; or "train": forward, cross entropy on soft targets, backward, AdamW.
        precision: "float32"; "bfloat16" or "float16" is the type of weights and images; "amp_bfloat16" or
            "amp_float16" keeps them in float32 and runs under autocast.
        compile_mode: torch.compile's; None does not compile.
        channels_last: whether weights and images have that layout.
    """

    name: str
    build: Callable[[], Network]
    mode: str
    precision: str
    batch_size: int
    compile_mode: str | None = None
    channels_last: bool = False


class Failed(Exception):
    """A contender could not go on; says why, in one line."""


class Facts(NamedTuple):
    """What a contender tells of itself before its first round."""

    img_size: tuple[int, int]  # (H, W)
    macs: int  # of one image
    threads: int


class Round(NamedTuple):
    """What a round came to."""

    images_per_second: float
    peak_bytes: int  # from the building of the network to the end of the round


@dataclasses.dataclass
class Outcome:
    """What a contender came to; `facts` is None and `rounds` is empty as far as it did not come."""

    contender: Contender
    facts: Facts | None = None
    rounds: list[Round] = dataclasses.field(default_factory=list)
    error: str = ""


# Building


def build_model(model: str, img_size: int | None) -> Network:
    """A model of this package or of timm, with random weights."""
    macs = describe(model, img_size).macs
    return Network(create_model(model, img_size=img_size), input_size_of(model, img_size), macs)


def official_models(folder: str) -> dict[str, str]:
    """Name -> module of the models in a copy of the official repository.

    Raises:
        UserError: when it is none.
    """
    found = {
        name: f"models.{path.stem}"
        for path in sorted(Path(folder, "models").glob("*.py"))
        for name in re.findall(r"^def (t2t_vit_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    if not found:
        raise UserError(
            f"{folder} is no copy of the official repository: expected models/t2t_vit.py in it. "
            "Clone https://github.com/yitu-opensource/T2T-ViT, and name its folder."
        )
    return found


def build_official(folder: str, model: str, img_size: int | None) -> Network:
    """The model of the same name from a copy of the official repository, with random weights.

    That code was written for timm 0.3.4. The three modules of timm that it imports from are replaced in this process:
    with timm's layers of today, and with a `register_model` and a `load_pretrained` that do nothing.
    """
    macs, input_size = describe(model, img_size).macs, input_size_of(model, img_size)
    registry, helpers = types.ModuleType("timm.models.registry"), types.ModuleType("timm.models.helpers")
    registry.register_model = lambda function: function  # type: ignore[attr-defined]
    helpers.load_pretrained = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    for stand_in in (registry, helpers):
        sys.modules[stand_in.__name__] = stand_in
    sys.modules["timm.models.layers"] = timm.layers
    sys.path.insert(0, str(Path(folder).resolve()))
    module = importlib.import_module(official_models(folder)[model])
    return Network(getattr(module, model)(img_size=input_size[-1]), input_size, macs)


# In a contender's process


def prepare(contender: Contender, device: torch.device) -> tuple[Callable[[], object], Facts]:
    """The step of a contender, and what is known of it."""
    module, input_size, macs = contender.build()
    _, amp, type_name = contender.precision.rpartition("amp_")
    dtype = getattr(torch, type_name)
    placement: dict[str, Any] = {"device": device, "dtype": torch.float32 if amp else dtype}
    layout = torch.channels_last if contender.channels_last else torch.contiguous_format
    module.to(**placement, memory_format=layout).train(contender.mode == "train")
    images = torch.randn(contender.batch_size, *input_size, **placement).contiguous(memory_format=layout)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype, enabled=bool(amp))

    run = torch.compile(module, mode=contender.compile_mode) if contender.compile_mode else module
    step = _infer(run, images, autocast)
    if contender.mode == "train":
        with torch.no_grad(), autocast():
            classes = module.eval()(images[:1]).shape[1:]
        module.train()
        targets = torch.randn(contender.batch_size, *classes, device=device).softmax(dim=1)  # as mixup gives them
        # As float16 under autocast is trained. Elsewhere a scaler that is not enabled passes everything through.
        scaler = torch.amp.GradScaler(device.type, enabled=contender.precision == "amp_float16")
        step = _train(run, images, targets, autocast, scaler)
    return step, Facts(input_size[1:], macs, torch.get_num_threads())


def _infer(run: Any, images: Tensor, autocast: Callable[[], torch.autocast]) -> Callable[[], object]:
    def step() -> None:
        with torch.inference_mode(), autocast():
            run(images)

    return step


def _train(
    run: Any, images: Tensor, targets: Tensor, autocast: Callable[[], torch.autocast], scaler: torch.amp.GradScaler
) -> Callable[[], object]:
    optimizer = torch.optim.AdamW([parameter for parameter in run.parameters() if parameter.requires_grad], lr=1e-4)

    def step() -> None:
        with autocast():
            loss = F.cross_entropy(run(images).float(), targets)
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()

    return step


def seconds_per_step(step: Callable[[], object], seconds: float, device: torch.device) -> float:
    """The mean time of a step, of as many as fill the given time, and one at least."""
    num_steps, elapsed, ahead = 0, 0.0, 1
    _synchronize(device)
    while num_steps == 0 or elapsed < seconds:
        start = time.perf_counter()
        for _ in range(ahead):
            step()
        _synchronize(device)
        elapsed += time.perf_counter() - start
        num_steps += ahead
        ahead = math.ceil(max(0.0, seconds - elapsed) * num_steps / elapsed) or 1
    return elapsed / num_steps


def _synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _serve(
    connection: Connection, contender: Contender, device: torch.device, threads: int | None, seconds: float
) -> None:
    """The life of a contender's process: each message it gets asks for the next thing."""
    warnings.simplefilter("ignore")
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(EOFError, BrokenPipeError):  # it is let go
        try:
            connection.recv()
            if contender.compile_mode:
                importlib.import_module("torch._inductor.compile_fx")  # what it takes is no memory of the network's
            before = reset_peak(device)
            step, facts = prepare(contender, device)
            for _ in range(WARM_UP_STEPS - 1):
                step()
            seconds_per_step(step, min(seconds, 1.0), device)
            reset_peak(device)
            connection.send(facts)
            while True:
                connection.recv()
                connection.send(_do_round(step, contender, device, seconds, before))
        except EOFError:
            raise
        except torch.OutOfMemoryError:
            connection.send(Failed("out of memory"))
        except Exception as error:
            first_line, *_ = [*str(error).splitlines(), ""]
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            connection.send(Failed(f"{kind}{first_line}"))


def _do_round(
    step: Callable[[], object], contender: Contender, device: torch.device, seconds: float, before: int
) -> Round:
    if device.type == "cuda":
        step()  # takes again the memory that was given back
    step_s = seconds_per_step(step, seconds, device)
    done = Round(contender.batch_size / step_s, peak_bytes(device) - before)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the contender whose turn is next
    return done


# In the parent


class _Worker:
    """A contender's process, seen from outside."""

    def __init__(self, contender: Contender, **settings: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = {"connection": theirs, "contender": contender, **settings}
        self.process = context.Process(target=_serve, kwargs=arguments, daemon=True)
        with _interrupts_held():
            self.process.start()
        theirs.close()

    def ask(self) -> Any:
        """What the process does next.

        Raises:
            Failed: it failed, or is no more.
        """
        try:
            self.connection.send(None)
            reply = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise Failed(f"its process ended with exit code {self.process.exitcode}") from None
        if isinstance(reply, Failed):
            raise reply
        return reply


def _end(workers: Sequence[_Worker]) -> None:
    """Lets processes go, so that they and their compilers clean up; ends those that take too long."""
    for worker in workers:
        worker.connection.close()
    deadline = time.monotonic() + PATIENCE_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.process.kill()
        worker.process.join()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits. A process that is started meanwhile never gets it: its parent ends it."""
    resource_tracker.ensure_running()  # which the first start would do, letting Ctrl-C through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def measure(
    contenders: Sequence[Contender],
    *,
    device: torch.device,
    rounds: int,
    seconds: float,
    threads: int | None = None,
) -> list[Outcome]:
    """What contenders come to that take turns.

    Args:
        contenders: all of them are in memory at the same time; only one works.
        rounds: how often each has its turn.
        seconds: how long a turn is at least.
        threads: of each process; None leaves torch's default.

    Returns:
        One outcome for each contender, in their order. One that fails does not stop the others.
    """
    outcomes = [Outcome(contender) for contender in contenders]
    workers: list[_Worker] = []
    try:
        for contender in contenders:  # they import torch at the same time, and then wait for their turn
            workers.append(_Worker(contender, device=device, threads=threads, seconds=seconds))
        for worker, outcome in zip(workers, outcomes, strict=True):
            with _told_in(outcome, worker):
                outcome.facts = worker.ask()
        for index in alternating(range(len(workers)), rounds):
            if not outcomes[index].error:
                with _told_in(outcomes[index], workers[index]):
                    outcomes[index].rounds.append(workers[index].ask())
    finally:
        _end(workers)
    return outcomes


@contextlib.contextmanager
def _told_in(outcome: Outcome, worker: _Worker) -> Iterator[None]:
    try:
        yield
    except Failed as failure:
        outcome.error = str(failure)
        outcome.rounds.clear()
        _end([worker])  # its memory is for the others


def alternating(numbers: Iterable[int], rounds: int) -> Iterator[int]:
    """The numbers, as often as there are rounds: in shuffled orders, each of them forwards and then backwards."""
    order = list(numbers)
    shuffle = random.Random(0).shuffle
    for number in range(rounds):
        if number % 2:
            order.reverse()
        else:
            shuffle(order)
        yield from order
