"""`static`: always the same number of rows, however long that takes."""

from __future__ import annotations

from collections.abc import Sequence

from rewarm.facts.function import FunctionSpec
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision, Dispatch, Wait
from rewarm.policy.batching.latency import LearningRule

_WAIT = Wait(None)


class Static(LearningRule):
    """Waits for `size` requests without a limit of time; what is left at the end of input leaves only by a flush."""

    __slots__ = ("_full",)
    name = "static"

    def __init__(self, function: FunctionSpec, size: int) -> None:
        super().__init__(size, "size")
        self._full = Dispatch(size)

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        return self._full if len(queue) >= self.max_size else _WAIT
