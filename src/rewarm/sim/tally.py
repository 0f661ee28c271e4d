"""What the machine counts while it runs: starts and waits, and what the meter said at the end."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rewarm.core.meter import Meter
from rewarm.facts.request import Request
from rewarm.facts.sandbox import Layer, StartKind
from rewarm.sim.costs import FunctionCosts
from rewarm.sim.quantiles import LogHistogram

_ROUNDING_S = 1e-6
_WARM = StartKind.WARM


class FunctionTally:
    """One function: what it costs and how its calls began."""

    __slots__ = ("calls", "cold", "costs", "name", "started", "startup_s")

    def __init__(self, name: str, costs: FunctionCosts) -> None:
        self.name = name
        self.costs = costs
        self.calls = 0
        self.started = 0  # calls that waited for a start of any kind
        self.cold = 0  # those of them that found nothing at all
        self.startup_s = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.name, self.costs, self.calls, self.started, self.cold, self.startup_s)


def _unpickled(
    name: str, costs: FunctionCosts, calls: int, started: int, cold: int, startup_s: float
) -> FunctionTally:  # fmt: skip
    """A tally that another process counted: compiled classes do not find their way back by themselves."""
    tally = FunctionTally(name, costs)
    tally.calls, tally.started, tally.cold, tally.startup_s = calls, started, cold, startup_s
    return tally


class Tally:
    """Sums over a run. `used` and `wasted` are idle byte-seconds by layer, as `core.meter` counts them."""

    def __init__(self) -> None:
        self.functions: list[FunctionTally] = []
        self.starts: Counter[StartKind] = Counter()
        self.startup_s = LogHistogram()  # of calls that waited for a start; the others are zeros
        self.wait_s = LogHistogram()  # in the queue, without start-up; as above
        self.used = dict.fromkeys(Layer, 0.0)
        self.wasted = dict.fromkeys(Layer, 0.0)
        self.rejected: Counter[str] = Counter()
        self.disk_byte_s = 0.0  # what snapshots took on disk, used or not
        self.evictions = 0
        self.arrived = 0
        self.started = 0

    def waited(self, function: FunctionTally, request: Request, now: float) -> None:
        """A call that was not served at the moment it came by an instance that was there."""
        wait_s = now - request.arrived_s - request.init_s
        if wait_s > _ROUNDING_S:
            self.wait_s.add(wait_s)
        if request.start is not _WARM:
            function.started += 1
            function.startup_s += request.init_s
            function.cold += request.start is StartKind.COLD
            self.starts[request.start] += 1
            self.startup_s.add(request.init_s)

    def read(self, meter: Meter) -> None:
        """Take over the meter's sums, as they are now."""
        self.used, self.wasted = dict(meter.used_byte_s), dict(meter.wasted_byte_s)
        self.evictions = meter.evictions

    @property
    def waiting(self) -> int:
        """Calls that came and were neither started nor refused."""
        return self.arrived - self.started - self.rejected.total()
