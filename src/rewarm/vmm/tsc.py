"""How fast this machine's time stamp counter ticks.

QEMU's emulation (TCG) hands the counter to its guests as it is. A Linux guest then has to find out its rate against an
emulated timer chip, and on a busy host it often cannot: it is left with no clock that ticks while it waits for one, and
spins for ever ("tsc: Unable to calibrate against PIT"). So it is told.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable

_READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_APART_S = 0.02
_TRIES = 50  # of which the least disturbed counts


@functools.cache
def host_tsc_khz() -> int | None:
    """Measured once in a process, in 20 ms, to some 0.01 %. None: not an x86, or no code may be made."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_READ_COUNTER)
    read = ctypes.PYFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    first_ns, first = _pair(read)
    time.sleep(_APART_S)
    last_ns, last = _pair(read)
    return round((last - first) * 1_000_000 / (last_ns - first_ns))


def _pair(read: Callable[[], int]) -> tuple[int, int]:
    """The clock in ns and the counter, read as close to each other as it gets."""
    found = []
    for _ in range(_TRIES):
        before_ns, count, after_ns = time.monotonic_ns(), read(), time.monotonic_ns()
        found.append((after_ns - before_ns, before_ns + (after_ns - before_ns) // 2, count))
    return min(found)[1:]
