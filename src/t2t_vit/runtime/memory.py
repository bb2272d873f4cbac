"""What the process does with memory that was freed, where its C library is glibc; others are left alone."""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Keeps it for later, unless the environment has settings of malloc.

    By default glibc hands large pieces back to the system and asks for them anew, and on a CPU each step of a network
    waits for thousands of fresh pages (docs/log.md). The most that is used hardly grows by it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):  # as much as old versions take
        mallopt(M_TRIM_THRESHOLD, -1)


def hand_back_freed_memory() -> None:
    """Hands back, once, what was kept."""
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)
