"""Figures per function, cheap enough for every request: plain counters and fixed histograms."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from rewarm.facts.prices import PRICE_PER_CALL, PRICE_PER_GB_S

#: Upper bounds in seconds: OpenTelemetry's hint for FaaS durations, with finer steps below 5 ms.
DURATION_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_LOADINGS_MAX = 100
_FOLD_AT = 4096  # observations kept before they are sorted into the histograms


class Histogram:
    """Counts per upper bound (not cumulative), with the sum; the last bucket is +Inf."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def observe_all(self, values: list[float]) -> None:
        """Many at once, which sorting makes cheap. Empties the list."""
        values.sort()
        before = 0
        for index, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound)
            self.counts[index] += upto - before
            before = upto
        self.counts[-1] += len(values) - before
        self.total += sum(values)
        values.clear()

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        out, running = [], 0
        for bound, count in zip((*self.bounds, math.inf), self.counts, strict=True):
            running += count
            out.append(("+Inf" if bound == math.inf else repr(float(bound)), float(running)))
        return out


class FunctionStats:
    """Everything counted for one function since it was deployed (or the server started)."""

    __slots__ = (
        "_taken_s", "_waited_s", "billed_ms", "calls", "codes", "durations", "errors", "init_ms", "inits",
        "loads", "loadings", "memory_bytes", "queue", "requests", "run_ms", "sizes", "slo_met", "slo_s", "starts",
    )  # fmt: skip

    def __init__(self, memory_bytes: int, slo_s: float | None) -> None:
        self.memory_bytes = memory_bytes
        self.slo_s = slo_s
        self.requests = 0
        self.errors = 0
        self.calls = 0  # batches: what AWS Lambda would bill as requests
        self.codes: Counter[int] = Counter()
        self.starts: Counter[str] = Counter()
        self.sizes: Counter[int] = Counter()
        self.durations = Histogram(DURATION_BOUNDS_S)
        self.queue = Histogram(DURATION_BOUNDS_S)
        self._taken_s: list[float] = []
        self._waited_s: list[float] = []
        self.run_ms = 0.0
        self.billed_ms = 0
        self.inits = 0
        self.init_ms: deque[float] = deque(maxlen=1000)
        self.slo_met = 0
        self.loads = 0  # of packed weights
        self.loadings: deque[Mapping[str, float]] = deque(maxlen=_LOADINGS_MAX)  # how the last of them went

    def batch(self, size: int, run_us: int) -> None:
        """One call of the function ended."""
        self.calls += 1
        self.sizes[size] += 1
        self.run_ms += run_us * 1e-3
        self.billed_ms += max(1, -(-run_us // 1000))

    def took(self, taken_s: list[float], waited_s: list[float]) -> None:
        """How long requests took from arrival to answer, and how long they waited to be run."""
        self._taken_s += taken_s
        self._waited_s += waited_s
        if len(self._taken_s) >= _FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Bring the histograms up to date; whoever reads them calls this first."""
        self.durations.observe_all(self._taken_s)
        self.queue.observe_all(self._waited_s)

    def started(self, init_s: float) -> None:
        """An instance became ready after `init_s`."""
        self.inits += 1
        self.init_ms.append(init_s * 1e3)
        self.billed_ms += math.ceil(init_s * 1e3)

    def loaded(self, figures: Mapping[str, float]) -> None:
        """An instance answered its first batch, and its weights were loaded as `worker.weights.Weights.report` says."""
        self.loads += 1
        self.loadings.append(figures)

    def refused(self, status: int) -> None:
        """A request was answered without being run, or was lost with its instance."""
        self.requests += 1
        self.errors += 1
        self.codes[status] += 1

    def cost_usd(self) -> float:
        """AWS Lambda's bill for the same calls: per call, plus memory × (init + run) rounded up to 1 ms."""
        return PRICE_PER_CALL * self.calls + PRICE_PER_GB_S * (self.memory_bytes / 2**30) * self.billed_ms / 1e3

    def to_json(self, name: str) -> dict[str, Any]:
        return {
            "name": name, "requests": self.requests, "errors": self.errors, "calls": self.calls,
            "rows_per_call": {str(size): count for size, count in sorted(self.sizes.items())},
            "starts": dict(self.starts), "inits": self.inits, "init_ms": list(self.init_ms),
            "run_ms_total": self.run_ms, "billed_ms_total": self.billed_ms, "cost_usd": self.cost_usd(),
            "loads": self.loads, "loadings": list(self.loadings),
            "slo_met": self.slo_met if self.slo_s is not None else None,
        }  # fmt: skip
