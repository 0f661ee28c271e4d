"""The zygotes of the process driver, on the server's side: raised from nothing or from one another, forked, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from rewarm.errors import RewarmError, SandboxFailed, from_code
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.kernel import PACKET_BYTES_MAX, SINGLE_THREADED_ENV
from rewarm.sandbox.port import Node, Sink
from rewarm.sandbox.reaper import Reaper


class _Zygote:
    """One Lang layer on the server's side."""

    def __init__(self, key: LangKey, control: socket.socket) -> None:
        self.key = key
        self.control = control
        self.pid: int | None = None
        self.alive = self.dropped = False
        self.eof = self.reaped = False
        self.error: str | None = None
        self.parent: _Zygote | None = None  # which was told to fork it, until it is born


class Zygotes:
    """All that live, one a key, those that rise and those on their way out. Reports to the driver's sink."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, reaper: Reaper, sink: Sink, gone: Callable[[], None]
    ) -> None:  # fmt: skip
        self._loop = loop
        self._reaper = reaper
        self._sink = sink
        self._gone = gone  # called when one has ended
        self._zygotes: dict[LangKey, _Zygote] = {}

    def __len__(self) -> int:
        return len(self._zygotes)

    @property
    def rising(self) -> bool:
        """There is one whose pid nobody knows yet."""
        return any(zygote.pid is None for zygote in self._zygotes.values())

    def pids(self) -> dict[Node, int]:
        return {z.key: z.pid for z in self._zygotes.values() if z.pid is not None}

    def fork(self, key: LangKey, order: dict[str, Any], descriptors: list[int]) -> None:
        """Order an instance of the zygote of `key` (see worker.zygote). Raises OSError if there is none."""
        zygote = self._zygotes.get(key)
        if zygote is None or not zygote.alive:
            raise OSError("its runtime has just ended")
        socket.send_fds(zygote.control, [json.dumps(order).encode()], descriptors)

    def start(self, key: LangKey, parent_key: LangKey | None) -> None:
        """A fork of the zygote `parent_key` if it lives, else from nothing. → LangRaised or LangExited."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        zygote = self._zygotes[key] = _Zygote(key, near)
        parent = self._zygotes.get(parent_key) if parent_key is not None else None
        packages = key.packages
        try:
            if parent is not None and parent.alive:
                zygote.parent = parent
                order = json.dumps({"op": "zygote", "packages": packages}).encode()
                socket.send_fds(parent.control, [order], [far.fileno()])
            else:
                zygote.pid = self._spawn(far.fileno(), packages)
        except OSError as error:
            del self._zygotes[key]
            near.close()
            self._sink.post(m.LangExited(key, SandboxFailed(f"no process for runtime {key}: {error}")))
            return
        finally:
            far.close()
        if zygote.pid is not None:
            self._reaper.watch(zygote.pid, lambda _: self._reaped(zygote))
        self._loop.add_reader(near.fileno(), self._readable, zygote)

    def _spawn(self, control_fd: int, packages: tuple[str, ...]) -> int:
        """A fresh interpreter: the root of a tree of zygotes."""
        command = [sys.executable, "-P", "-m", "rewarm.worker.zygote", str(control_fd), str(os.getpid()), *packages]
        process = subprocess.Popen(
            command, pass_fds=[control_fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            env={**os.environ, **SINGLE_THREADED_ENV},
        )  # fmt: skip
        process.returncode = 0  # the reaper waits for it, not subprocess
        return process.pid

    def _readable(self, zygote: _Zygote) -> None:
        try:
            packet = zygote.control.recv(PACKET_BYTES_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet = b""
        if not packet:
            zygote.eof = True
            self._weaned(zygote)
            self._loop.remove_reader(zygote.control.fileno())
            self._maybe_gone(zygote)
            return
        report = json.loads(packet)
        if report["op"] == "born":
            zygote.pid = int(report["pid"])
            self._weaned(zygote)
            self._reaper.watch(zygote.pid, lambda _: self._reaped(zygote))
            if zygote.dropped:
                self._kill(zygote)
        elif report["op"] == "alive":
            zygote.alive = not zygote.dropped
            if zygote.alive:
                self._sink.post(m.LangRaised(zygote.key, float(report["seconds"])))
        elif report["op"] == "failed":
            zygote.error = str(report["error"])
        elif report["op"] == "refused":
            zygote.error = str(report["error"])
            self._kill(zygote)

    def drop(self, key: LangKey) -> None:
        """→ LangExited, if it is there."""
        zygote = self._zygotes.get(key)
        if zygote is not None:
            zygote.dropped = True
            zygote.alive = False
            if not self._forking(zygote):
                self._kill(zygote)

    def drop_all(self) -> None:
        for key in list(self._zygotes):
            self.drop(key)

    def _forking(self, parent: _Zygote) -> bool:
        """It was told to fork another one and has not done so yet: killed now, that one would never be there."""
        return any(zygote.parent is parent for zygote in self._zygotes.values())

    def _weaned(self, zygote: _Zygote) -> None:
        """It is born, or never will be: if its parent was told to end meanwhile, nothing keeps that any more."""
        parent, zygote.parent = zygote.parent, None
        if parent is not None and parent.dropped and not self._forking(parent):
            self._kill(parent)

    def _kill(self, zygote: _Zygote) -> None:
        if zygote.pid is not None and not zygote.reaped:
            os.kill(zygote.pid, signal.SIGKILL)

    def _reaped(self, zygote: _Zygote) -> None:
        zygote.reaped = True
        self._maybe_gone(zygote)

    def _maybe_gone(self, zygote: _Zygote) -> None:
        if (
            self._zygotes.get(zygote.key) is not zygote
            or not zygote.eof
            or (zygote.pid is not None and not zygote.reaped)
        ):
            return
        del self._zygotes[zygote.key]
        zygote.control.close()
        error: RewarmError | None = None
        if not zygote.dropped:
            what = "ended" if zygote.alive else "cannot start"
            error = from_code("start_failed", f"runtime {zygote.key} {what}: {zygote.error or 'its process is gone'}")
        self._sink.post(m.LangExited(zygote.key, error))
        self._gone()
