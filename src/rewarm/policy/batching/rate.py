"""How soon the next request follows: an arrival rate over the most recent gaps.

For batching the mean rate is the wrong number. After a burst it says "soon" through the whole silence, and between
bursts it says "late" for the second request of the next one. What matters is the rate at which a request is followed
by another *within the time one could wait for it*. That is the hazard of the gap, censored at this horizon; for an
exponential law its maximum-likelihood estimate is

    rate = number of gaps that ended within the horizon / Σ min(gap, horizon)

over a window of gaps whose weight fades. Poisson arrivals give their rate λ, bursts the rate inside a burst, and a
caller who comes once a minute gives about zero.
"""

from __future__ import annotations

_FADE = 0.97  # about the last 33 gaps


class ArrivalRate:
    """Requests per second that follow a request within `horizon_s`. Starts as if nobody had followed once."""

    __slots__ = ("_ended", "_horizon_s", "_seen_s", "last_gap_s", "last_s")

    def __init__(self, horizon_s: float) -> None:
        self._horizon_s = horizon_s
        self._ended = 0.0
        self._seen_s = horizon_s
        self.last_s = -1e18
        self.last_gap_s = 1e18  # seconds between the last two arrivals

    def arrived(self, now: float) -> None:
        gap_s = now - self.last_s
        self.last_s = now
        self.last_gap_s = gap_s
        if gap_s < self._horizon_s:
            self._ended = self._ended * _FADE + 1.0
            self._seen_s = self._seen_s * _FADE + gap_s
        else:
            self._ended *= _FADE
            self._seen_s = self._seen_s * _FADE + self._horizon_s

    @property
    def per_s(self) -> float:
        """Requests per second; at most 10⁹, so that many at one instant do no harm."""
        return min(self._ended / (self._seen_s + 1e-12), 1e9)

    @property
    def gap_s(self) -> float:
        """The mean gap that this rate means, in seconds; very large when nobody follows."""
        return (self._seen_s + 1e-12) / (self._ended + 1e-9)
