"""One process sandbox on the server's side: its directory, socket, log pipe, and process.

Bytes in and out only; what they mean for the core is the driver's (`process`) business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rewarm import wire
from rewarm.errors import InstanceDied, OutOfMemory, RewarmError, SandboxFailed
from rewarm.facts.function import FunctionSpec
from rewarm.facts.request import Request
from rewarm.pump import Pump, Source
from rewarm.sandbox.cgroup import Group
from rewarm.store.disk import Disk

_READ_BYTES = 1 << 16  # a larger buffer is allocated with mmap, each time
_LOG_READ_BYTES = 1 << 16
_LOG_BURST_BYTES = 1 << 20  # read per pause from one sandbox; a flood then waits in its own pipe
_LOG_PAUSE_S = 0.25
_ORPHAN_GRACE_S = 0.2
_EOF_GRACE_S = 1.0
_WROTE_WEIGHTS = (
    ", most likely because it wrote into its weights, which are mapped read-only: copy what it changes "
    "(tensor.clone(), array.copy())"
)


def remove_scratch(path: Path) -> None:
    """Remove what user code left, read-only directories included; blocks."""
    with contextlib.suppress(OSError):  # the next start of a server clears what is left of `run/`
        Disk().remove_tree(path)


class Box(Source):
    """Everything the server holds for one sandbox. Closed exactly once, by `release`."""

    spec: FunctionSpec  # whose it is; set by Fork, before anything runs in it

    def __init__(self, sandbox_id: int, scratch: Path, loop: asyncio.AbstractEventLoop, pump: Pump) -> None:
        """Makes the directory `scratch`. Raises SandboxFailed, with nothing left."""
        self.id = sandbox_id
        self.scratch = scratch
        self.group: Group | None = None  # its cgroup, where there are such
        self.pid: int | None = None
        self.status: int | None = None  # wait status once it has ended
        self.since_s = 0.0  # when the present step began
        self.lead_s = 0.0  # what it took before LOAD that belongs to its User layer
        self.destroyed = False
        self.loading = False  # LOAD was sent and has not been answered
        self.failure: RewarmError | None = None  # what FAILED said
        self.fault: str | None = None  # why we had to stop it
        self.batch: list[Request] | None = None
        self.sequence = 0
        self.eof = False
        self.released = False
        self._loop = loop
        self._pump = pump
        self._reader = wire.Reader()
        self._unsent: deque[memoryview] = deque()
        self._log_read = 0
        self._log_open = False
        with contextlib.ExitStack() as on_error:
            try:
                scratch.mkdir(mode=0o700)
                on_error.callback(scratch.rmdir)
                self.log_fd, self.far_log_fd = os.pipe2(os.O_CLOEXEC)
                on_error.callback(os.close, self.log_fd)
                on_error.callback(os.close, self.far_log_fd)
                self.channel, self.far_channel = socket.socketpair()
            except OSError as error:
                raise SandboxFailed(
                    f"no directory or socket for a sandbox: {error}; is the disk full, or the limit of open files low?"
                ) from error
            on_error.pop_all()
        self.channel.setblocking(False)
        os.set_blocking(self.log_fd, False)

    # ------------------------------------------------------------ frames

    def hand_over(
        self, on_frames: Callable[[Box, list[bytes]], None], on_end: Callable[[Box], None],
        on_log: Callable[[Box, bytes], None],
    ) -> None:  # fmt: skip
        """The far ends now belong to a process: close ours of them and begin to listen."""
        self._on_frames, self._on_end, self._on_log = on_frames, on_end, on_log
        self.close_far()
        self._pump.add(self.channel.fileno(), self)
        self._loop.add_reader(self.log_fd, self._log_readable)
        self._log_open = True

    def adopt(self, channel: socket.socket, log_fd: int, pid: int, group: Group | None) -> None:
        """Take over a process that runs already, with its cgroup and the near ends of its socket and log pipe."""
        self.close_far()
        self.channel.close()
        os.close(self.log_fd)
        if self.group is not None:
            self.group.release(self._loop)
        self.channel, self.log_fd, self.pid, self.group = channel, log_fd, pid, group

    def close_far(self) -> None:
        self.far_channel.close()
        if self.far_log_fd >= 0:
            os.close(self.far_log_fd)
            self.far_log_fd = -1

    def readable(self) -> None:
        try:
            chunk = self.channel.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._hang_up()
            return
        try:
            frames = self._reader.feed(chunk)
        except wire.WireError:
            self.stop("its code wrote to the socket that belongs to the server")
            return
        if frames:
            self._on_frames(self, frames)

    def _hang_up(self) -> None:
        if self.eof:
            return
        self.eof = True
        self._pump.remove(self.channel.fileno(), self)
        if self.status is None and self.pid is not None:
            # It closed its socket and lives on: not for long.
            self._loop.call_later(_EOF_GRACE_S, self.stop, "it closed its connection to the server and lived on")
        self._on_end(self)

    def ended(self, status: int) -> None:
        """Its process was reaped."""
        self.status = status
        while not self.eof and not self.released:  # a last reply may still be in the socket
            before = self.channel.fileno()
            if before < 0 or not self._more():
                break
        if not self.eof:
            self._loop.call_later(_ORPHAN_GRACE_S, self._hang_up_late)
        self._on_end(self)

    def _more(self) -> bool:
        try:
            waiting = self.channel.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            waiting = b""
        self.readable()
        return bool(waiting)

    def _hang_up_late(self) -> None:
        if not self.released:
            self._hang_up()

    def expect(self, frame_bytes_max: int) -> None:
        """The longest frame that is taken from now on; a longer one ends the sandbox."""
        self._reader.limit = frame_bytes_max

    def send(self, frame: bytes) -> None:
        """Queue a frame; sent at once if the socket takes it. A dead peer is noticed by the reader, not here."""
        if self._unsent:
            self._unsent.append(memoryview(frame))
            return
        try:
            sent = self.channel.send(frame)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return
        if sent < len(frame):
            self._unsent.append(memoryview(frame)[sent:])
            self._loop.add_writer(self.channel.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            while self._unsent:
                sent = self.channel.send(self._unsent[0])
                if sent < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                    return
                self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._unsent.clear()
        self._loop.remove_writer(self.channel.fileno())

    # ------------------------------------------------------------ logs

    def _log_readable(self) -> None:
        self.drain_log(_LOG_READ_BYTES)
        if self._log_read >= _LOG_BURST_BYTES and self._log_open:
            self._loop.remove_reader(self.log_fd)
            self._loop.call_later(_LOG_PAUSE_S, self._log_resume)

    def _log_resume(self) -> None:
        self._log_read = 0
        if self._log_open:
            self._loop.add_reader(self.log_fd, self._log_readable)

    def drain_log(self, bytes_max: int = _LOG_BURST_BYTES) -> None:
        """Read what is in the log pipe now, `bytes_max` at most."""
        while self._log_open and bytes_max > 0:
            try:
                chunk = os.read(self.log_fd, _LOG_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            if not chunk:
                self._close_log()
                return
            bytes_max -= len(chunk)
            self._log_read += len(chunk)
            self._on_log(self, chunk)

    def _close_log(self) -> None:
        self._log_open = False
        self._loop.remove_reader(self.log_fd)

    # ------------------------------------------------------------ the end

    def stop(self, fault: str) -> None:
        """End it for what it did."""
        self.fault = self.fault or fault
        self.kill()

    def kill(self) -> None:
        """SIGKILL to its process group, if it has a process that has not been reaped."""
        if self.pid is not None and self.status is None:
            for send in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    send(self.pid, signal.SIGKILL)

    def why(self) -> RewarmError:
        """Why it ended, if nobody asked it to."""
        name = self.spec.name
        if self.failure is not None:
            return self.failure
        if self.status is None:
            return SandboxFailed(f"an instance of {name!r} was lost while it was forked")
        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            if number == signal.SIGKILL and self.fault is not None:
                return InstanceDied(f"an instance of {name!r} was stopped: {self.fault}")
            if number == signal.SIGKILL:
                return OutOfMemory(f"an instance of {name!r} was killed (SIGKILL), most likely because memory ran out")
            hint = _WROTE_WEIGHTS if number == signal.SIGSEGV and self.spec.weights is not None else ""
            return InstanceDied(f"an instance of {name!r} crashed with {signal.Signals(number).name}{hint}")
        code = os.waitstatus_to_exitcode(self.status)
        return InstanceDied(f"user code of {name!r} ended its process with exit status {code}")

    def release(self) -> None:
        """Close and remove everything. The process must be gone."""
        if self.released:
            return
        self.drain_log()
        self.released = True
        if self._log_open:
            self._close_log()
        self.close_far()
        if self.channel.fileno() >= 0:
            self._pump.remove(self.channel.fileno(), self)
            self._loop.remove_writer(self.channel.fileno())
            self.channel.close()
        os.close(self.log_fd)
        if self.group is not None:
            self.group.release(self._loop)
        try:
            self.scratch.rmdir()
        except OSError:  # user code left files: may be many, so not on the event loop
            self._loop.run_in_executor(None, remove_scratch, self.scratch)
