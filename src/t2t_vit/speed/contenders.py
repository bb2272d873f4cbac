"""The networks whose speed is compared, and the step of inference or of training that is timed."""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2t_vit.inference.exported import ExportedNetwork, open_exported
from t2t_vit.insight.complexity import count_macs, input_size_of
from t2t_vit.models.factory import create_model
from t2t_vit.runtime.hardware import synchronize
from t2t_vit.runtime.machine import Machine, find_machine


@dataclasses.dataclass(frozen=True)
class Contender:
    """A network and the setting in which it is timed.

    Attributes:
        name: of the network, as the results show it.
        build: returns the network, or an `ExportedNetwork`. The contender's own process calls it, so it must be
            picklable.
        input_size: (C, H, W) of the images.
        mode: "infer"; or "train": forward, cross entropy on soft targets, backward, AdamW.
        precision: "float32"; "bfloat16" or "float16" is the type of weights and images; "amp_bfloat16" or
            "amp_float16" keeps them in float32 and runs under autocast.
        compile_mode: torch.compile's; None does not compile.
        channels_last: memory layout of weights and images.
    """

    name: str
    build: Callable[[], Any]
    input_size: tuple[int, int, int]
    mode: str
    precision: str
    batch_size: int
    compile_mode: str | None = None
    channels_last: bool = False


def model_contender(model: str, img_size: int | None = None, **setting: Any) -> Contender:
    """A model of this package or of timm, with random weights; an `img_size` of None takes the model's own."""
    return Contender(model, partial(create_model, model, img_size=img_size), input_size_of(model, img_size), **setting)


def exported_contender(
    path: Path, *, runtime: str | None = None, trust_code: bool = False, **setting: Any
) -> Contender:
    """An exported network at the size that it was exported at, never compiled; bfloat16 is OpenVINO's."""
    setting |= {"compile_mode": None, "channels_last": False}
    build = partial(_open, path, runtime, setting["precision"], trust_code)
    size = _open_file(path, runtime, setting["precision"], trust_code)[1].data_config["input_size"]
    return Contender(str(path), build, tuple(size), **setting)


def _open(path: Path, runtime: str | None, precision: str, trust_code: bool) -> ExportedNetwork:
    return _open_file(path, runtime, precision, trust_code)[0]


def _open_file(path: Path, runtime: str | None, precision: str, trust_code: bool) -> tuple[ExportedNetwork, Any]:
    machine = find_machine("cpu", amp=precision != "float32", amp_dtype=precision.removeprefix("amp_"))
    return open_exported(path, machine, runtime=runtime, trust_code=trust_code)


def prepare(contender: Contender, device: torch.device) -> tuple[Callable[[], object], int]:
    """Builds a contender's network; returns the step to be timed, and the multiply-accumulates of one image or 0."""
    module = contender.build()
    if isinstance(module, ExportedNetwork):  # what it computes is not known
        images = torch.randn(contender.batch_size, *contender.input_size)
        return lambda: module(images), 0
    macs = count_macs(module, contender.input_size)
    uses_autocast = contender.precision.startswith("amp_")
    dtype: torch.dtype = getattr(torch, contender.precision.removeprefix("amp_"))
    machine = Machine(device, dtype if uses_autocast else None)
    placement: dict[str, Any] = {"device": device, "dtype": torch.float32 if uses_autocast else dtype}
    layout = torch.channels_last if contender.channels_last else torch.contiguous_format
    module.to(**placement, memory_format=layout).eval()
    images = torch.randn(contender.batch_size, *contender.input_size, **placement).contiguous(memory_format=layout)
    run = torch.compile(module, mode=contender.compile_mode) if contender.compile_mode else module
    if contender.mode == "infer":
        return _inference_step(run, images, machine), macs
    with torch.no_grad(), machine.autocast():
        output_shape = module(images[:1]).shape[1:]
    module.train()
    targets = torch.randn(contender.batch_size, *output_shape, device=device).softmax(dim=1)  # as mixup gives them
    return _training_step(run, images, targets, machine), macs


def _inference_step(run: Any, images: Tensor, machine: Machine) -> Callable[[], object]:
    def step() -> None:
        with torch.inference_mode(), machine.autocast():
            run(images)

    return step


def _training_step(run: Any, images: Tensor, targets: Tensor, machine: Machine) -> Callable[[], object]:
    optimizer = torch.optim.AdamW([parameter for parameter in run.parameters() if parameter.requires_grad], lr=1e-4)
    # As float16 under autocast is trained. Elsewhere a scaler that is not enabled passes everything through.
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.amp_dtype == torch.float16)

    def step() -> None:
        with machine.autocast():
            loss = F.cross_entropy(run(images).float(), targets)
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()

    return step


def seconds_per_step(step: Callable[[], object], seconds: float, device: torch.device) -> float:
    """The mean time of a step, over as many steps as fill the given time, and at least one."""
    num_steps, elapsed, ahead = 0, 0.0, 1
    synchronize(device)
    while num_steps == 0 or elapsed < seconds:
        start = time.perf_counter()
        for _ in range(ahead):
            step()
        synchronize(device)
        elapsed += time.perf_counter() - start
        num_steps += ahead
        ahead = math.ceil(max(0.0, seconds - elapsed) * num_steps / elapsed) or 1
    return elapsed / num_steps
