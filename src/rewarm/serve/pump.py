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
    from rewarm.serve.lane import Lane

_READ_BYTES = 1 << 16  # a larger buffer is allocated with mmap, each time
_EVENTS_MAX = 256  # per turn: the event loop has other things to do as well


class Pump:
    """One per server; lives on the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._lanes: dict[int, Lane] = {}
        loop.add_reader(self._epoll.fileno(), self._turn)

    def add(self, fd: int, lane: Lane) -> None:
        """Read from `fd` for `lane` until `remove`."""
        self._lanes[fd] = lane
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int, lane: Lane) -> None:
        """Stop; must come before the descriptor is closed. Harmless if it was removed before."""
        if self._lanes.get(fd) is lane:
            del self._lanes[fd]
            self._epoll.unregister(fd)

    def pause(self, fd: int) -> None:
        if fd in self._lanes:
            self._epoll.modify(fd, 0)

    def resume(self, fd: int) -> None:
        if fd in self._lanes:
            self._epoll.modify(fd, select.EPOLLIN)

    def _turn(self) -> None:
        lanes = self._lanes
        for fd, _ in self._epoll.poll(0, _EVENTS_MAX):
            lane = lanes.get(fd)
            if lane is None:
                continue
            try:
                data = os.read(fd, _READ_BYTES)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError:
                data = b""
            if data:
                lane.received(data)
            else:
                self.remove(fd, lane)
                lane.protocol.transport.close()


class PumpedReading:
    """What uvicorn's flow control needs of a transport, for a connection that the pump reads."""

    def __init__(self, pump: Pump, fd: int) -> None:
        self._pump = pump
        self._fd = fd

    def pause_reading(self) -> None:
        self._pump.pause(self._fd)

    def resume_reading(self) -> None:
        self._pump.resume(self._fd)
