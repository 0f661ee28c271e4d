"""`aimd`: Clipper's rule (NSDI'17). The batch limit creeps up while the objective holds and drops on a miss."""

from __future__ import annotations

from collections.abc import Sequence

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision
from rewarm.policy.batching.latency import LearningRule

SLO_DEFAULT_S = 0.1  # for functions that name none


class Aimd(LearningRule):
    """Sends what is there, up to a limit that gains `step` after a run within the SLO and is multiplied by `backoff`
    after one beyond it. Never waits.

    Only a run that filled the limit raises it: a run of one row says nothing about a batch of forty.
    """

    __slots__ = ("_backoff", "_limit", "_step", "slo_s")
    name = "aimd"

    def __init__(self, function: FunctionSpec, max_size: int = 64, step: int = 1, backoff: float = 0.9) -> None:
        super().__init__(max_size)
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= max_size:
            raise BadDefinition(f"step must be more than 0 and at most max_size ({max_size}), not {step!r}")
        if isinstance(backoff, bool) or not isinstance(backoff, int | float) or not 0 < backoff < 1:
            raise BadDefinition(f"backoff must lie between 0 and 1 (Clipper uses 0.9), not {backoff!r}")
        self.slo_s = SLO_DEFAULT_S if function.slo_s is None else function.slo_s
        self._step = step
        self._backoff = backoff
        self._limit = 1.0

    @property
    def limit(self) -> int:
        """The largest batch that it would send now."""
        return int(self._limit)

    def on_run(self, size: int, run_s: float, now: float) -> None:
        super().on_run(size, run_s, now)
        if run_s >= self.slo_s:
            self._limit = max(1.0, self._limit * self._backoff)
        elif size >= int(self._limit):
            self._limit = min(float(self.max_size), self._limit + self._step)

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        return self._sends[min(len(queue), int(self._limit))]
