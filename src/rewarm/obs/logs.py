"""Logs of user code: what each instance wrote, kept per function in a bounded ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_LINE_BYTES_MAX = 8 << 10


class Line(NamedTuple):
    t_s: float  # wall time, seconds since the epoch
    instance: int
    text: str


class FunctionLog:
    """The last `bytes_max` bytes of lines of one function. Older lines are dropped and counted."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.dropped = 0
        self._lines: deque[Line] = deque()
        self._held = 0
        self._partial: dict[int, bytes] = {}

    def write(self, instance: int, chunk: bytes, now_s: float) -> None:
        """Add what an instance wrote; a line without its end waits for the rest, up to 8 KB."""
        *whole, rest = (self._partial.pop(instance, b"") + chunk).split(b"\n")
        for line in whole:
            self._add(Line(now_s, instance, line[:_LINE_BYTES_MAX].decode("utf-8", "replace")))
        if len(rest) > _LINE_BYTES_MAX:
            self._add(Line(now_s, instance, rest[:_LINE_BYTES_MAX].decode("utf-8", "replace")))
        elif rest:
            self._partial[instance] = rest

    def end(self, instance: int, now_s: float, why: str | None = None) -> None:
        """The instance is gone: its last unfinished line is a line, and `why`, if given, another."""
        rest = self._partial.pop(instance, b"")
        if rest:
            self._add(Line(now_s, instance, rest.decode("utf-8", "replace")))
        if why is not None:
            self._add(Line(now_s, instance, f"(ended: {why})"))

    def _add(self, line: Line) -> None:
        self._lines.append(line)
        self._held += len(line.text) + 32
        while self._held > self.bytes_max and self._lines:
            self._held -= len(self._lines.popleft().text) + 32
            self.dropped += 1

    def tail(self, count: int, instance: int | None = None, since_s: float = 0.0) -> list[Line]:
        """The newest `count` lines, oldest first."""
        found: list[Line] = []
        for line in reversed(self._lines):
            if len(found) >= count or line.t_s < since_s:
                break
            if instance is None or line.instance == instance:
                found.append(line)
        return found[::-1]


class LogStore:
    """Logs by function name."""

    def __init__(self, bytes_max: int, wall_clock: Callable[[], float]) -> None:
        self._bytes_max = bytes_max
        self._wall_clock = wall_clock
        self._logs: dict[str, FunctionLog] = {}

    def of(self, function: str) -> FunctionLog:
        log = self._logs.get(function)
        if log is None:
            log = self._logs[function] = FunctionLog(self._bytes_max)
        return log

    def write(self, function: str, instance: int, chunk: bytes) -> None:
        self.of(function).write(instance, chunk, self._wall_clock())

    def end(self, function: str, instance: int, why: str | None = None) -> None:
        if function in self._logs or why is not None:
            self.of(function).end(instance, self._wall_clock(), why)

    def forget(self, function: str) -> None:
        self._logs.pop(function, None)
