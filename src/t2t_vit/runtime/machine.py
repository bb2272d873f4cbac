"""The device, the precision and the processes of a run."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from timm.utils.distributed import init_distributed_device_so, is_distributed_env

from t2t_vit.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """The device, the precision, and this process's place among all.

    Attributes:
        device: device of the model and the batches.
        amp_dtype: type of autocast; None computes in float32.
        rank: number of this process, from 0, over all machines.
        world_size: number of processes.
    """

    device: torch.device
    amp_dtype: torch.dtype | None
    rank: int = 0
    world_size: int = 1

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Runs what is inside in half precision, if this machine uses it."""
        with torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            yield

    @property
    def precision(self) -> str:
        """The type of matrix products, in words."""
        return str(self.amp_dtype or torch.float32).removeprefix("torch.")

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, by rank, in every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def in_any_process(self, flag: bool) -> bool:
        """Returns, in every process, whether the flag is set in any; fast enough for every step."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return bool(flags.item())

    def ask_main_process(self, question: Callable[[], T]) -> T:
        """Returns the main process's answer in every process, or raises what it raises, so that none waits for ever."""
        answer: Any = None
        failure: Exception | None = None
        if self.is_main_process:
            try:
                answer = question()
            except Exception as error:
                failure = error
        known = isinstance(failure, UserError | None)
        told = failure if known else RuntimeError(f"the main process failed: {failure!r}")  # which can be sent
        answer, told = self.gather((answer, told))[0]
        if failure is not None:
            raise failure
        if told is not None:
            raise told
        return answer

    def main_process_first(self, do: Callable[[], T]) -> T:
        """Runs `do` in the main process, then in the others, so that they find what it downloads."""
        try:
            done = do() if self.is_main_process else None
        finally:
            self.gather(None)  # after a failure too, so that the others fail for the same reason
        return do() if done is None else done

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)
        times = f"{self.world_size} x " if self.world_size > 1 else ""
        return f"{times}{name}, {self.precision}"


def find_machine(device: str = "auto", *, amp: bool | None = None, amp_dtype: str = "bfloat16") -> Machine:
    """The machine that the settings ask for; joins the other processes that torchrun or SLURM started.

    Args:
        device: a torch device, or "auto" for the GPU if there is one. Each of several processes takes its own GPU.
        amp: half precision; None switches float16 on, and bfloat16 if the hardware is faster at it than at float32.
        amp_dtype: "bfloat16" or "float16".

    Raises:
        UserError: the device does not exist.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    rank, world_size = 0, 1
    try:
        if is_distributed_env():
            _refuse_too_few_gpus(device)
            if not torch.distributed.is_initialized():
                device = init_distributed_device_so(device)["device"]
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        reason = "no such device" if reason.startswith("Expected one of") else reason  # torch names twenty backends
        raise UserError(f"Device {device!r} cannot be used: {reason}. There are: {', '.join(_devices())}.") from None
    if amp is None:
        amp = amp_dtype == "float16" or _has_fast_bfloat16(found)
    return Machine(found, getattr(torch, amp_dtype) if amp else None, rank, world_size)


@contextlib.contextmanager
def one_of_several() -> Iterator[None]:
    """Leaves the other processes at the end, if `find_machine` joined any."""
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _devices() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *(["cuda", *gpus] if gpus else []), *(["mps"] if torch.backends.mps.is_available() else [])]


def _refuse_too_few_gpus(device: str) -> None:
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if device.startswith("cuda") and 0 < gpus < processes:
        raise UserError(f"{processes} processes on this machine cannot share {gpus} GPU(s): start one for each.")


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # A CPU with instructions for bfloat16 products is faster; one that only converts it is slower (docs/log.md).
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
