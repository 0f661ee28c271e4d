"""`slo`: batches as large as the objective allows, and no waiting that cannot pay.

Everything it needs is learnt while serving: L(b), the run time of a batch of b with its spread (`latency`), and the
rate at which one request follows another (`rate`). The largest batch worth gathering is (BATCH, SC'20; Nexus, SOSP'19)

    n* = largest b ≤ max_size with q99 L(b) + (b − 1) / rate ≤ slo − margin

Mode `cost` looks for the fewest billed seconds and calls that still meet the objective. It holds the queue until n*
are there or `oldest deadline − q99 L(b + 1) − margin`, whichever is first (Clockwork, OSDI'20, and Symphony, 2023,
defer likewise). Under AWS Lambda's prices one more in the batch saves

    2e-7 $ + 1.66667e-5 $/GB·s · memory_GB · (L(b) + L(1) − L(b + 1))

which is never below the fee, as the learnt law has a ≥ 0. So a wait pays whenever somebody comes, and the question is
only whether somebody will: the expected number of arrivals until the hold ends must reach `_LIKELY`, and a hold ends
early when the arrivals it counted on stay away.

Mode `latency` sends what is there as soon as an instance is idle. It waits for the next request only if the run time
that joining saves, L(b) + L(1) − L(b + 1), is more than twice what the b that wait would spend on it, b mean gaps
(memory is a factor of both sides). A caller alone sends the next request after the answer to the last one, so its
gap is at least L(1) and the condition cannot hold: it never waits.

Two guards. Holds that nobody joined lower `_joined`; when hardly any is joined nothing waits for a while, which tells
a fast caller alone (high rate, but waiting for *us*) from a crowd: only a hold can. After 8 batches one is tried again,
then after 16, and so on to 128, until somebody joins. And the margin grows by what was measured of late timers and of
time lost between here and the instance.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision, Wait
from rewarm.policy.batching.latency import LatencyModel, LearningRule
from rewarm.policy.batching.rate import ArrivalRate

MODES = ("latency", "cost")

_MARGIN_OF_SLO = 0.15  # timers on a busy machine are late by milliseconds, sometimes by twenty
_LOST_OF_SLO = 0.25  # the most that measured lateness may add to the margin
_LOST_FADE = 0.995  # per batch
_LIKELY = 0.3  # expected arrivals that make a hold worthwhile: P(at least one) = 26 %
_QUIET_GAPS = 3.0  # mean gaps without an arrival that end a hold (P = 5 % under Poisson)
_QUIET_MIN_S = 0.002  # below this a timer cannot tell
_TIMER_S = 0.001  # event loops round timers to milliseconds: a shorter wait is not worth asking for
_PRIOR_RUN_S = 0.01
_ROUNDING_S = 1e-6
_JOIN_RATE = 0.2
_JOIN_MIN = 0.1  # eleven vain holds in a row; one in 700 times by chance where 45 % of holds are joined
_REST_MIN, _REST_MAX = 8, 128  # batches without a hold between one vain try and the next


class Slo(LearningRule):
    """See the module. `slack_s` is the least margin before a deadline."""

    __slots__ = (
        "_cost", "_held_size", "_joined", "_lost_max_s", "_lost_s", "_margin_s", "_rate", "_rest", "_rest_next",
        "_sent_s", "_sent_size", "_until_s", "_waited_size", "slo_s",
    )  # fmt: skip
    name = "slo"
    watches_arrivals = True

    def __init__(
        self, function: FunctionSpec, mode: str = "latency", max_size: int = 64, slack_s: float = 0.005
    ) -> None:
        super().__init__(max_size)
        if mode not in MODES:
            raise BadDefinition(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if function.slo_s is None:
            raise BadDefinition(f'batching "slo" needs an objective: add slo="200ms" to function {function.name!r}')
        if isinstance(slack_s, bool) or not isinstance(slack_s, int | float) or not 0 <= slack_s < function.slo_s:
            raise BadDefinition(f"slack_s must be from 0 to less than the slo ({function.slo_s:g} s), not {slack_s!r}")
        self.slo_s = function.slo_s
        self._cost = mode == "cost"
        self._margin_s = max(float(slack_s), _MARGIN_OF_SLO * self.slo_s)
        self._lost_max_s = _LOST_OF_SLO * self.slo_s
        self._lost_s = 0.0  # peak, fading, of late timers and of the way to the instance and back
        self._rate = ArrivalRate(max(self.slo_s - self._margin_s, self.slo_s * _MARGIN_OF_SLO))
        self._joined = 1.0  # fading share of holds that somebody joined
        self._rest = 0  # batches to go before the next hold is tried
        self._rest_next = _REST_MIN
        self._held_size = 0  # queue length when this hold began; 0: no hold
        self._waited_size = 0  # queue length at the last Wait
        self._until_s = 0.0
        self._sent_size = 0
        self._sent_s = 0.0

    def on_arrival(self, now: float) -> None:
        self._rate.arrived(now)

    def on_run(self, size: int, run_s: float, now: float) -> None:
        self._latency.observe(size, run_s)
        if size == self._sent_size:
            self._lost(now - self._sent_s - run_s)
            self._sent_size = 0
        if self._rate.last_s > now - run_s + _ROUNDING_S:
            self._company()  # somebody came while this batch ran

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        size = len(queue)
        if size < self.max_size:
            until_s = self._cost_until(queue[0], size, now) if self._cost else self._latency_until(queue[0], size, now)
            if until_s - now > _TIMER_S:
                if self._held_size == 0:
                    self._held_size = size
                self._waited_size = size
                self._until_s = until_s
                return Wait(until_s)
        if self._held_size:
            self._end_hold(size, now)
        elif size > 1:
            self._company()
        elif self._rest:
            self._rest -= 1
        size = self._fitting(queue[0], size, now)
        self._sent_size, self._sent_s = size, now
        return self._sends[size]

    def _cost_until(self, oldest: Request, size: int, now: float) -> float:
        """Until when to hold in mode `cost`; a moment that is not in the future means not at all."""
        if self._rest:
            return now
        hold_s = self._latest(oldest, size + 1) - now
        gap_s = self._rate.gap_s
        if hold_s < _LIKELY * gap_s:
            return now
        margin_s = self._margin_s + self._lost_s
        # Two is the least to gather: n* goes by the mean gap, and a likely early second is asked for above.
        if size > 1 and size >= self._law().largest(self.slo_s - margin_s, self.max_size, gap_s):
            return now
        quiet_s = self._rate.last_s + max(_QUIET_GAPS * gap_s, _QUIET_MIN_S)
        return min(now + hold_s, quiet_s)

    def _latency_until(self, oldest: Request, size: int, now: float) -> float:
        """Until when to wait for the next one in mode `latency`; not in the future: send."""
        law = self._latency
        if law.samples == 0 or self._rest:
            return now
        # The last gap is asked as well as the mean: yesterday's crowd must not delay a caller who is alone today.
        gap_s = max(self._rate.gap_s, self._rate.last_gap_s, _TIMER_S)
        if law.saved_s(size) <= 2.0 * size * gap_s:
            return now
        return min(self._rate.last_s + 2.0 * gap_s, self._latest(oldest, size + 1))

    def _latest(self, oldest: Request, size: int) -> float:
        """The last moment at which a batch of `size` can start and still meet the oldest deadline, with the margin."""
        deadline_s = min(oldest.arrived_s + self.slo_s, oldest.deadline_s)
        return deadline_s - (self._law().q99_s(size) or 0.0) - self._margin_s - self._lost_s

    def _law(self) -> LatencyModel:
        return self._latency if self._latency.samples else _PRIOR

    def _fitting(self, oldest: Request, size: int, now: float) -> int:
        """How many of `size` queued to send: as many as the oldest can wait for."""
        size = min(size, self.max_size)
        law = self._latency
        if size == 1 or law.samples == 0:
            return size
        fits = law.largest(oldest.arrived_s + self.slo_s - now, size)
        if fits == 0:
            # The oldest is lost or close to it. Drain at a batch that a fresh request would still survive, or, when
            # the objective is beyond this function altogether, at one that takes at most twice as long as a lone call.
            fits = law.largest(max(self.slo_s, 2.0 * (law.expected_s(1) or 0.0)), size, tail=1.0)
        return max(fits, 1)

    def _end_hold(self, size: int, now: float) -> None:
        if size > self._held_size:
            self._joined += _JOIN_RATE * (1.0 - self._joined)
            self._company()
        else:
            self._joined *= 1.0 - _JOIN_RATE
            if self._joined < _JOIN_MIN:
                self._rest = self._rest_next
                self._rest_next = min(2 * self._rest_next, _REST_MAX)
        if size == self._waited_size:
            self._lost(now - self._until_s)
        self._held_size = 0

    def _company(self) -> None:
        """There is more than one caller: holds are worth trying."""
        self._joined = max(self._joined, 0.5)
        self._rest, self._rest_next = 0, _REST_MIN

    def _lost(self, late_s: float) -> None:
        self._lost_s = min(max(self._lost_s * _LOST_FADE, late_s), self._lost_max_s)


def _constant(run_s: float) -> LatencyModel:
    """A law for functions that have not run yet: every batch takes `run_s`."""
    model = LatencyModel()
    for _ in range(50):
        for size in (1, 4096):
            model.observe(size, run_s)
    return model


_PRIOR = _constant(_PRIOR_RUN_S)
