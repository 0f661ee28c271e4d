"""`batch` (Ali et al., SC'20): the cheapest size and wait that meet the SLO, planned from a profile."""

from __future__ import annotations

from collections.abc import Sequence

from rewarm.facts.function import FunctionSpec
from rewarm.facts.profile import Profile
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision, Wait
from rewarm.policy.batching.profiled import ProfiledRule


class Batch(ProfiledRule):
    """Leaves at the planned size, or the planned wait after the first; plans anew as the rate of arrivals moves."""

    __slots__ = ("plan",)
    name = "batch"

    def __init__(
        self, function: FunctionSpec, max_size: int = 32, quantile: float = 0.95, slack_s: float = 0.005, *,
        profile: Profile | None = None,
    ) -> None:  # fmt: skip
        super().__init__(function, max_size, quantile, slack_s, profile)
        self.plan = self._planner.plan(0.0, 0, None)  # what it goes by

    def figures(self) -> dict[str, float]:
        """For `stats`: the rate of arrivals and what is done about it."""
        return {"rate_per_s": self._rate.per_s, "size": self.plan.size, "wait_s": self.plan.wait_s}

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        self.plan = self._planner.plan(self._rate.per_s, 0, self.plan)
        most, wait_s, _, _ = self.plan
        size = len(queue)
        if size >= most:
            return self._sends[most]
        until_s = queue[0].arrived_s + wait_s
        return Wait(until_s) if now < until_s else self._sends[size]
