"""Children of the server: who ended, and how.

The server is a child subreaper, so instances (forked twice) and anything that user code leaves behind become its
children. Known pids have a callback; unknown children are orphans of instances that are gone, and are killed.
Children that others wait for (`subprocess` in a thread) are in the server's own session and are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from rewarm import kernel

_POLL_S = 0.05  # only for a child that could get no pidfd


class Reaper:
    """Tells who ended: through a pidfd per child (Linux ≥ 5.3), else through SIGCHLD."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}  # pid → pidfd (-1: none), callback
        self._by_signal = not hasattr(os, "pidfd_open") or not _pidfd_works()
        kernel.become_subreaper()
        if self._by_signal:
            loop.add_signal_handler(signal.SIGCHLD, self._reap_all)

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call `ended(wait status)` once `pid`, a child, has ended; it is reaped by then. Never before this returns."""
        pidfd = -1
        if not self._by_signal:
            try:
                pidfd = os.pidfd_open(pid)
                self._loop.add_reader(pidfd, self._reap, pid)
            except OSError:  # gone already, or no descriptor left for it
                pidfd = -1
        self._watched[pid] = (pidfd, ended)
        if pidfd < 0:
            self._loop.call_soon(self._reap, pid)

    def _reap_all(self) -> None:
        for pid in list(self._watched):
            self._reap(pid)

    def _reap(self, pid: int) -> None:
        if pid not in self._watched:
            return
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if self._watched[pid][0] < 0 and not self._by_signal:
                    self._loop.call_later(_POLL_S, self._reap, pid)
                return
            # It leads its own process group: what is left of the group goes before the pid can be reused.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) == pid:
                    os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            status = 0  # reaped elsewhere, or never ours: it is gone in any case
        pidfd, ended = self._watched.pop(pid)
        if pidfd >= 0:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
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
        for pidfd, _ in self._watched.values():
            if pidfd >= 0:
                self._loop.remove_reader(pidfd)
                os.close(pidfd)
        self._watched.clear()
        if self._by_signal:
            self._loop.remove_signal_handler(signal.SIGCHLD)


def _pidfd_works() -> bool:
    """The call exists since Linux 5.3; some containers forbid it."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _children() -> Iterator[int]:
    """Pids of this process's children; empty where the kernel does not tell."""
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                yield from map(int, file.read().split())
        except OSError:
            continue
