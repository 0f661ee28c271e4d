"""A conversation with the guest of one machine, for whoever publishes and measures. Sandboxes are read by the pump."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from rewarm import wire
from rewarm.errors import RewarmError, SandboxFailed, from_code
from rewarm.vmm.monitor import Monitor, quoted

_READ_BYTES = 1 << 16
_LOG_TAIL_BYTES = 1 << 16
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, wire.WireError)  # what reading it raises


class Said(NamedTuple):
    """One frame of the guest."""

    kind: int
    flag: int
    items: int
    sequence: int
    frame: bytes

    @property
    def body(self) -> bytes:
        return self.frame[wire.HEAD_BYTES :]


def resume_frame(instance: str) -> bytes:
    """What every restored guest is told first: randomness, the time of day and who it is. A fresh one each time."""
    return wire.encode_resume(os.urandom(wire.SEED_BYTES), time.time_ns(), instance)


class Talk:
    """Sends frames and waits for answers; gathers the log meanwhile, so that the guest never waits to write it.

    Every wait is the caller's to bound (`asyncio.timeout`). It listens until `close`.
    """

    def __init__(self, machine: Monitor) -> None:
        self.log = b""  # the last of what it wrote
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._reader = wire.Reader()
        self._frames: deque[bytes] = deque()
        self._sequence = 0
        self._listening = True
        self._loop.add_reader(machine.log_fd, self._log_readable)

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, before the machine is closed. Harmless a second time."""
        self._log_readable()
        self._deafen()

    def _deafen(self) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._machine.log_fd)

    def _log_readable(self) -> None:
        if not self._listening:
            return
        try:
            chunk = os.read(self._machine.log_fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._deafen()
            return
        self.log = (self.log + chunk)[-_LOG_TAIL_BYTES:]

    # ------------------------------------------------------------ frames

    async def send(self, frame: bytes) -> None:
        """Raises SandboxFailed if the machine is gone."""
        try:
            await self._loop.sock_sendall(self._machine.fn, frame)
        except OSError:
            raise self.lost() from None

    async def heard(self, *kinds: int) -> Said:
        """The next frame, which must be of one of `kinds`. Raises SandboxFailed; for FAILED the error it names."""
        while True:
            while not self._frames:
                await self._more()
            frame = self._frames.popleft()
            _, kind, flag, items, _, sequence = wire.HEAD.unpack_from(frame)
            said = Said(kind, flag, items, sequence, frame)
            if kind in kinds:
                return said
            if kind == wire.FAILED:
                raise _failure(said.body)
            if kind != wire.NOTED:
                raise SandboxFailed(f"the guest sent a frame of type {kind}, where one of {sorted(kinds)} was due")

    async def _more(self) -> None:
        """Read what it has sent, once."""
        await asyncio.sleep(0)  # reading does not wait while there is something: one that never ends must not stop us
        try:
            chunk = await self._loop.sock_recv(self._machine.fn, _READ_BYTES)
        except OSError:
            chunk = b""
        if not chunk:
            raise self.lost()
        try:
            self._frames.extend(self._reader.feed(chunk))
        except wire.WireError as error:
            raise _nonsense(error) from None

    def lost(self) -> RewarmError:
        """It ended: why, as far as it said."""
        self._log_readable()
        lines = self.log.decode("utf-8", "replace").strip().splitlines()
        words = self._machine.last_words() or (quoted(lines[-1]) if lines else "it said nothing")
        return SandboxFailed(f"the micro-VM ended: {words}")

    # ------------------------------------------------------------ what is said

    async def hello(self) -> None:
        """It is up: its packages are imported."""
        await self.heard(wire.HELLO)

    async def send_resume(self, instance: str) -> None:
        """Order a restored guest to become one of its own; it need not run yet."""
        await self.send(resume_frame(instance))

    async def resumed(self) -> None:
        """It has. Raises what a hook of user code raised."""
        await self.heard(wire.RESUMED)

    async def load(self, order: dict[str, Any]) -> dict[str, float]:
        """→ {"user_s", "ready_s"}. Raises what became of the user's code."""
        await self.send(wire.encode_plain(wire.LOAD, orjson.dumps(order)))
        said = await self.heard(wire.LOADED)
        try:
            return {str(name): float(seconds) for name, seconds in orjson.loads(said.body).items()}
        except _NONSENSE as error:
            raise _nonsense(error) from None

    async def freeze(self) -> None:
        """The hooks before a snapshot, and a tidy heap."""
        await self.send(wire.encode_plain(wire.FREEZE))
        await self.heard(wire.FROZEN)

    async def run(self, items: Sequence[wire.AnyItem], limit_s: float) -> list[wire.AnyAnswer]:
        """One batch; as many answers as there are items."""
        self._sequence += 1
        self._reader.limit = wire.reply_bytes_max(len(items))
        try:
            await self.send(wire.encode_run(items, self._sequence, int(limit_s * 1e3)))
            said = await self.heard(wire.REPLY)
            if (said.items, said.sequence) != (len(items), self._sequence):
                raise wire.WireError(f"{said.items} answers to batch {said.sequence}")
            return wire.decode_reply(said.frame, said.items, said.flag)
        except _NONSENSE as error:
            raise _nonsense(error) from None
        finally:
            self._reader.limit = wire.CONTROL_BYTES_MAX


def _nonsense(error: Exception) -> SandboxFailed:
    return SandboxFailed(f"the guest does not speak our protocol: {quoted(str(error))}")


def _failure(body: bytes) -> RewarmError:
    try:
        report = orjson.loads(body)
        return from_code(str(report["code"]), str(report["error"]), str(report["error_type"]))
    except (KeyError, TypeError, ValueError):
        return SandboxFailed("the guest failed, and does not say how")
