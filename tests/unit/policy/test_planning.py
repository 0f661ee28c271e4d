"""Plans of BATCH: the formulas against a simulated buffer, the grid against brute force."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from rewarm.facts.prices import call_usd
from rewarm.facts.profile import Profile
from rewarm.policy.batching import planning
from rewarm.policy.batching.planning import WAITS, Goal, Plan, Planner, best_plan, outlook, prepare

PROFILE = Profile((1, 2, 4, 8, 16, 32), (1000,), ((0.004, 0.005, 0.006, 0.01, 0.018, 0.033),))
CURVE_S = PROFILE.curve_s()
SLO_S = 0.2
GOAL = Goal(SLO_S, 0.95, 1 << 30, 32)
RATES = [0.01, 1.0, 5.0, 12.0, 40.0, 100.0, 300.0, 2000.0, 1e5]


def buffer(
    curve_s: Sequence[float], rate: float, size: int, wait_s: float, slo_s: float = SLO_S, batches: int = 12_000
) -> tuple[float, float]:
    """Poisson arrivals at a buffer (n, t), drawn → cost of a request, share of requests within the SLO."""
    draw = random.Random(f"{rate} {size} {wait_s}")
    usd = requests = met = 0.0
    for _ in range(batches):
        arrivals = [0.0]
        while len(arrivals) < size:
            arrival_s = arrivals[-1] + draw.expovariate(rate)
            if arrival_s > wait_s:
                break
            arrivals.append(arrival_s)
        end_s = (arrivals[-1] if len(arrivals) == size else wait_s) + curve_s[len(arrivals) - 1]
        usd += call_usd(GOAL.memory_bytes, curve_s[len(arrivals) - 1])
        requests += len(arrivals)
        met += sum(end_s - arrival_s <= slo_s for arrival_s in arrivals)
    return usd / requests, met / requests


CASES = [
    (30.0, 8, 0.1), (60.0, 8, 0.195), (80.0, 16, 0.195), (5.0, 2, 0.198), (12.0, 5, 0.2), (8.0, 3, 0.199),
    (100.0, 4, 0.05), (200.0, 32, 0.19), (5.0, 1, 0.1), (20.0, 6, 0.2),
]  # fmt: skip


def planned(curve_s: Sequence[float], rate: float, wait_s: float, goal: Goal = GOAL) -> list[Plan]:
    """What to expect of every n."""
    return list(outlook(prepare(curve_s, rate, goal), rate, wait_s))


@pytest.mark.parametrize(("rate", "size", "wait_s"), CASES)
def test_the_formulas_are_what_a_simulated_buffer_does(rate: float, size: int, wait_s: float) -> None:
    found = planned(CURVE_S, rate, wait_s)[size - 1]
    usd, met = buffer(CURVE_S, rate, size, wait_s)
    assert (found.size, found.wait_s) == (size, wait_s)
    assert found.request_usd == pytest.approx(usd, rel=0.01)
    assert found.attained == pytest.approx(met, abs=0.01)


@pytest.mark.parametrize("rate", RATES)
def test_the_grid_finds_the_cheapest_that_meets_the_objective(rate: float) -> None:
    every = [p for step in range(WAITS + 1) for p in planned(CURVE_S, rate, SLO_S * step / WAITS)]
    cheapest = min(plan.request_usd for plan in every if plan.attained >= GOAL.quantile)
    best = best_plan(CURVE_S, rate, GOAL)
    assert cheapest * 0.999999 <= best.request_usd <= cheapest * 1.011
    assert best.attained >= GOAL.quantile
    earlier = [p.request_usd for p in every if p.wait_s < best.wait_s and p.attained >= GOAL.quantile]
    assert all(usd > best.request_usd for usd in earlier), "a shorter wait was as cheap"


@pytest.mark.parametrize("rate", [8.0, 40.0, 150.0])
@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.999])
def test_a_plan_keeps_its_promise(rate: float, quantile: float) -> None:
    plan = best_plan(CURVE_S, rate, GOAL._replace(quantile=quantile))
    assert buffer(CURVE_S, rate, plan.size, plan.wait_s)[1] >= quantile - 0.01


def test_nobody_waits_for_nobody() -> None:
    assert best_plan(CURVE_S, 0.001, GOAL)[:2] == (32, 0.0)


def test_run_times_beyond_the_objective() -> None:
    assert best_plan((0.3, 0.4), 10.0, GOAL) == Plan(2, 0.0, call_usd(1 << 30, 0.3), 0.0)
    # A batch of three would miss whatever the wait: two is the most.
    assert best_plan((0.1, 0.15, 0.25), 1e4, GOAL).size == 2


def test_very_large_rates_do_not_overflow() -> None:
    plan = best_plan(CURVE_S, 1e6, GOAL)
    assert plan.size == 32 and 0 < plan.wait_s <= SLO_S and math.isfinite(plan.request_usd)


def test_a_planner_remembers_and_saves_its_time() -> None:
    planner = Planner(PROFILE, GOAL)
    slow = planner.plan(1.0, 0, None)
    assert planner.plan(1.02, 0, slow) is slow, "within a tenth it is the same"
    assert planner.plan(100.0, 0, slow) is slow, "another plan is not paid for yet"
    for _ in range(4 * GOAL.size_max):
        planner.arrived()
    fast = planner.plan(100.0, 0, slow)
    assert fast != slow
    assert planner.plan(1.0, 0, fast) is slow
    assert planner.plan(100.0, 10**9, None) is fast, "one measured body: its size does not matter"


def test_a_planner_goes_by_the_largest_body() -> None:
    bodies = Profile((1, 8), (10, 1000), ((0.01, 0.02), (0.1, 0.15)))
    small, large = (Planner(bodies, GOAL).plan(30.0, size, None) for size in (10, 1000))
    assert large.wait_s < small.wait_s
    assert large.request_usd > small.request_usd
    assert Planner(bodies, GOAL).plan(30.0, 10**12, None).attained == 0.0, "far beyond what was measured"


def test_a_planner_forgets_when_it_knows_too_much() -> None:
    planner = Planner(Profile((1, 2), (1, 2), ((0.01, 0.02), (0.02, 0.03))), GOAL._replace(size_max=1))
    first = planner.plan(1.0, 1, None)
    for step in range(planning._PLANS_MAX + 1):
        planner.plan(1.1 ** (step % 200 - 60), 2 + 3 ** (step // 200), None)
    assert planner.plan(1.0, 1, None) == first
