"""A contender's step, and how long it takes."""

import pytest
import torch
from torch import nn

from t2t_vit.insight.complexity import describe
from t2t_vit.speed import contenders as module
from t2t_vit.speed.contenders import Contender, model_contender, prepare, seconds_per_step

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
    settings = {"mode": "infer", "precision": "float32", "batch_size": 2}
    return Contender("small", lambda: net, (3, 8, 12), **settings | changes), net


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
    step, macs = prepare(asked, CPU)
    step()
    assert net.calls == [(*types, False, False)]
    assert net.conv.weight.dtype == types[0]
    assert macs == 6 * 10 * 4 * 27  # of the convolution


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


def test_a_model_of_timm_is_a_contender():
    asked = model_contender("test_vit", 32, mode="infer", precision="float32", batch_size=2)
    assert (asked.name, asked.input_size) == ("test_vit", (3, 32, 32))
    assert prepare(asked, CPU)[1] == describe("test_vit", 32).macs
