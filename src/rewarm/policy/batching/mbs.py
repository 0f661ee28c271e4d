"""`mbs`, Multi-Buffer Serving (Ali et al., VLDB'22): requests of like size travel together.

A batch is padded to its largest request, so a small one among large ones is paid for as if it were large. The sizes
seen lately are cut into contiguous ranges of equal load, one buffer each; every buffer has its own size and wait,
planned as for `batch` from its share of the arrivals and the run times of its largest requests. (The paper plans with
Bayesian optimisation over fitted arrival processes; this is its Poisson case, by exhaustive grid.)

Padding overhead of batches of b requests: Σ b·max / Σ size − 1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec
from rewarm.facts.profile import Profile
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision, Pick, Wait
from rewarm.policy.batching.planning import Plan
from rewarm.policy.batching.profiled import ProfiledRule

_WINDOW = 256  # requests whose sizes say where the ranges end
_CUT_EVERY = 64  # requests from one cut to the next
_BUFFERS_MAX = 20  # the paper's most


class _Buffer:
    """The requests of one range: up to `top_bytes`; `share` of all of them. `places` are where they stand just now."""

    __slots__ = ("places", "plan", "share", "top_bytes")

    def __init__(self, top_bytes: int, share: float, plan: Plan | None) -> None:
        self.top_bytes = top_bytes
        self.share = share
        self.plan = plan  # what it goes by
        self.places: list[int] = []


class Mbs(ProfiledRule):
    """Sends from the buffer that is full or has waited its time, the one with the oldest request first."""

    __slots__ = ("_buffers", "_count", "_cut_in", "_look", "_padded_bytes", "_seen_bytes", "_sizes", "_tops")
    name = "mbs"

    def __init__(
        self, function: FunctionSpec, buffers: int = 4, max_size: int = 32, quantile: float = 0.95,
        slack_s: float = 0.005, *, profile: Profile | None = None,
    ) -> None:  # fmt: skip
        super().__init__(function, max_size, quantile, slack_s, profile)
        if isinstance(buffers, bool) or not isinstance(buffers, int) or not 1 <= buffers <= _BUFFERS_MAX:
            raise BadDefinition(f"buffers must be a whole number from 1 to {_BUFFERS_MAX}, not {buffers!r}")
        self._count = buffers
        # Among so many requests one buffer holds max_size of them: no need to look at more.
        self._look = buffers * self.max_size
        self._sizes: deque[int] = deque(maxlen=_WINDOW)
        self._cut_in = _CUT_EVERY // 4  # the first cut comes early: until then all share one buffer
        self._buffers = [_Buffer(self._largest_bytes, 1.0, None)]
        self._tops: list[int] = []  # of all buffers but the last, which takes whatever is larger
        self._padded_bytes = 0
        self._seen_bytes = 0

    @property
    def padding_overhead(self) -> float:
        """Σ b·max / Σ size − 1 over all batches so far; 0 while there are none."""
        return self._padded_bytes / self._seen_bytes - 1.0 if self._seen_bytes else 0.0

    def figures(self) -> dict[str, float]:
        """For `stats`: the rate of arrivals, how many buffers the sizes seen lately make, and the padding overhead."""
        return {
            "rate_per_s": self._rate.per_s, "buffers": len(self._buffers), "padding_overhead": self.padding_overhead,
        }  # fmt: skip

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        self._sort_in(queue)
        rate = self._rate.per_s
        until_s = due_s = float("inf")
        due: list[int] = []
        for buffer in self._buffers:
            if not buffer.places:
                continue
            buffer.plan = self._planner.plan(rate * buffer.share, buffer.top_bytes, buffer.plan)
            most, wait_s, _, _ = buffer.plan
            oldest_s = queue[buffer.places[0]].arrived_s
            if len(buffer.places) < most and now < oldest_s + wait_s:
                until_s = min(until_s, oldest_s + wait_s)
            elif oldest_s < due_s:
                due, due_s = buffer.places[:most], oldest_s
        return self._send(queue, due) if due else Wait(until_s)

    def _sort_in(self, queue: Sequence[Request]) -> None:
        """Which of the queued requests stand in which buffer."""
        buffers, tops = self._buffers, self._tops
        for buffer in buffers:
            buffer.places = []
        for place, request in enumerate(queue):
            if place == self._look:
                break
            buffers[bisect_left(tops, request.size_bytes)].places.append(place)

    def _send(self, queue: Sequence[Request], places: list[int]) -> Decision:
        sizes = [queue[place].size_bytes for place in places]
        self._seen_bytes += sum(sizes)
        self._padded_bytes += len(sizes) * max(sizes)
        self._sizes += sizes
        self._cut_in -= len(sizes)
        if self._cut_in <= 0:
            self._cut_in = _CUT_EVERY
            self._cut()
        in_order = places[-1] == len(places) - 1
        return self._sends[len(places)] if in_order else Pick(tuple(places))

    def _cut(self) -> None:
        """Ranges that each hold as nearly 1/N of the sizes seen lately as can be; a size is never split."""
        sizes = sorted(self._sizes)
        count = len(sizes)
        steps = [place for place in range(1, count) if sizes[place - 1] < sizes[place]]
        ends = {_nearest(steps, count * k / self._count) for k in range(1, self._count)} if steps else set()
        before, self._buffers, begin = self._buffers, [], 0
        for end in (*sorted(ends), count):
            top_bytes = sizes[end - 1]
            near = before[min(bisect_left(self._tops, top_bytes), len(before) - 1)]
            self._buffers.append(_Buffer(top_bytes, (end - begin) / count, near.plan))
            begin = end
        self._tops = [buffer.top_bytes for buffer in self._buffers[:-1]]


def _nearest(rising: Sequence[int], target: float) -> int:
    place = bisect_left(rising, target)
    return min(rising[max(place - 1, 0) : place + 1], key=lambda value: abs(value - target))
