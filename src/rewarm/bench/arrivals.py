"""When the requests of a load are meant to be sent: pure, seeded generators.

Each returns sorted offsets in seconds from the start of the load, all within [0, duration_s). The same arguments
give the same list on every machine, so that two policies can be compared on one and the same input.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rewarm.errors import BadDefinition

PATTERNS = ("uniform", "bursty", "poisson")
_REQUESTS_MAX = 10_000_000


@dataclass(frozen=True, slots=True)
class Burst:
    """Busy and quiet phases that take turns, Poisson arrivals in each. Rates per second, phases in seconds."""

    on_rate: float
    off_rate: float
    on_s: float = 2.0
    off_s: float = 2.0

    @property
    def mean_rate(self) -> float:
        return (self.on_rate * self.on_s + self.off_rate * self.off_s) / (self.on_s + self.off_s)


def burst_of(rate: float) -> Burst:
    """The shape used everywhere for a mean `rate`: 2 s at 5/3 of it, then 2 s at 1/3 of it."""
    return Burst(on_rate=rate * 5 / 3, off_rate=rate / 3)


def uniform(rate: float, duration_s: float) -> list[float]:
    """One request every 1/rate seconds, the first at 0."""
    _check(rate, duration_s)
    # i / rate and not a running sum: no drift over long loads. The margin keeps 3.0000000001 s of a 3 s load out.
    return [i / rate for i in range(int(rate * duration_s + 1)) if i / rate < duration_s - 1e-9]


def poisson(rate: float, duration_s: float, seed: int) -> list[float]:
    """Independent exponential gaps with mean 1/rate."""
    _check(rate, duration_s)
    return _poisson(random.Random(seed), rate, 0.0, duration_s)


def bursty(burst: Burst, duration_s: float, seed: int) -> list[float]:
    """Begins with a busy phase; phases take turns until `duration_s`."""
    _check(max(burst.on_rate, burst.off_rate), duration_s)
    if min(burst.on_rate, burst.off_rate) < 0 or burst.on_s <= 0 or burst.off_s <= 0:
        raise BadDefinition("a burst needs rates that are not negative and phases longer than 0 s")
    draw = random.Random(seed)
    times: list[float] = []
    start, on = 0.0, True
    while start < duration_s:
        end = min(duration_s, start + (burst.on_s if on else burst.off_s))
        times += _poisson(draw, burst.on_rate if on else burst.off_rate, start, end)
        start, on = end, not on
    return times


def make(pattern: str, rate: float, duration_s: float, seed: int) -> list[float]:
    """The pattern that `pattern` names, with mean `rate` per second."""
    if pattern == "uniform":
        return uniform(rate, duration_s)
    if pattern == "poisson":
        return poisson(rate, duration_s, seed)
    if pattern == "bursty":
        return bursty(burst_of(rate), duration_s, seed)
    raise BadDefinition(f"unknown pattern {pattern!r}; use one of {', '.join(PATTERNS)}")


def _poisson(draw: random.Random, rate: float, start_s: float, end_s: float) -> list[float]:
    times: list[float] = []
    if rate <= 0:
        return times
    now = start_s + draw.expovariate(rate)
    while now < end_s:
        times.append(now)
        now += draw.expovariate(rate)
    return times


def _check(rate: float, duration_s: float) -> None:
    if not 0 < rate < float("inf") or not 0 < duration_s < float("inf"):
        raise BadDefinition(f"a load needs a rate and a duration above 0, not {rate:g} per second for {duration_s:g} s")
    if rate * duration_s > _REQUESTS_MAX:
        raise BadDefinition(f"a load of {rate * duration_s:.0f} requests is over the limit of {_REQUESTS_MAX}")
