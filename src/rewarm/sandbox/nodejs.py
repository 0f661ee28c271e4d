"""Node runtimes that wait for code: the Lang layers of Node.js functions.

V8 cannot be forked, so a runtime is not an ancestor but becomes one instance: a sandbox takes over its process with the
ends of its socket and log pipe, and the layer is gone. Until then no user code runs in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rewarm import wire
from rewarm.clock import Clock
from rewarm.errors import SandboxFailed, from_code
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.sandbox.cgroup import Cgroups, Group
from rewarm.sandbox.port import Node, Sink
from rewarm.sandbox.reaper import Reaper

_LAUNCH = Path(__file__).parents[1] / "worker" / "node" / "launch.py"
_LAST_WORDS_BYTES = 1 << 16  # all that a pipe holds
_DATA_KB = re.compile(rb"^VmData:\s+(\d+) kB$", re.MULTILINE)


class Runtime:
    """One node process, and the server's ends of its socket and log pipe until a sandbox takes them."""

    def __init__(self, key: LangKey, since_s: float, group: Group | None, namespaces: str) -> None:
        """Start it, in its cgroup. Raises OSError, with nothing left open but the group."""
        self.key = key
        self.since_s = since_s
        self.group = group
        self.raised = False  # it said HELLO
        self.alive = False
        self.dropped = False
        self.ended: Callable[[int], None]  # called with its wait status
        with contextlib.ExitStack() as on_error, contextlib.ExitStack() as far_ends:
            self.channel, far_channel = socket.socketpair()
            on_error.callback(self.channel.close)
            far_ends.callback(far_channel.close)
            self.log_fd, far_log_fd = os.pipe2(os.O_CLOEXEC)
            on_error.callback(os.close, self.log_fd)
            far_ends.callback(os.close, far_log_fd)
            self.channel.setblocking(False)
            os.set_blocking(self.log_fd, False)
            far_fd = far_channel.fileno()
            command = [sys.executable, "-I", "-S", str(_LAUNCH), str(far_fd), str(os.getpid()), namespaces]
            process = subprocess.Popen(
                [*command, *([] if group is None else [str(group.folder)])], pass_fds=[far_fd],
                stdin=subprocess.DEVNULL, stdout=far_log_fd, stderr=far_log_fd, start_new_session=True,
            )  # fmt: skip
            process.returncode = 0  # the reaper waits for it, not subprocess
            self.pid = process.pid
            on_error.pop_all()

    def limit_memory(self, memory_bytes: int) -> None:
        """Let it have `memory_bytes` of private memory beyond what node itself has by now. Raises OSError.

        The same figure for the cgroup, which a process meets later: not all that it may write to has been written to.
        """
        found = _DATA_KB.search(Path(f"/proc/{self.pid}/status").read_bytes())
        if found is None:
            raise ProcessLookupError("its runtime has just ended")
        limit = int(found[1]) * 1024 + memory_bytes
        resource.prlimit(self.pid, resource.RLIMIT_DATA, (limit, limit))
        if self.group is not None:
            self.group.limit(limit)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """What it wrote while nobody listened: the launcher and node say there why they cannot start."""
        with contextlib.suppress(OSError):
            lines = os.read(self.log_fd, _LAST_WORDS_BYTES).decode("utf-8", "replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def close(self) -> None:
        self.channel.close()
        os.close(self.log_fd)


class Runtimes:
    """All that wait, at most one a key, and those on their way out. Reports to the driver's sink."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, reaper: Reaper, sink: Sink, clock: Clock, gone: Callable[[], None],
        cgroups: Cgroups, namespaces: Callable[[], str],
    ) -> None:  # fmt: skip
        self._loop = loop
        self._reaper = reaper
        self._sink = sink
        self._clock = clock
        self._gone = gone  # called when one has ended
        self._cgroups = cgroups
        self._namespaces = namespaces
        self._started = 0
        self._waiting: dict[LangKey, Runtime] = {}
        self._held: set[Runtime] = set()  # whose descriptors are ours to close

    def __len__(self) -> int:
        return len(self._held)

    def pids(self) -> dict[Node, int]:
        return {key: runtime.pid for key, runtime in self._waiting.items()}

    def start(self, key: LangKey) -> None:
        """→ LangRaised or LangExited."""
        since_s = self._clock()
        self._started += 1
        group = self._cgroups.make(f"runtime-{self._started}")
        try:
            runtime = Runtime(key, since_s, group, self._namespaces())
        except OSError as error:
            if group is not None:
                group.release(self._loop)
            self._sink.post(m.LangExited(key, SandboxFailed(f"no process for runtime {key}: {error}")))
            return
        self._waiting[key] = runtime
        self._held.add(runtime)
        runtime.ended = lambda _: self._ended(runtime)
        self._reaper.watch(runtime.pid, lambda status: runtime.ended(status))
        self._loop.add_reader(runtime.channel.fileno(), self._readable, runtime)

    def take(self, key: LangKey, memory_bytes: int) -> Runtime:
        """The one that waits, with its limit of memory; it and its ends are the caller's from here on.

        Raises OSError if it has just ended. No LangExited comes for what was not dropped before.
        """
        runtime = self._waiting.get(key)
        if runtime is None or runtime.dropped:  # its LangExited is owed to whoever dropped it
            raise ProcessLookupError("its runtime has just ended")
        del self._waiting[key]
        if not runtime.alive:
            raise ProcessLookupError("its runtime has just ended")
        try:
            runtime.limit_memory(memory_bytes)
        except OSError:
            runtime.kill()
            raise
        self._loop.remove_reader(runtime.channel.fileno())
        self._held.discard(runtime)
        return runtime

    def drop(self, key: LangKey) -> None:
        """→ LangExited, if one waits."""
        runtime = self._waiting.get(key)
        if runtime is not None:
            runtime.dropped = True
            runtime.alive = False
            runtime.kill()

    def drop_all(self) -> None:
        for key in list(self._waiting):
            self.drop(key)

    def _readable(self, runtime: Runtime) -> None:
        try:
            hello = runtime.channel.recv(wire.HEAD_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            hello = b""
        if not hello:  # it is about to end
            self._loop.remove_reader(runtime.channel.fileno())
            runtime.alive = False
            runtime.kill()
        elif not runtime.dropped:
            runtime.raised = runtime.alive = True
            self._sink.post(m.LangRaised(runtime.key, self._clock() - runtime.since_s))

    def _ended(self, runtime: Runtime) -> None:
        self._loop.remove_reader(runtime.channel.fileno())
        self._held.discard(runtime)
        words = runtime.last_words()
        runtime.close()
        if runtime.group is not None:
            runtime.group.release(self._loop)
        if self._waiting.get(runtime.key) is runtime:
            del self._waiting[runtime.key]
            error = None
            if not runtime.dropped:
                what = "ended while it waited" if runtime.raised else "cannot start"
                words = words or "its process is gone"
                error = from_code("start_failed", f"runtime {runtime.key} {what}: {words}")
            self._sink.post(m.LangExited(runtime.key, error))
        self._gone()
