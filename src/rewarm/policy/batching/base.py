"""The interface of a batching policy.

The core owns the queue and asks `decide` only while an instance is idle and at least one request waits: on an
arrival, when an instance becomes free, and when a `Wait` has run out. One policy object serves one function and is
told everything that happens to it, in order; it keeps its own statistics and reads no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from rewarm.facts.request import Request
from rewarm.facts.value import Value


class Dispatch(Value):
    """Send the oldest `size` requests now (fewer if fewer are queued)."""

    __match_args__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size: Final = size


class Pick(Value):
    """Send these requests now: `places` are their indices in the queue, rising, at least one, at most `max_size`."""

    __match_args__ = ("places",)

    def __init__(self, places: tuple[int, ...]) -> None:
        self.places: Final = places


class Wait(Value):
    """Keep gathering; ask again at `until_s`, or on the next arrival. None: only arrivals can change the answer."""

    __match_args__ = ("until_s",)

    def __init__(self, until_s: float | None) -> None:
        self.until_s: Final = until_s


Decision = Dispatch | Pick | Wait


class BatchingPolicy(Protocol):
    """One function's rule.

    `max_size` is the largest batch it can ever ask for: the core plans instances with it. A policy that learns nothing
    from arrivals may set `watches_arrivals = False`: the core then spares the call. One that has figures worth showing
    may have a method `figures() -> dict[str, float]`; they stand in the function's stats.
    """

    name: str
    max_size: int

    def on_arrival(self, now: float) -> None:
        """A request was queued at `now` (seconds)."""

    def on_run(self, size: int, run_s: float, now: float) -> None:
        """A batch of `size` took `run_s` seconds inside the instance and ended at `now`."""

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        """What to do with `queue` (oldest first, not empty) now that an instance is idle. Must not change it."""

    def expected_run_s(self, size: int) -> float | None:
        """The run time this policy expects of a batch of `size`; None while it does not know."""
