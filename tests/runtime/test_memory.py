import ctypes
import os
import platform
import subprocess
import sys

import pytest

from t2t_vit.runtime.memory import hand_back_freed_memory, keep_freed_memory

# What the process holds in MiB at first, after 64 MiB were freed, and after they were handed back.
PROGRAM = """
import ctypes
from t2t_vit.runtime.memory import hand_back_freed_memory, keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def held():
    return int(open("/proc/self/statm").read().split()[1]) // 256

keep_freed_memory()
first = held()
pointer = ctypes.c_void_p(library.malloc(ctypes.c_size_t(2**26)))
ctypes.memset(pointer, 1, 2**26)
library.free(pointer)
freed = held()
hand_back_freed_memory()
print(first, freed, held())
"""


def run(**environment):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    arguments = {"capture_output": True, "text": True, "check": True, "env": plain | environment}
    return map(int, subprocess.run([sys.executable, "-c", PROGRAM], **arguments).stdout.split())


on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")


@on_glibc
def test_freed_memory_is_kept_until_it_is_handed_back():
    first, freed, handed_back = run()
    assert freed - first > 60
    assert handed_back - first < 10


@on_glibc
def test_settings_of_the_user_win():
    first, freed, _ = run(MALLOC_MMAP_THRESHOLD_="131072")
    assert freed - first < 10


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
    hand_back_freed_memory()
