"""Contenders in their processes, and what happens in one of these, here called in the test's own."""

import multiprocessing
import os
import signal
import warnings
from functools import partial
from multiprocessing import Pipe

import pytest
import torch
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.runtime.hardware import peak_bytes, reset_peak
from t2t_vit.speed import contenders as module
from t2t_vit.speed.contenders import (
    Contender,
    Facts,
    Failed,
    Network,
    Round,
    alternating,
    build_model,
    measure,
    official_models,
    prepare,
    seconds_per_step,
)

CPU = torch.device("cpu")


class SmallNet(nn.Module):
    """Remembers in which type it computed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.frozen = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.calls = []

    def forward(self, x):
        y = self.conv(x)
        self.calls.append((x.dtype, y.dtype, self.training, torch.is_grad_enabled()))
        return y.mean((2, 3)) + self.frozen


def contender(**changes):
    """A contender around one SmallNet, and that."""
    net = SmallNet()
    settings = {"name": "small", "mode": "infer", "precision": "float32", "batch_size": 2}
    return Contender(build=lambda: Network(net, (3, 8, 12), 1000), **settings | changes), net


@pytest.mark.parametrize(
    ("precision", "types"),
    [
        ("float32", (torch.float32, torch.float32)),
        ("bfloat16", (torch.bfloat16, torch.bfloat16)),
        ("amp_bfloat16", (torch.float32, torch.bfloat16)),
    ],
)
def test_precision_is_of_the_weights_or_of_autocast(precision, types):
    asked, net = contender(precision=precision)
    step, facts = prepare(asked, CPU)
    step()
    assert net.calls == [(*types, False, False)]
    assert net.conv.weight.dtype == types[0]
    assert facts == Facts((8, 12), 1000, torch.get_num_threads())


@pytest.mark.parametrize("precision", ["float32", "amp_float16", "amp_bfloat16"])
def test_a_training_step_changes_the_weights(precision):
    asked, net = contender(mode="train", precision=precision)
    step, _ = prepare(asked, CPU)
    before = net.conv.weight.clone()
    net.calls.clear()
    for _ in range(20):  # the first steps of a gradient scaler may be skipped
        step()
    assert all(call[2:] == (True, True) for call in net.calls)
    assert not torch.equal(net.conv.weight, before)
    assert net.frozen.grad is None


def test_layout_and_compiler_are_as_asked(monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda net, mode: modes.append(mode) or net)
    asked, net = contender(compile_mode="reduce-overhead", channels_last=True)
    prepare(asked, CPU)[0]()
    assert modes == ["reduce-overhead"]
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_steps_fill_the_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def step():
        clock[0] += 0.3

    assert seconds_per_step(step, 1.0, CPU) == pytest.approx(0.3)
    assert clock[0] == pytest.approx(1.2)
    assert seconds_per_step(step, 0.0, CPU) == pytest.approx(0.3)


def test_each_round_has_everyone_and_the_next_goes_backwards():
    order = list(alternating("abcdef", 6))
    rounds = [order[start : start + 6] for start in range(0, 36, 6)]
    assert all(sorted(names) == list("abcdef") for names in rounds)
    assert [rounds[1], rounds[3]] == [rounds[0][::-1], rounds[2][::-1]]
    assert rounds[0] != rounds[2]


class FakeWorker:
    """Answers as a contender's process does; `script` says what each one of them fails at."""

    log = ()

    def __init__(self, contender, **settings):
        self.name, self.asked = contender.name, 0
        self.log.append(("start", self.name))

    def ask(self):
        self.log.append(("ask", self.name))
        self.asked += 1
        if self.name == "weak" and self.asked == 3:
            raise Failed("no more")
        return Facts((8, 8), 1, 1) if self.asked == 1 else Round(10.0 * self.asked, 5)


@pytest.fixture
def log(monkeypatch):
    """What FakeWorkers, in the place of processes, are told to do."""
    log = []
    monkeypatch.setattr(FakeWorker, "log", log)
    monkeypatch.setattr(module, "_Worker", FakeWorker)
    monkeypatch.setattr(module, "_end", lambda workers: log.append(("end", *(worker.name for worker in workers))))
    return log


