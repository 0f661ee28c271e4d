"""QEMU's monitor protocol over a connected socket: JSON objects, commands pipelined, events as they come.

    QEMU → {"QMP": …}                                       greeting
    us   → {"execute": NAME, "arguments": {…}, "id": n}
    QEMU → {"return": …, "id": n} | {"error": {"class", "desc"}, "id": n} | {"event": NAME, "data": {…}, …}

Each is one line. The first command has to be `qmp_capabilities`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

_READ_BYTES = 1 << 16
_LINE_BYTES_MAX = 1 << 20  # what it says is a few hundred bytes a line

Command = tuple[str, dict[str, Any]]
Data = dict[str, Any]


class QmpError(Exception):
    """QEMU refused a command, or hung up."""


class Qmp:
    """A client on the running event loop. Commands may be sent before QEMU is up: the socket holds them."""

    def __init__(self, channel: socket.socket) -> None:
        """`channel` is this client's from here on."""
        channel.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._buffer = bytearray()
        self._sent = 0
        self._open = True
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._events: list[tuple[str, Callable[[Data], bool], asyncio.Future[Data]]] = []
        self._loop.add_reader(channel.fileno(), self._readable)

    def send(self, *commands: Command) -> list[asyncio.Future[Any]]:
        """Ask for all of them in one write; what they return, in order. Each may raise QmpError."""
        futures, lines = [], []
        for name, arguments in commands:
            self._sent += 1
            future = self._loop.create_future()
            self._answers[self._sent] = future
            futures.append(future)
            lines.append(json.dumps({"execute": name, "arguments": arguments, "id": self._sent}))
        try:
            if not self._open:
                raise OSError("it has ended")
            self._channel.sendall("\n".join([*lines, ""]).encode())  # far less than the socket takes at once
        except OSError as error:
            self._hang_up(f"QEMU cannot be told anything: {error}")
        return futures

    def event(self, name: str, wanted: Callable[[Data], bool] = lambda _: True) -> asyncio.Future[Data]:
        """The data of the next event of this name that is wanted. Raises QmpError if QEMU ends first."""
        future: asyncio.Future[Data] = self._loop.create_future()
        self._events.append((name, wanted, future))
        if not self._open:
            self._hang_up("QEMU has ended")
        return future

    def close(self) -> None:
        """What is still awaited fails. Harmless a second time."""
        self._hang_up("its monitor was closed")

    def _readable(self) -> None:
        try:
            chunk = self._channel.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._hang_up("QEMU has ended")
            return
        self._buffer += chunk
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        try:
            if len(rest) > _LINE_BYTES_MAX:
                raise ValueError(f"a line of {len(rest)} bytes")
            for line in lines:
                self._take(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._hang_up(f"what QEMU says cannot be understood: {error}")

    def _take(self, told: dict[str, Any]) -> None:
        if "event" in told:
            self._happened(told["event"], told.get("data", {}))
            return
        number = told.get("id", 0)
        if number not in self._answers:
            return  # the greeting
        refusal, value = (str(told["error"]["desc"]), None) if "error" in told else (None, told["return"])
        future = self._answers.pop(number)
        if future.done():
            return  # nobody waits any more
        if refusal is not None:
            _fail(future, refusal)
        else:
            future.set_result(value)

    def _happened(self, name: str, data: Data) -> None:
        waiting, self._events = self._events, []
        for entry in waiting:
            if entry[2].done():
                continue
            if entry[0] == name and entry[1](data):
                entry[2].set_result(data)
            else:
                self._events.append(entry)

    def _hang_up(self, why: str) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._channel.fileno())
            self._channel.close()
        for future in [*self._answers.values(), *(entry[2] for entry in self._events)]:
            if not future.done():
                _fail(future, why)
        self._answers.clear()
        self._events.clear()


def _fail(future: asyncio.Future[Any], why: str) -> None:
    future.set_exception(QmpError(why))
    future.exception()  # perhaps nobody asks: that is no mistake
