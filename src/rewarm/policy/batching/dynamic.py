"""`dynamic`: leave at n requests or t after the first, whichever comes first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision, Wait
from rewarm.policy.batching.latency import LearningRule


class Dynamic(LearningRule):
    """Adaptive batching by size and time (Triton, TF Serving, BATCH). `max_wait_s` = 0 never waits: what queued while
    the instance was busy leaves together."""

    __slots__ = ("_max_wait_s",)
    name = "dynamic"

    def __init__(self, function: FunctionSpec, max_size: int = 16, max_wait_s: float = 0.005) -> None:
        super().__init__(max_size)
        if not isinstance(max_wait_s, int | float) or not 0 <= max_wait_s < math.inf:
            raise BadDefinition(f"max_wait_s must be 0 or more seconds, not {max_wait_s!r}")
        self._max_wait_s = float(max_wait_s)

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        size = len(queue)
        if size >= self.max_size:
            return self._sends[self.max_size]
        if self._max_wait_s:
            until_s = queue[0].arrived_s + self._max_wait_s
            if now < until_s:
                return Wait(until_s)
        return self._sends[size]
