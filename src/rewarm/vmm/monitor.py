"""A monitor of virtual machines, whichever it is: what is installed of it, and its process with one micro-VM in it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from rewarm.errors import MicrovmUnavailable
from rewarm.vmm.child import Child

_VERSION_WAIT_S = 10.0
_QUOTED_CHARS_MAX = 300


def ask_version(binary: str, pattern: re.Pattern[str], otherwise: str) -> tuple[Path, re.Match[str]]:
    """Where `binary` is, and where it tells its version.

    Blocks for some 20 ms. Raises MicrovmUnavailable, which ends with `otherwise`: none, broken.
    """
    found = shutil.which(binary)
    if found is None:
        raise MicrovmUnavailable(f"there is no {binary}; {otherwise}")
    try:
        told = subprocess.run(
            [found, "--version"], capture_output=True, check=True, text=True, errors="replace", timeout=_VERSION_WAIT_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MicrovmUnavailable(f"{found} does not start: {error}; {otherwise}") from error
    match = pattern.search(told)
    if match is None:
        raise MicrovmUnavailable(f"{found} does not tell its version; {otherwise}")
    return Path(found), match


def quoted(line: str, chars_max: int = _QUOTED_CHARS_MAX) -> str:
    """What a guest wrote, fit to stand in a message."""
    return "".join(letter for letter in line[: 2 * chars_max] if letter.isprintable())[:chars_max]


class Monitor(ABC):
    """The process of one micro-VM and the host's ends of its guest's two ports.

    `fn` carries frames and `log_fd` what code in the guest writes to stdout and stderr, both non-blocking and the
    caller's to read. Whoever has one calls `close` in the end, or has `detach`ed the two and waits for the process.
    """

    uid: int | None = None  # whom it runs as; None: as this process
    since_s: float  # when it was begun, of time.monotonic

    def __init__(self, child: Child, fn: socket.socket, log_fd: int) -> None:
        self.fn = fn
        self.log_fd = log_fd  # -1: both are not ours any more
        self.pid = child.pid
        self._child = child

    @abstractmethod
    async def running(self, timeout_s: float = 10.0) -> None:
        """Returns once a restored guest runs. A machine that failed here is of no use: `close` it.

        Raises SnapshotCorrupt if nothing can be made of the snapshot's files, else SandboxFailed; both say what the
        monitor said.
        """

    @abstractmethod
    async def snapshot(self, state: Path, timeout_s: float = 30.0) -> None:
        """Save the guest's state in the file `state`, and its memory, and end the machine. Raises SnapshotFailed."""

    @property
    @abstractmethod
    def console(self) -> str:
        """The first 4 KiB and the last 2 of what the monitor and the guest's console wrote."""

    @abstractmethod
    def last_words(self) -> str:
        """One line: what the monitor complained about, else the last of the guest's console; or nothing."""

    # ------------------------------------------------------------ the process

    @property
    def status(self) -> int | None:
        """Its wait status, once it has ended and is reaped."""
        return self._child.status

    def when_ended(self, then: Callable[[int], object]) -> None:
        """Call `then(wait status)` once it has ended and is reaped; never before this returns."""
        self._child.when_ended(then)

    async def wait(self) -> int:
        """Its wait status, once it has ended and is reaped."""
        return await self._child.wait()

    def kill(self) -> None:
        """SIGKILL, if it has not ended."""
        self._child.kill()

    def detach(self) -> tuple[socket.socket, int]:
        """`fn` and `log_fd`: the caller's to close from here on."""
        log_fd, self.log_fd = self.log_fd, -1
        return self.fn, log_fd

    async def close(self) -> None:
        """Kill it, wait for its end and close what was not detached. Harmless a second time."""
        try:
            await self._child.end()
        finally:
            if self.log_fd >= 0:
                fn, log_fd = self.detach()
                fn.close()
                os.close(log_fd)