def test_one_that_fails_does_not_stop_the_others(log):
    some = [contender(name=name)[0] for name in ("weak", "strong", "calm")]
    weak, strong, calm = measure(some, device=CPU, rounds=4, seconds=1)
    assert (weak.error, weak.rounds) == ("no more", [])
    assert [done.images_per_second for done in strong.rounds] == [20.0, 30.0, 40.0, 50.0]
    assert len(calm.rounds) == 4
    assert log[:6] == [(do, one.name) for do in ("start", "ask") for one in some]
    assert log.count(("ask", "weak")) == 3
    assert [entry for entry in log if entry[0] == "end"] == [("end", "weak"), ("end", "weak", "strong", "calm")]


def test_all_are_ended_when_the_user_stops(log, monkeypatch):
    def stop(worker):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeWorker, "ask", stop)
    with pytest.raises(KeyboardInterrupt):
        measure([contender(name=name)[0] for name in "ab"], device=CPU, rounds=1, seconds=1)
    assert log[2:] == [("end", "a", "b")]


def sleep_long(connection):
    """What a process does that listens to nobody."""
    signal.sigwait([signal.SIGUSR1])


def test_processes_are_ended_in_time(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    worker = object.__new__(module._Worker)
    worker.connection, theirs = Pipe()
    worker.process = multiprocessing.get_context("fork").Process(target=sleep_long, args=(theirs,), daemon=True)
    worker.process.start()
    module._end([worker, worker])
    assert worker.process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_processes_that_die_or_fail_tell_it():
    settings = {"mode": "infer", "precision": "float32", "batch_size": 1}
    dies = Contender("dies", partial(os._exit, 7), **settings)
    small = Contender("small", partial(build_model, "t2t_vit_7", 2), **settings)
    died, failed = measure([dies, small], device=CPU, rounds=1, seconds=0.01, threads=1)
    assert died.error == "its process ended with exit code 7"
    assert failed.error.startswith("An image of 2 x 2 pixels is too small for the splits")
    assert died.facts is failed.facts is None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("Tried to allocate 20 GiB.\nSee the docs."), "out of memory"),
        (UserError("Too small.\nTake more."), "Too small."),
        (TypeError("Too odd.\nTake less."), "TypeError: Too odd."),
        (AssertionError(), "AssertionError: "),
    ],
)
def test_errors_are_told_in_one_line(error, told):
    def build():
        raise error

    ours, theirs = Pipe()
    ours.send(None)
    with warnings.catch_warnings():
        module._serve(theirs, Contender("x", build, "infer", "float32", 1), CPU, None, 1.0)
    assert str(ours.recv()) == told


def test_a_process_ends_when_nobody_asks_any_more():
    ours, theirs = Pipe()
    ours.close()
    module._serve(theirs, contender()[0], CPU, None, 1.0)


def test_a_peak_is_remembered_and_forgotten():
    before = reset_peak(CPU)
    block = torch.ones(100 << 20, dtype=torch.uint8)  # more than an allocator holds back
    del block
    assert peak_bytes(CPU) - before > 90e6
    assert reset_peak(CPU) - before < 50e6


def test_what_is_no_copy_of_the_official_code(tmp_path):
    with pytest.raises(UserError, match=r"is no copy of the official repository: expected models/t2t_vit\.py in it"):
        official_models(str(tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu_is_each_contenders_own():
    settings = {"name": "t2t_vit_7", "build": partial(build_model, "t2t_vit_7", 64), "precision": "amp_bfloat16"}
    some = [Contender(mode=mode, batch_size=size, **settings) for mode, size in (("infer", 8), ("train", 64))]
    infer, train = measure(some, device=torch.device("cuda"), rounds=2, seconds=0.05)
    assert (infer.error, train.error) == ("", "")
    assert 17e6 < infer.rounds[0].peak_bytes < 60e6  # 4.3 million weights
    assert train.rounds[0].peak_bytes > 69e6 + infer.rounds[0].peak_bytes  # with gradients and two moments of AdamW
