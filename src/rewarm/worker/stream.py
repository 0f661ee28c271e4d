"""Frames as a worker reads them, from a socket or from a port of a virtual machine."""

from __future__ import annotations

import os
from typing import Protocol

from rewarm import wire


class Channel(Protocol):
    """The one connection to the server."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """At least one byte, or 0 if the server let go of us."""

    def sendall(self, data: bytes, /) -> None:
        """All of it."""


class Stream:
    """Reads frames into one buffer that grows to the largest frame seen (bounded by what the server sends)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = bytearray(1 << 16)
        self._filled = 0
        self._length = 0
        self.view = memoryview(self._buffer)

    def frame(self) -> tuple[int, int, int, int, int, memoryview]:
        """(type, flag, count, number, sequence, body); `view` holds the whole frame until the next call."""
        self._drop_last()
        self._fill(wire.HEAD_BYTES)
        length, frame_type, flag, count, number, sequence = wire.HEAD.unpack_from(self._buffer)
        if not wire.HEAD_BYTES <= length <= wire.FRAME_BYTES_MAX:
            raise wire.WireError(f"a frame of {length} bytes")
        self._fill(length)
        self._length = length
        self.view = memoryview(self._buffer)[:length]
        return frame_type, flag, count, number, sequence, self.view[wire.HEAD_BYTES :]

    def _drop_last(self) -> None:
        if self._length:
            rest = self._filled - self._length
            if rest:
                self._buffer[:rest] = self._buffer[self._length : self._filled]
            self._filled, self._length = rest, 0

    def _fill(self, wanted: int) -> None:
        if len(self._buffer) < wanted:
            # A new object, not a resize: user code may still hold views of the last batch.
            self._buffer = self._buffer[: self._filled] + bytearray(wanted - self._filled)
        while self._filled < wanted:
            got = self._channel.recv_into(memoryview(self._buffer)[self._filled :])
            if got == 0:
                os._exit(0)  # the server let go of us
            self._filled += got
