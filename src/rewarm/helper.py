"""A process beside the server that works for it alone: the keeper of weights, the pager of restored VMs."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable


class Helper:
    """Runs `python -m MODULE FD SERVER_PID`; FD is its end of a SOCK_SEQPACKET socket, whose other end is `control`.

    `readable` is called when there is something to read from `control`, which does not block, or the process has ended.
    Started and stopped as often as need be; of one event loop, on whose thread everything happens.
    """

    def __init__(self, module: str, readable: Callable[[], None]) -> None:
        self.control: socket.socket | None = None  # while there is a process
        self._module = module
        self._readable = readable
        self._process: subprocess.Popen[bytes] | None = None
        self._endings: set[asyncio.Future[int]] = set()

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Have a process from now on. Raises OSError, with nothing left open, if it cannot be started."""
        if self._process is not None:
            return
        self._loop = asyncio.get_running_loop()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", self._module, str(far.fileno()), str(os.getpid())]
        try:
            with far:
                self._process = subprocess.Popen(
                    command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
        except OSError:
            near.close()
            raise
        near.setblocking(False)
        self.control = near
        self._loop.add_reader(near.fileno(), self._readable)

    def kill(self) -> None:
        """If there is a process; `readable` hears of its end."""
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        """End the process, if there is one; nothing more is heard of it."""
        if self._process is None:
            return
        assert self.control is not None
        self._loop.remove_reader(self.control.fileno())
        self._loop.remove_writer(self.control.fileno())
        self.control.close()
        self.control = None
        self._process.kill()
        # In a thread, since the end of a process that holds gigabytes takes a while.
        ending = self._loop.run_in_executor(None, self._process.wait)
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        self._process = None

    async def close(self) -> None:
        """End the process and wait until it is gone. Harmless a second time."""
        self.stop()
        while self._endings:
            await asyncio.wait(self._endings)
