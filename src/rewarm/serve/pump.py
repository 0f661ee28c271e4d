"""Reads all connections from one place.

asyncio spends several microseconds of Python on each readable socket (a selector key, a handle, a context, two calls)
before the protocol sees a byte. The pump has an epoll set of its own that holds every connection; the event loop
watches only that set, and one callback then reads from each connection that is ready. Transports still write and
close; they are told not to read.
"""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewarm.serve.connection import Connection

_READ_BYTES = 1 << 16  # a larger buffer is allocated with mmap, each time
_EVENTS_MAX = 256  # per turn: the event loop has other things to do as well


class Pump:
    """One per server; lives on the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        loop.add_reader(self._epoll.fileno(), self._turn)

    def add(self, fd: int, connection: Connection) -> None:
        """Read from `fd` for `connection` until `remove`."""
        self._connections[fd] = connection
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int, connection: Connection) -> None:
        """Stop; must come before the descriptor is closed. Harmless if it was removed before."""
        if self._connections.get(fd) is connection:
            del self._connections[fd]
            self._epoll.unregister(fd)

    def pause(self, fd: int) -> None:
        if fd in self._connections:
            self._epoll.modify(fd, 0)

    def resume(self, fd: int) -> None:
        if fd in self._connections:
            self._epoll.modify(fd, select.EPOLLIN)

    def _turn(self) -> None:
        connections = self._connections
        for fd, _ in self._epoll.poll(0, _EVENTS_MAX):
            connection = connections.get(fd)
            if connection is None:
                continue
            try:
                data = os.read(fd, _READ_BYTES)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError:
                data = b""
            if data:
                connection.data_received(data)
            else:
                self.remove(fd, connection)
                connection.transport.close()


class PumpedReading:
    """What uvicorn's flow control needs of a transport, for a connection that the pump reads."""

    def __init__(self, pump: Pump, fd: int) -> None:
        self._pump = pump
        self._fd = fd

    def pause_reading(self) -> None:
        self._pump.pause(self._fd)

    def resume_reading(self) -> None:
        self._pump.resume(self._fd)
