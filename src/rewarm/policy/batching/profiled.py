"""What rules share that plan with a profile: they know run times before the first request and learn only arrivals."""

from __future__ import annotations

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec
from rewarm.facts.profile import Profile
from rewarm.policy.batching.base import Dispatch
from rewarm.policy.batching.latency import SIZE_LIMIT
from rewarm.policy.batching.planning import Goal, Planner
from rewarm.policy.batching.rate import ArrivalRate


class ProfiledRule:
    """Checked parameters, the planner, and the rate of arrivals over about the last 33.

    A share of `quantile` of the requests is to meet the SLO less `slack_s`, which is for what a profile does not see:
    late timers, the way to the instance and back. `max_size` is bounded by the largest batch of the profile.
    """

    __slots__ = ("_curve_s", "_largest_bytes", "_planner", "_rate", "_sends", "max_size", "slo_s")
    name = "profiled"
    watches_arrivals = True

    def __init__(
        self, function: FunctionSpec, max_size: int, quantile: float, slack_s: float, profile: Profile | None
    ) -> None:
        name = self.name
        if isinstance(max_size, bool) or not isinstance(max_size, int) or not 1 <= max_size <= SIZE_LIMIT:
            raise BadDefinition(f"max_size must be a whole number from 1 to {SIZE_LIMIT}, not {max_size!r}")
        if isinstance(quantile, bool) or not isinstance(quantile, int | float) or not 0 < quantile < 1:
            raise BadDefinition(f"quantile must lie between 0 and 1, such as 0.95, not {quantile!r}")
        if function.slo_s is None:
            raise BadDefinition(f'batching "{name}" needs an objective: add slo="200ms" to function {function.name!r}')
        if isinstance(slack_s, bool) or not isinstance(slack_s, int | float) or not 0 <= slack_s < function.slo_s:
            raise BadDefinition(f"slack_s must be from 0 to less than the slo ({function.slo_s:g} s), not {slack_s!r}")
        if profile is None:
            raise BadDefinition(
                f'batching "{name}" plans with measured run times, and there are none of this code of '
                f"{function.name!r}; deploy it with another batching, run: rewarm profile {function.name}, "
                f"then deploy it with --batching {name}"
            )
        self.slo_s = function.slo_s
        self.max_size = min(max_size, profile.sizes[-1])
        goal = Goal(function.slo_s - slack_s, quantile, function.memory_bytes, self.max_size)
        self._planner = Planner(profile, goal)
        self._largest_bytes = profile.body_bytes[-1]
        self._curve_s = profile.curve_s(self._largest_bytes)
        self._rate = ArrivalRate(function.slo_s)
        self._sends = tuple(Dispatch(max(size, 1)) for size in range(self.max_size + 1))

    def on_arrival(self, now: float) -> None:
        self._rate.arrived(now)
        self._planner.arrived()

    def on_run(self, size: int, run_s: float, now: float) -> None:
        """Run times come from the profile."""

    def expected_run_s(self, size: int) -> float | None:
        return self._curve_s[min(size, len(self._curve_s)) - 1]
