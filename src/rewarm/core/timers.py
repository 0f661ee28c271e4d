"""One heap of moments at which the core wants to be woken.

Entries are never removed, they are outgrown: whoever owns a timer remembers the earliest moment it has in the heap
and checks on waking whether there is still something to do. So the hot path (an instance that is idle for
microseconds between two batches) pushes nothing.
"""

from __future__ import annotations

import heapq
from typing import Protocol


class Sleeper(Protocol):
    """Something that can be woken; `timer_at_s` is the earliest moment it has in the heap, inf if none."""

    timer_at_s: float


_COMPACT_MIN = 1024


class Timers:
    __slots__ = ("_compact_at", "_sequence", "heap")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Sleeper]] = []  # a heapq; to be read, not changed, from outside
        self._sequence = 0
        self._compact_at = _COMPACT_MIN

    def arm(self, sleeper: Sleeper, at_s: float) -> None:
        """Wake `sleeper` no later than `at_s`. Cheap if it wakes before that anyway."""
        if at_s < sleeper.timer_at_s:
            sleeper.timer_at_s = at_s
            self._sequence += 1
            heapq.heappush(self.heap, (at_s, self._sequence, sleeper))
            if len(self.heap) >= self._compact_at:
                self._compact()

    def _compact(self) -> None:
        """Drop outgrown entries. In place: drivers hold the list. Its cost is spread over as many pushes again."""
        self.heap[:] = [entry for entry in self.heap if entry[0] == entry[2].timer_at_s]
        heapq.heapify(self.heap)
        self._compact_at = max(_COMPACT_MIN, 2 * len(self.heap))

    def next_s(self) -> float | None:
        """The earliest moment, or None."""
        return self.heap[0][0] if self.heap else None

    def pop_due(self, now: float) -> Sleeper | None:
        """The next sleeper whose moment has come (its `timer_at_s` reset), or None."""
        while self.heap and self.heap[0][0] <= now:
            at_s, _, sleeper = heapq.heappop(self.heap)
            if at_s == sleeper.timer_at_s:  # else: an outgrown entry, an earlier one was served already
                sleeper.timer_at_s = float("inf")
                return sleeper
        return None

    def __len__(self) -> int:
        return len(self.heap)
