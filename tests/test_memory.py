import ctypes
import platform
import resource

import pytest

from t2t_vit import memory
from t2t_vit.memory import hand_back_freed_memory, keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_memory_is_used_again_without_fresh_pages():
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p

    def fresh_pages(num_bytes):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pointer = ctypes.c_void_p(library.malloc(ctypes.c_size_t(num_bytes)))
        ctypes.memset(pointer, 1, num_bytes)
        library.free(pointer)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    try:
        keep_freed_memory()
        fresh_pages(2**26)
        assert fresh_pages(2**26) < 100  # of 16,384
        hand_back_freed_memory()
        assert fresh_pages(2**26) > 10_000
    finally:
        library.mallopt(memory.M_MMAP_THRESHOLD, 2**17)
        library.mallopt(memory.M_TRIM_THRESHOLD, 2**17)


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
    hand_back_freed_memory()
