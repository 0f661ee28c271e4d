"""Children of the server: who ended, and how.

The server is a child subreaper, so instances (forked twice) and anything that user code leaves behind become its
children. Known pids have a callback; unknown children are orphans of instances that are gone, and are killed.
Pids that others wait for (`subprocess` in a thread) are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from rewarm.worker import kernel


class Reaper:
    """Tells who ended, through SIGCHLD on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, Callable[[int], None]] = {}
        kernel.become_subreaper()
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call `ended(wait status)` once `pid`, a child or soon to be one, has ended; it is reaped by then."""
        self._watched[pid] = ended
        self._loop.call_soon(self.reap)  # it may have ended before we knew it

    def reap(self) -> None:
        for pid in list(self._watched):
            try:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                # It leads its own process group: what is left of the group goes before the pid can be reused.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    if os.getpgid(pid) == pid:
                        os.killpg(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                status = 0  # reaped elsewhere, or never ours: it is gone in any case
            ended = self._watched.pop(pid, None)
            if ended is not None:
                ended(status)

    def sweep(self, server_session: int) -> None:
        """Kill and reap children that nobody knows and that live in a session of their own: orphans of user code."""
        for pid in _children():
            if pid in self._watched:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
                if os.getsid(pid) != server_session:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    def close(self) -> None:
        self._loop.remove_signal_handler(signal.SIGCHLD)


def _children() -> Iterator[int]:
    """Pids of this process's children; empty where the kernel does not tell."""
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                yield from map(int, file.read().split())
        except OSError:
            continue
