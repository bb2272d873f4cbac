"""What the process does with memory that was freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory for later, where it is glibc; elsewhere nothing changes.

    By default it hands large pieces back to the system and asks for them anew, and on a CPU each step of a network
    waits for thousands of fresh pages (docs/log.md). The most that is used does not grow by it.
    """
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, -1)
