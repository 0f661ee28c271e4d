"""`none`: one request, one call."""

from __future__ import annotations

from collections.abc import Sequence

from rewarm.facts.function import FunctionSpec
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision, Dispatch
from rewarm.policy.batching.latency import LearningRule

_ONE = Dispatch(1)


class NoBatching(LearningRule):
    """Every request leaves alone, as soon as an instance is idle."""

    __slots__ = ()
    name = "none"

    def __init__(self, function: FunctionSpec) -> None:
        super().__init__(1)

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        return _ONE
