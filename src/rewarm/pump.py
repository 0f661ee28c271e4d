"""Reads all connections, callers' and sandboxes', from one place.

asyncio spends several microseconds of Python on each readable socket (a selector key, a handle, a context, two calls)
before the protocol sees a byte, and more on each turn of its loop. The pump has an epoll set of its own and lets what
is ready read, again and again while more is coming. Transports still write and close; they are told not to read.

An event loop comes to it in one of two ways: its selector waits in the pump (`serve.selector`, the cheaper one), or it
watches the pump's set like any descriptor (`watched_by`).
"""

from __future__ import annotations

import asyncio
import logging
import select
from typing import Final

log: Final = logging.getLogger("rewarm.pump")

_EVENTS_MAX: Final = 256  # per round
_ROUNDS_MAX: Final = 16  # per turn: the event loop has other things to do as well


class Source:
    """Something with a descriptor. A base class and not a protocol: compiled, calling it is a table lookup."""

    def readable(self) -> None:
        """There is something to read from it, or its end."""
        raise NotImplementedError


class Pump:
    """One per server; lives on the event loop's thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sources: dict[int, Source] = {}
        self._other_fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None

    def watched_by(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `loop` call us whenever a source is ready."""
        self._loop = loop
        loop.add_reader(self._epoll.fileno(), self.turn)

    def watch_other(self, fd: int) -> None:
        """`turn` shall also end, and say so, when this is readable."""
        self._other_fd = fd
        self._epoll.register(fd, select.EPOLLIN)

    def add(self, fd: int, source: Source) -> None:
        """Tell `source` when `fd` is readable, until `remove`."""
        self._sources[fd] = source
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int, source: Source) -> None:
        """Stop; must come before the descriptor is closed. Harmless if it was removed before."""
        if self._sources.get(fd) is source:
            del self._sources[fd]
            self._epoll.unregister(fd)

    def pause(self, fd: int) -> None:
        if fd in self._sources:
            self._epoll.modify(fd, 0)

    def resume(self, fd: int) -> None:
        if fd in self._sources:
            self._epoll.modify(fd, select.EPOLLIN)

    def close(self) -> None:
        """Stop altogether. Harmless a second time."""
        if not self._epoll.closed:
            if self._loop is not None:
                self._loop.remove_reader(self._epoll.fileno())
            self._sources.clear()
            self._epoll.close()

    def turn(self, timeout_s: float = 0.0) -> bool:
        """Let every source that is ready read. Waits up to `timeout_s` for the first (below 0: without end).

        Returns whether the descriptor of `watch_other` is ready.
        """
        for _ in range(_ROUNDS_MAX):
            ready = self._epoll.poll(timeout_s, _EVENTS_MAX)
            if not ready:
                return False
            other = False
            for fd, _ in ready:
                source = self._sources.get(fd)
                if source is not None:
                    try:
                        source.readable()
                    except Exception:  # one connection's misfortune must not end the loop of all
                        log.exception("reading from descriptor %d failed", fd)
                elif fd == self._other_fd:
                    other = True
            if other:
                return True
            timeout_s = 0.0
        return False


class PumpedReading:
    """What uvicorn's flow control needs of a transport, for a connection that the pump reads."""

    def __init__(self, pump: Pump, fd: int) -> None:
        self._pump = pump
        self._fd = fd

    def pause_reading(self) -> None:
        self._pump.pause(self._fd)

    def resume_reading(self) -> None:
        self._pump.resume(self._fd)
