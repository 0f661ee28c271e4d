"""A short-lived child of the server that runs strangers' code: bounded in time and memory, and nothing of it is left.

All of this blocks and runs in a thread.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import IO, Any

from rewarm import kernel

_REPORT_BYTES_MAX = 1 << 20
_REAP_S = 5.0
_POLL_S = 0.01


def report_of(module: str, arguments: list[str], *, timeout_s: float, data_bytes: int) -> tuple[dict[str, Any], int]:
    """Run `python -m module arguments` to its end → the JSON object of its last line, and its exit status.

    The object is empty if the process did not say one. Raises TimeoutError if it took longer than `timeout_s`.
    `data_bytes` limits its private memory.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    scratch = tempfile.mkdtemp(prefix=f"rewarm-{module.rpartition('.')[2]}-")
    env = {**os.environ, **kernel.SINGLE_THREADED_ENV, "TMPDIR": scratch}
    try:
        # A file and not a pipe: what the import started may hold it open for ever.
        with tempfile.TemporaryFile() as out:
            status = _run(command, env, out, timeout_s, data_bytes)
            out.seek(max(0, out.seek(0, os.SEEK_END) - _REPORT_BYTES_MAX))
            lines = out.read().splitlines()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if status is None:
        raise TimeoutError
    try:
        return dict(json.loads(lines[-1])), status
    except (IndexError, ValueError, TypeError):
        return {}, status


def _run(
    command: list[str], env: dict[str, str], out: IO[bytes], timeout_s: float, data_bytes: int
) -> int | None:  # fmt: skip
    """Run to the end and leave no process behind → exit status, None if it took too long.

    In a process group of its own, to be killed with all that it started, but in the session of the server: foreign
    sessions are swept (sandbox.reaper).
    """
    server = os.getpid()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, env=env, process_group=0,
        preexec_fn=lambda: _limit(server, data_bytes),
    )  # fmt: skip
    try:
        ended = _has_ended(process.pid, timeout_s)
    finally:
        # Before it is reaped: until then nobody else can get the number of its group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        _reap_group(process.pid)
    return status if ended else None


def _has_ended(pid: int, timeout_s: float) -> bool:
    """Wait for a child without reaping it; False if it takes too long."""
    end_s = time.monotonic() + timeout_s
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end_s:
            return False
        time.sleep(_POLL_S)
    return True


def _reap_group(group: int) -> None:
    """The server adopts orphans, so what was killed of the group is its child by now."""
    end_s = time.monotonic() + _REAP_S
    with suppress(ChildProcessError):
        while time.monotonic() < end_s:
            if os.waitpid(-group, os.WNOHANG)[0] == 0:
                time.sleep(_POLL_S)


def _limit(server: int, data_bytes: int) -> None:
    """In the child, before it runs: it dies with the server and cannot take all memory."""
    kernel.die_with(server)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
