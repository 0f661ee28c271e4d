"""What processes that fork need of Linux: parent-death signal, child subreaper, closing descriptors, one thread."""

from __future__ import annotations

import ctypes
import os
import signal
import time

#: Libraries read these when they are imported; more than one thread in a zygote would make it unable to fork.
#: onnxruntime ≥ 1.29 starts a telemetry thread (and a network connection) on import unless told not to.
SINGLE_THREADED_ENV = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GOTO_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
#: Largest packet on the control socket of a zygote.
PACKET_BYTES_MAX = 1 << 16

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children (Linux ≥ 3.4)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with(parent_pid: int, wait_s: float = 10.0) -> None:
    """Be killed when `parent_pid` ends; exits at once if it is gone already.

    The signal is bound to whoever is the parent when it is set, so an orphan first waits to be adopted.
    """
    deadline_s = time.monotonic() + wait_s
    while os.getppid() != parent_pid:
        if time.monotonic() > deadline_s or not _exists(parent_pid):
            os._exit(1)
        time.sleep(0.0001)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def close_from(first_fd: int) -> None:
    """Close every descriptor from `first_fd` up."""
    close_range = getattr(_libc, "close_range", None)
    if close_range is not None and close_range(ctypes.c_uint(first_fd), ctypes.c_uint(0xFFFFFFFF), 0) == 0:
        return
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first_fd:
            try:
                os.close(int(name))
            except OSError:
                pass  # the descriptor of the listing itself


def thread_count() -> int:
    """Threads of this process; a process with more than one must not fork."""
    return len(os.listdir("/proc/self/task"))
