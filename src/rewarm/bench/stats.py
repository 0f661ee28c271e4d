"""Summaries of latencies.

Percentiles are nearest-rank: the smallest observed value that at least p percent of all values do not exceed. So each
one is a latency that some request really had, and p99 of fewer than 100 values is their maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """In the unit of the values given; all 0 when there are none."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    max: float = 0.0


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile of values in rising order. Raises ValueError if there are none."""
    if not ordered:
        raise ValueError("no percentile of nothing")
    if not 0 <= percent <= 100:
        raise ValueError(f"a percentile is 0 to 100, not {percent}")
    # The product is rounded first: 0.99 * 700 must be rank 693, not 694 by a float's last digit.
    return ordered[max(1, math.ceil(round(percent * len(ordered) / 100, 9))) - 1]


def summarise(values: Sequence[float]) -> Summary:
    ordered = sorted(values)
    if not ordered:
        return Summary()
    return Summary(
        count=len(ordered),
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def slo_percent(latencies_s: Sequence[float], slo_s: float, requests: int) -> float:
    """Percent of `requests` answered well within `slo_s`. A request without a good answer has missed it."""
    if requests == 0:
        return 100.0
    return 100.0 * sum(latency <= slo_s for latency in latencies_s) / requests
