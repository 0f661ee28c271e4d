"""The wait from a function's deployment to its first call, learnt from all functions: what `hazard` raises them by.

It is a survival curve, because those that still wait say something, too: so many that have been there for an hour and
were not called make a first call in the second hour less likely for all. Bins are those of `gaps`.
"""

from __future__ import annotations

import math

from rewarm.policy.keepalive.gaps import EDGES_S, bin_of, worth_per_s

_BINS = len(EDGES_S)
_ALIKE = 1.0 / _BINS  # of those that have waited till a bin, how many are called in it, before anything is known
_SEED = 0.25  # first calls, seen and foretold, that weigh as much as what is assumed
_RECENT = 0.9  # what a bin weighs in the next one: the last ten, a factor of two in time, tell how it goes on
_HOPE_S = 60.0
_STALE_SHARE, _STALE_MIN_S = 0.05, 1.0  # of the shortest wait, and seconds: how long the curve is used again


class FirstCalls:
    """How long functions wait for their first call. One that is removed before that waits for ever."""

    __slots__ = ("waiting_since_s", "_called", "_good_until_s", "_mass", "_worths")

    def __init__(self) -> None:
        self.waiting_since_s: dict[str | None, float] = {}  # functions that have never been called; None is not one
        self._called = [0] * _BINS  # first calls, by how long they were waited for
        self._mass: list[float] = []
        self._good_until_s = -math.inf
        self._worths: dict[int, float] = {}  # of the curve, by bin

    def deployed(self, function: str | None, now: float) -> None:
        self.waiting_since_s[function] = now

    def called(self, function: str, now: float) -> None:
        """Its wait is over. Raises KeyError unless it waits."""
        self._called[bin_of(now - self.waiting_since_s.pop(function))] += 1

    def mass(self, now: float) -> list[float]:
        """The probabilities, by bin, of the wait of a function that is deployed now."""
        if now >= self._good_until_s:
            self._mass = self._curve(now)
            self._worths.clear()
            shortest_s = now - max(self.waiting_since_s.values(), default=now)
            self._good_until_s = now + max(_STALE_MIN_S, _STALE_SHARE * shortest_s)
        return self._mass

    def worth_per_s(self, function: str | None, now: float) -> float:
        """`gaps.worth_per_s` of an instance that holds itself ready for this first call, for a start of one second.

        In the first minute it is what it will be at its end: many functions may be new at once, and they are not to
        take the memory of those that are called.
        """
        mass = self.mass(now)
        first = bin_of(max(_HOPE_S, now - self.waiting_since_s[function]))
        worth = self._worths.get(first)
        if worth is None:
            worth = self._worths[first] = worth_per_s(mass, first, 1.0)
        return worth

    def _curve(self, now: float) -> list[float]:
        """Bin by bin: of those that waited so long, the share that was called then.

        Before anything is known it is the same in all bins, and a third are not called within a day. It is multiplied
        by how many first calls there were in the last bins for each that it foretold, with a few of either beforehand;
        where nobody has waited so long yet, by what it was in the last bin that somebody reached.
        """
        stand = [0] * _BINS  # how many wait in each bin now; they have seen half of it
        for since_s in self.waiting_since_s.values():
            stand[bin_of(now - since_s)] += 1
        reached = sum(self._called) + len(self.waiting_since_s)
        seen = foretold = 0.0
        left = 1.0
        mass = []
        for k in range(_BINS - 1):
            if reached:
                seen = _RECENT * seen + self._called[k]
                foretold = _RECENT * foretold + _ALIKE * (reached - 0.5 * stand[k])
                reached -= self._called[k] + stand[k]
            p = left * min(1.0, _ALIKE * (seen + _SEED) / (foretold + _SEED))
            mass.append(p)
            left -= p
        return [*mass, left]
