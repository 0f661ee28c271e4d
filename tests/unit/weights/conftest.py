"""What tests of locked pages need of the machine."""

from __future__ import annotations

import ctypes
import mmap

import pytest

_LOCKED_BYTES = 64 << 20  # more than any test locks at a time


@pytest.fixture(scope="session")
def may_lock() -> None:
    """Skips where whoever runs the tests may not lock so much."""
    libc = ctypes.CDLL(None)
    with mmap.mmap(-1, _LOCKED_BYTES) as memory:
        first = ctypes.c_char.from_buffer(memory)
        refused = libc.mlock(ctypes.byref(first), ctypes.c_size_t(_LOCKED_BYTES))
        del first
    if refused:
        pytest.skip("locks of 64 MiB are refused: raise RLIMIT_MEMLOCK (ulimit -l)")
