"""The processor, its memory and the versions that a measurement depends on."""

import contextlib
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

import t2t_vit
from t2t_vit.runtime.machine import Machine
from t2t_vit.runtime.memory import hand_back_freed_memory


def hardware_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def peak_bytes(device: torch.device) -> int:
    """The most memory since `reset_peak`: torch's on a GPU, elsewhere the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak(device: torch.device) -> int:
    """Forgets the peak so far, and returns the memory in use.

    A GPU's peak stays: CUDA graphs allocate their memory once, when they are recorded.
    """
    if device.type != "cuda":
        hand_back_freed_memory()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def describe_environment(machine: Machine) -> dict[str, Any]:
    """Versions, hardware and the command of this process, as plain JSON values."""
    return {
        "t2t_vit": t2t_vit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "device": str(machine),
        "cpu": hardware_name(torch.device("cpu")),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": machine.world_size,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "command": sys.argv,
    }


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
