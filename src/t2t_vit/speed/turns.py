"""Contenders take turns at being timed, each in a process of its own.

A process of its own gives each network its own peak of memory, its own compiler and its own modules. One process works
at a time; the others wait without using the processor. The order is shuffled, and every second round goes through it
backwards, so that a machine that slows down or speeds up does so for all contenders alike.
"""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import random
import signal
import statistics
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

import torch

from t2t_vit.errors import UserError
from t2t_vit.runtime.hardware import peak_bytes, reset_peak
from t2t_vit.runtime.memory import keep_freed_memory
from t2t_vit.speed.contenders import Contender, prepare, seconds_per_step

T = TypeVar("T")

WARM_UP_STEPS = 3  # CUDA graphs are recorded in the second step and replayed from the third
PATIENCE_S = 3.0  # with a process that is to end


class Failed(Exception):
    """A contender could not go on; the message says why, in one line."""


class Round(NamedTuple):
    """The result of a contender's turn."""

    images_per_second: float
    peak_bytes: int  # of memory, from the building of the network to the end of the turn


@dataclasses.dataclass
class Outcome:
    """The results of a contender; one that failed has an `error` and no rounds."""

    contender: Contender
    macs: int = 0  # multiply-accumulates of one image
    rounds: list[Round] = dataclasses.field(default_factory=list)
    error: str = ""

    @property
    def images_per_second(self) -> float | None:
        """The median of the rounds; None where the contender failed."""
        return statistics.median(done.images_per_second for done in self.rounds) if self.rounds else None


def measure(
    contenders: Sequence[Contender], *, device: torch.device, rounds: int, seconds: float, threads: int | None = None
) -> list[Outcome]:
    """Times contenders in turns.

    Args:
        contenders: all of them are in memory at the same time; only one works.
        rounds: the number of turns that each contender has.
        seconds: the least that a turn lasts.
        threads: of torch in each process; None leaves torch's default.

    Returns:
        One outcome for each contender, in their order. One that fails does not stop the others.
    """
    outcomes = [Outcome(contender) for contender in contenders]
    processes: list[ContenderProcess] = []
    try:
        for _ in contenders:  # all of them import torch at the same time
            processes.append(ContenderProcess(threads))
        pairs = list(zip(outcomes, processes, strict=True))
        for outcome, process in pairs:
            with _failure_told_in(outcome, process):
                outcome.macs = process.call(get_ready, outcome.contender, device, seconds)
        for outcome, process in alternating(pairs, rounds):
            if not outcome.error:
                with _failure_told_in(outcome, process):
                    outcome.rounds.append(process.call(take_turn))
    finally:
        for process in processes:
            process.end()
    return outcomes


def alternating(items: Sequence[T], rounds: int) -> Iterator[T]:
    """All items in each round: in a shuffled order, in the next round backwards, and so on."""
    order = list(items)
    shuffle = random.Random(0).shuffle
    for number in range(rounds):
        if number % 2:
            order.reverse()
        else:
            shuffle(order)
        yield from order


@contextlib.contextmanager
def _failure_told_in(outcome: Outcome, process: "ContenderProcess") -> Iterator[None]:
    try:
        yield
    except Failed as failure:
        outcome.error = str(failure)
        outcome.rounds.clear()
        process.end()  # the others get its memory


class ContenderProcess:
    """A fresh process that works for one contender, one call after the other.

    Args:
        threads: of torch in that process; None leaves torch's default.
    """

    def __init__(self, threads: int | None) -> None:
        others = multiprocessing.active_children()
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, initializer=set_up_process, initargs=(threads,))
        # The process inherits that Ctrl-C is held back: only the parent gets it, and ends the process.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._pool.submit(int)  # the first call starts the process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        (self._process,) = set(multiprocessing.active_children()).difference(others)

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Returns what the function returns in the process.

        Raises:
            Failed: the process has died.
        """
        try:
            return self._pool.submit(function, *args).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            raise Failed(f"its process ended with exit code {self._process.exitcode}") from None

    def end(self) -> None:
        """Lets the process clean up and end; kills it where that takes too long."""
        killer = threading.Timer(PATIENCE_S, self._process.kill)
        killer.start()
        self._pool.shutdown()
        killer.cancel()


# In a contender's process

_time_round: Callable[[], Round]
"""A turn of the contender that this process works for; `get_ready` sets it."""


def set_up_process(threads: int | None) -> None:
    """Prepares a process for its contender."""
    warnings.simplefilter("ignore")
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the parent has been killed; else it would wait for calls for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def errors_told_in_one_line() -> Iterator[None]:
    """Turns any error into `Failed`, which can be sent to the parent process: not every error can be unpickled."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise Failed("out of memory") from None
    except Exception as error:
        first_line, *_ = [*str(error).splitlines(), ""]
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise Failed(f"{kind}{first_line}") from None


@errors_told_in_one_line()
def get_ready(contender: Contender, device: torch.device, seconds: float) -> int:
    """Builds the contender's network in this process, and warms it up; returns its MACs of one image."""
    global _time_round
    if contender.compile_mode:
        importlib.import_module("torch._inductor.compile_fx")  # its memory is not the network's
    bytes_before = reset_peak(device)
    step, macs = prepare(contender, device)
    for _ in range(WARM_UP_STEPS - 1):
        step()
    seconds_per_step(step, min(seconds, 1.0), device)
    reset_peak(device)

    def time_round() -> Round:
        if device.type == "cuda":
            step()  # takes again the memory that was given back
        step_s = seconds_per_step(step, seconds, device)
        done = Round(contender.batch_size / step_s, peak_bytes(device) - bytes_before)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the contender whose turn is next
        return done

    _time_round = time_round
    return macs


@errors_told_in_one_line()
def take_turn() -> Round:
    """Times the contender that `get_ready` has prepared in this process."""
    return _time_round()
