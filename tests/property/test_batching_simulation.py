"""Batching rules against a queue and an instance in virtual time: what each promises, over many arrival patterns."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.facts.function import FunctionSpec, PolicySpec
from rewarm.facts.request import Request
from rewarm.policy import registry
from rewarm.policy.batching.base import BatchingPolicy, Wait

SLO_S = 0.2
FUNCTION = FunctionSpec("f", "predict", "app:F", slo_s=SLO_S)
Law = Callable[[int], float]


def linear(a: float, c: float) -> Law:
    return lambda size: a + c * size


@dataclass
class Outcome:
    waits_s: list[float] = field(default_factory=list)  # arrival to dispatch
    latencies_s: list[float] = field(default_factory=list)  # arrival to answer
    idle_waits_s: list[float] = field(default_factory=list)  # of the oldest, from when an instance was idle
    batches: list[int] = field(default_factory=list)
    left: int = 0

    def within(self, slo_s: float) -> float:
        return sum(latency <= slo_s for latency in self.latencies_s) / len(self.latencies_s)


def simulate(policy: BatchingPolicy, arrivals: Sequence[float], law: Law, late: Law = lambda _: 0.0) -> Outcome:
    """One instance. `late(size)` is how late a timer fires."""
    outcome = Outcome()
    queue: deque[Request] = deque()
    coming = deque(sorted(arrivals))
    running: list[Request] = []
    idle_since_s, started_s = -math.inf, 0.0
    end_s = wake_s = math.inf
    while (now := min(coming[0] if coming else math.inf, end_s, wake_s)) < math.inf:
        if now == end_s:
            outcome.latencies_s += [now - request.arrived_s for request in running]
            idle_since_s, end_s = now, math.inf
            policy.on_run(len(running), now - started_s, now)
        elif coming and now == coming[0]:
            queue.append(Request("f", coming.popleft(), math.inf))
            policy.on_arrival(now)
        wake_s = math.inf
        if not queue or end_s < math.inf:
            continue
        answer = policy.decide(queue, now)
        if isinstance(answer, Wait):
            if answer.until_s is not None:
                assert answer.until_s > now
                wake_s = answer.until_s + late(len(queue))
            continue
        running = [queue.popleft() for _ in range(min(answer.size, len(queue)))]
        outcome.batches.append(len(running))
        outcome.waits_s += [now - request.arrived_s for request in running]
        outcome.idle_waits_s.append(now - max(running[0].arrived_s, idle_since_s))
        started_s, end_s = now, now + law(len(running))
    outcome.left = len(queue)
    return outcome


def policy(name: str, **params: object) -> BatchingPolicy:
    return registry.batching(PolicySpec(name, params), FUNCTION)


def uniform(rate: float, count: int) -> list[float]:
    return [1000.0 + i / rate for i in range(count)]


def poisson(rate: float, count: int, seed: int) -> list[float]:
    rng, now = random.Random(seed), 1000.0
    return [now := now + rng.expovariate(rate) for _ in range(count)]


def bursty(rate: float, count: int, seed: int) -> list[float]:
    """Groups of 4 to 12 within some tens of milliseconds, with silences that make the mean `rate`."""
    rng, now, times = random.Random(seed), 1000.0, []
    while len(times) < count:
        size = rng.randint(4, 12)
        times += [now + rng.random() * 0.06 for _ in range(size)]
        now += 0.06 + rng.expovariate(1 / (size / rate - 0.06))
    return sorted(times)


gaps = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.05), st.floats(0.0, 2.0)), min_size=1, max_size=60)
laws = st.builds(linear, st.floats(1e-4, 0.05), st.floats(0.0, 0.01))


def times(gaps_s: list[float]) -> list[float]:
    now = 1000.0
    return [now := now + gap for gap in gaps_s]


@settings(deadline=None)
@given(gaps, laws, st.sampled_from(["none", "dynamic", "aimd", "slo", "slo:mode=cost"]))
def test_every_request_leaves(gaps_s: list[float], law: Law, text: str) -> None:
    spec = registry.parse(text)
    outcome = simulate(policy(spec.name, **spec.params), times(gaps_s), law)
    assert outcome.left == 0
    assert sum(outcome.batches) == len(outcome.latencies_s) == len(gaps_s)


@settings(deadline=None)
@given(gaps, laws, st.integers(1, 9))
def test_static_leaves_only_a_remainder(gaps_s: list[float], law: Law, size: int) -> None:
    outcome = simulate(policy("static", size=size), times(gaps_s), law)
    assert set(outcome.batches) <= {size}
    assert outcome.left == len(gaps_s) % size


@settings(deadline=None)
@given(gaps, laws, st.integers(1, 9), st.sampled_from([0.0, 0.005, 0.3]))
def test_dynamic_keeps_both_bounds(gaps_s: list[float], law: Law, size: int, wait_s: float) -> None:
    outcome = simulate(policy("dynamic", max_size=size, max_wait_s=wait_s), times(gaps_s), law)
    assert max(outcome.batches) <= size
    assert max(outcome.idle_waits_s) <= wait_s + 1e-9


@settings(deadline=None)
@given(gaps, laws, st.sampled_from(["latency", "cost"]))
def test_slo_never_holds_past_the_deadline(gaps_s: list[float], law: Law, mode: str) -> None:
    outcome = simulate(policy("slo", mode=mode), times(gaps_s), law)
    assert max(outcome.idle_waits_s) <= 0.85 * SLO_S + 1e-6


LOADS = {
    "uniform": lambda seed: uniform(12.0, 1500),
    "poisson": lambda seed: poisson(12.0, 1500, seed),
    "bursty": lambda seed: bursty(12.0, 1500, seed),
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("seed", range(3))
def test_slo_cost_meets_the_objective_with_fewer_calls(load: str, seed: int) -> None:
    arrivals = LOADS[load](seed)
    outcome = simulate(policy("slo", mode="cost"), arrivals, linear(0.005, 0.001))
    assert outcome.within(SLO_S) == 1.0
    assert len(outcome.batches) <= {"bursty": 0.25, "poisson": 0.55, "uniform": 0.55}[load] * len(arrivals)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.001, 0.03), st.floats(0.0, 0.003))
def test_slo_cost_is_cheap_and_punctual_for_any_function_that_fits(seed: int, a: float, c: float) -> None:
    """Two groups at once on a function that nobody has timed may cost a few requests their objective; later, none."""
    arrivals = bursty(12.0, 400, seed)
    outcome = simulate(policy("slo", mode="cost"), arrivals, linear(a, c))
    late = [i for i, latency in enumerate(outcome.latencies_s) if latency > SLO_S]
    learning = sum(outcome.batches[:10])  # requests in the runs from which the law is learnt
    assert len(late) <= 4 and all(i < learning for i in late)
    assert len(outcome.batches) <= 0.6 * len(arrivals)


@pytest.mark.parametrize("load", LOADS)
def test_slo_cost_survives_noise_and_late_timers(load: str) -> None:
    rng = random.Random(7)

    def noisy(size: int) -> float:
        return (0.005 + 0.001 * size) * rng.lognormvariate(0.0, 0.3) * (5.0 if rng.random() < 0.01 else 1.0)

    def late(_: int) -> float:
        return rng.expovariate(1 / 0.002) + (0.02 if rng.random() < 0.01 else 0.0)

    arrivals = LOADS[load](1)
    outcome = simulate(policy("slo", mode="cost"), arrivals, noisy, late)
    assert outcome.within(SLO_S) >= 0.999
    assert len(outcome.batches) <= 0.6 * len(arrivals)


@settings(deadline=None)
@given(laws, st.lists(st.floats(0.0, 1.0), min_size=1, max_size=80), st.integers(0, 9))
def test_slo_latency_never_delays_a_lone_caller(law: Law, thinks_s: list[float], seed: int) -> None:
    """The next request comes after the answer to the last one, at once or after a pause."""
    rule, rng, now = policy("slo"), random.Random(seed), 1000.0
    for think_s in thinks_s:
        now += think_s if rng.random() < 0.5 else 0.0
        rule.on_arrival(now)
        assert not isinstance(rule.decide([Request("f", now, math.inf)], now), Wait)
        run_s = law(1)
        now += run_s
        rule.on_run(1, run_s, now)


def test_slo_cost_soon_leaves_a_fast_lone_caller_alone() -> None:
    """A caller who comes often but only after each answer looks like a crowd; holds that nobody joins tell."""
    rule, now, holds = policy("slo", mode="cost"), 1000.0, 0
    for _ in range(500):
        rule.on_arrival(now)
        request = Request("f", now, math.inf)
        while isinstance(answer := rule.decide([request], now), Wait):
            assert answer.until_s is not None
            holds += 1
            now = answer.until_s
        now += 0.005
        rule.on_run(1, 0.005, now)
    assert holds <= 20
