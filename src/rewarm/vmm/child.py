"""A child process on the event loop: what it writes first and last is kept, its end is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rewarm.vmm.spawn import spawn

_FIRST_BYTES = 4096
_LAST_BYTES = 2048
_READ_BYTES = 1 << 16
_PAUSE_S = 0.05  # between reads: a guest may write to its console without end, one byte at a time
_POLL_S = 0.05  # only where there are no pidfds
_END_WAIT_S = 10.0  # for what SIGKILL ends


class Child:
    """One process, spawned by the constructor. Reaped by itself; nobody else may wait for it."""

    def __init__(
        self, words: Sequence[str], env: Mapping[str, str], pass_fds: Iterable[int], folder: Path | None = None,
        uid: int | None = None,
    ) -> None:  # fmt: skip
        """In the working directory `folder`, as the user `uid`. Raises OSError, with nothing left open."""
        self.status: int | None = None  # its wait status, once it is reaped
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._first, self._last = b"", b""
        self._output_fd, far_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = spawn(words, env, pass_fds, far_fd, folder, uid)
        except OSError:
            os.close(self._output_fd)
            raise
        finally:
            os.close(far_fd)
        os.set_blocking(self._output_fd, False)
        self._loop.add_reader(self._output_fd, self._readable)
        try:
            self._pidfd = os.pidfd_open(self.pid)
            self._loop.add_reader(self._pidfd, self._reap)
        except OSError:  # before Linux 5.3, or forbidden in this container
            self._pidfd = -1
            self._loop.call_later(_POLL_S, self._reap)

    def when_ended(self, then: Callable[[int], object]) -> None:
        """Call `then(wait status)` once it has ended, on the event loop and never before this returns."""
        self._ended.add_done_callback(lambda ended: then(ended.result()))

    async def wait(self) -> int:
        """Its wait status, once it has ended."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and return once it is gone. Raises TimeoutError if the kernel does not let go of it."""
        self.kill()
        await asyncio.wait_for(self.wait(), _END_WAIT_S)

    @property
    def output(self) -> str:
        """The first 4 KiB of what it wrote, and the last 2."""
        gap = "\n…\n" if len(self._last) == _LAST_BYTES else ""
        return (self._first.decode("utf-8", "replace") + gap + self._last.decode("utf-8", "replace")).replace("\r", "")

    def _readable(self) -> None:
        self._loop.remove_reader(self._output_fd)
        if self._read():
            self._loop.call_later(_PAUSE_S, self._listen)

    def _listen(self) -> None:
        if self.status is None:
            self._loop.add_reader(self._output_fd, self._readable)

    def _read(self) -> bool:
        """Whether more may come."""
        try:
            chunk = os.read(self._output_fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return True
        missing = _FIRST_BYTES - len(self._first)
        self._first += chunk[:missing]
        self._last = (self._last + chunk[missing:])[-_LAST_BYTES:]
        return bool(chunk)

    def _reap(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0  # reaped elsewhere: it is gone in any case
        if pid == 0:
            if self._pidfd < 0:
                self._loop.call_later(_POLL_S, self._reap)
            return
        self.status = status
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._loop.remove_reader(self._output_fd)
        self._read()
        os.close(self._output_fd)
        self._ended.set_result(status)
