"""Processes that take turns; what happens in one of them is here called in the test's own process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch
from torch import nn

from t2t_vit.errors import UserError
from t2t_vit.runtime.hardware import peak_bytes, reset_peak
from t2t_vit.speed import turns as module
from t2t_vit.speed.contenders import Contender, model_contender
from t2t_vit.speed.turns import Failed, Round, alternating, get_ready, measure

CPU = torch.device("cpu")
LINEAR = partial(nn.Linear, 12, 2)


def contender(build=LINEAR):
    return Contender("small", build, (3, 8, 12), "infer", "float32", 2)


def test_each_round_has_everyone_and_the_next_goes_backwards():
    order = list(alternating("abcdef", 6))
    rounds = [order[start : start + 6] for start in range(0, 36, 6)]
    assert all(sorted(names) == list("abcdef") for names in rounds)
    assert [rounds[1], rounds[3]] == [rounds[0][::-1], rounds[2][::-1]]
    assert rounds[0] != rounds[2]


@pytest.fixture
def log(monkeypatch):
    """What fake processes are told to do; the second one fails in its second round."""
    log = []

    class FakeProcess:
        def __init__(self, threads):
            self.number, self.calls = sum(do == "start" for do, _ in log), 0
            log.append(("start", self.number))

        def call(self, function, *args):
            log.append((function.__name__, self.number))
            self.calls += 1
            if self.number == 1 and self.calls == 3:
                raise Failed("no more")
            return 1000 if function is get_ready else Round(10.0 * self.calls, 5)

        def end(self):
            log.append(("end", self.number))

    monkeypatch.setattr(module, "ContenderProcess", FakeProcess)
    return log


def test_one_that_fails_does_not_stop_the_others(log):
    strong, weak, calm = measure([contender()] * 3, device=CPU, rounds=4, seconds=1)
    assert (weak.error, weak.rounds, weak.images_per_second) == ("no more", [], None)
    assert [done.images_per_second for done in strong.rounds] == [20.0, 30.0, 40.0, 50.0]
    assert (strong.macs, strong.images_per_second, len(calm.rounds)) == (1000, 35.0, 4)
    assert log[:6] == [(do, number) for do in ("start", "get_ready") for number in range(3)]
    assert log.count(("take_turn", 1)) == 2
    assert [number for do, number in log if do == "end"] == [1, 0, 1, 2]


@pytest.mark.slow
def test_processes_that_die_or_fail_tell_it():
    dies = contender(partial(os._exit, 7))
    small = model_contender("t2t_vit_7", 2, mode="infer", precision="float32", batch_size=1)
    died, failed, worked = measure([dies, small, contender()], device=CPU, rounds=1, seconds=0.01, threads=1)
    assert died.error == "its process ended with exit code 7"
    assert failed.error.startswith("An image of 2 x 2 pixels is too small for the splits")
    assert (worked.error, worked.macs, len(worked.rounds)) == ("", 3 * 8 * 12 * 2, 1)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_ctrl_c_ends_everything_quietly(monkeypatch, capfd):
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)

    def press_ctrl_c():  # a terminal sends the signal to all processes
        while not (children := multiprocessing.active_children()):
            time.sleep(0.01)
        time.sleep(0.2)  # the process imports torch
        os.kill(children[0].pid, signal.SIGINT)
        children[0].join(0.5)
        if children[0].is_alive():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press_ctrl_c)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        measure([contender(partial(time.sleep, 60))], device=CPU, rounds=1, seconds=1)
    thread.join()
    assert multiprocessing.active_children() == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_process_ends_when_its_parent_is_killed():
    program = """if True:
        import os
        from t2t_vit.speed.turns import ContenderProcess
        ContenderProcess(1).call(os.write, 1, b"ready")
        os._exit(0)
    """
    # Returns when all that write to the pipe have ended.
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.stdout == b"ready"


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

    with pytest.raises(Failed) as failed:
        get_ready(contender(build), CPU, 1.0)
    assert str(failed.value) == told


def test_a_peak_is_remembered_and_forgotten():
    before = reset_peak(CPU)
    block = torch.ones(100 << 20, dtype=torch.uint8)  # more than an allocator holds back
    del block
    assert peak_bytes(CPU) - before > 90e6
    assert reset_peak(CPU) - before < 50e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_a_gpu_is_each_contenders_own():
    some = [
        model_contender("t2t_vit_7", 64, mode=mode, precision="amp_bfloat16", batch_size=size)
        for mode, size in (("infer", 8), ("train", 64))
    ]
    infer, train = measure(some, device=torch.device("cuda"), rounds=2, seconds=0.05)
    assert (infer.error, train.error) == ("", "")
    assert 17e6 < infer.rounds[0].peak_bytes < 60e6  # 4.3 million weights
    assert train.rounds[0].peak_bytes > 69e6 + infer.rounds[0].peak_bytes  # with gradients and two moments of AdamW
