"""Which device and which precision a run uses, and what the machine is."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision

import t2t_vit
from t2t_vit.errors import UserError


@dataclass(frozen=True)
class Machine:
    """Where tensors live and in which precision matrix products run.

    Attributes:
        device: of the model and the batches.
        amp_dtype: type of autocast; None computes in float32.
    """

    device: torch.device
    amp_dtype: torch.dtype | None

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Half precision inside, where this machine uses it."""
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            yield

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        return f"{name}, {str(self.amp_dtype or torch.float32).removeprefix('torch.')}"


def find_machine(device: str = "auto", *, amp: bool | None = None, amp_dtype: str = "bfloat16") -> Machine:
    """The machine as the settings want it.

    Args:
        device: a torch device, or "auto" for the GPU where there is one.
        amp: half precision; None takes bfloat16 where the hardware multiplies it faster than float32.
        amp_dtype: "bfloat16" or "float16".

    Raises:
        UserError: for a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Device {device!r} cannot be used: {str(error).splitlines()[0]} Try --device cpu.") from None
    if amp is None:
        amp = _has_fast_bfloat16(found)
        amp_dtype = "bfloat16"
    return Machine(found, getattr(torch, amp_dtype) if amp else None)


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # A CPU that only converts bfloat16 loses by it; one with instructions for its products gains (docs/log.md).
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def describe_environment(machine: Machine) -> dict[str, Any]:
    """What a result depends on besides the settings: versions, hardware, the command."""
    return {
        "t2t_vit": t2t_vit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "device": str(machine),
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "command": sys.argv,
    }
