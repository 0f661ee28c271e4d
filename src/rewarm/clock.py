"""Time as a value: the acting half holds a Clock, the thinking half is told `now`.

All times inside rewarm are seconds on one monotonic clock whose zero means nothing; wall time appears only where a
person or another system reads it (logs, the registry).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Something that knows the monotonic time in seconds."""

    def __call__(self) -> float: ...


#: The real clock.
system_clock: Clock = time.monotonic


class ManualClock:
    """A clock that moves only when told to; for tests and simulation."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, by_s: float) -> float:
        """Move forward by `by_s` seconds (never back) and return the new time."""
        if by_s < 0:
            raise ValueError("time does not go back")
        self.now_s += by_s
        return self.now_s
