"""Whether glibc keeps freed memory; other C libraries are left alone."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for later, unless the environment configures malloc.

    By default glibc hands large pieces back to the system and asks for them anew, so that each step of a network on a
    CPU waits for thousands of fresh pages (docs/log.md). The peak of memory hardly grows.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):  # 2**25 is the most that old versions take
        mallopt(M_TRIM_THRESHOLD, -1)


def hand_back_freed_memory() -> None:
    """Hands freed memory back to the system once."""
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)
