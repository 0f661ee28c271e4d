"""How large a batch to gather and how long to wait for it: the plan of BATCH (Ali et al., SC'20), for Poisson arrivals.

A buffer is sent when it holds n requests, or t after its first one. With arrivals at rate λ

    size of a batch     i = 1 + Poisson(λt), all of n and above in n: p_1 … p_n
    share of requests   q_i = i·p_i / Σ j·p_j travel in batches of i
    latency             wait + v_i, v_i from a profile
    cost of a request   Σ p_i·c_i / Σ i·p_i, c_i the bill of one call of v_i seconds (facts.prices)

and the plan is the cheapest (n, t) of a grid whose share of requests within the SLO reaches the quantile asked for.

The wait follows from Poisson arrivals. Of a batch that is not full the first waits t and the others uniformly within
t. A full one leaves at T, the (n − 1)th arrival after the first, with T ≤ t: the first waits T, the last not at all,
those between uniformly within T. T is an Erlang variable, G_k(y) = P(Poisson(λy) ≥ k) the law of the k-th arrival, so

    P(first of a full one waits ≤ x) = G_{n−1}(x)       one between: G_{n−1}(x) + x·λ/(n−2)·(G_{n−2}(t) − G_{n−2}(x))

for x < t, both including that it is full. (The paper lets all wait uniformly, up to t or the mean of T. Then the first
of every batch may miss the SLO in a plan that promises 95 %.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rewarm.facts.prices import call_usd
from rewarm.facts.profile import Profile

WAITS = 24  # steps of the grid from no wait to the SLO
_SAME = 0.01  # among plans whose costs differ by less, the one that waits least
_ROUNDING = 1e-9
_STEP = math.log(1.1)  # plans are made for rates and bodies in steps of a tenth
_RATE_MIN, _RATE_MAX = 1e-3, 1e6  # requests per second: one in a quarter of an hour is none
_PLANS_MAX = 4096
_ARRIVALS_PER_SIZE = 4  # between two plans, for each size that they go through


class Plan(NamedTuple):
    """Send at `size` requests, or `wait_s` after the first."""

    size: int
    wait_s: float
    request_usd: float  # expected bill of one request
    attained: float  # expected share of requests within the SLO


class Goal(NamedTuple):
    """What a plan is made for."""

    slo_s: float
    quantile: float  # the share of requests that must meet the SLO
    memory_bytes: int  # of an instance, for its bill
    size_max: int


class Size(NamedTuple):
    """What one n means whatever the wait."""

    call_usd: float
    spare_s: float  # the longest wait that meets the SLO
    early: float  # G_{n−1}(spare)
    sooner: float  # G_{n−2}(spare)


def best_plan(curve_s: Sequence[float], rate_per_s: float, goal: Goal) -> Plan:
    """The cheapest plan of the grid. `curve_s`: seconds of a batch of 1, 2, …, never falling.

    Where even a lone request runs longer than the SLO it sends what is there: waiting could not help.
    """
    curve_s = curve_s[: goal.size_max]
    fitting = [run_s for run_s in curve_s if run_s <= goal.slo_s]
    if not fitting:
        return Plan(len(curve_s), 0.0, call_usd(goal.memory_bytes, curve_s[0]), 0.0)
    sizes = prepare(fitting, rate_per_s, goal)
    best = Plan(len(fitting), 0.0, sizes[0].call_usd, 1.0)
    for step in range(1, WAITS + 1):
        found = _best_size(sizes, rate_per_s, goal.slo_s * step / WAITS, goal.quantile)
        if found is not None and found.request_usd < best.request_usd * (1.0 - _SAME):
            best = found
    return best


def _best_size(sizes: Sequence[Size], rate_per_s: float, wait_s: float, quantile: float) -> Plan | None:
    """The cheapest size for one wait, the largest among equals: what gathered while all were busy leaves together.

    None if no size meets the SLO.
    """
    best = plan = None
    cheapest = math.inf
    for plan in outlook(sizes, rate_per_s, wait_s):
        if plan.request_usd <= cheapest * (1.0 + _ROUNDING) and plan.attained >= quantile:
            cheapest = min(cheapest, plan.request_usd)
            best = plan
    # Where the outlook ends early, larger sizes are equal to the last.
    return best._replace(size=len(sizes)) if best is not None and best is plan else best


def prepare(curve_s: Sequence[float], rate_per_s: float, goal: Goal) -> list[Size]:
    """One Size for each of `curve_s`."""
    return [_size(n, run_s, rate_per_s, goal) for n, run_s in enumerate(curve_s, start=1)]


def _size(n: int, run_s: float, rate_per_s: float, goal: Goal) -> Size:
    spare_s = goal.slo_s - run_s
    mean = rate_per_s * spare_s
    share = math.exp(-mean)
    fewer = last = 0.0  # P(Poisson < n − 1) and its last term
    for k in range(1, n):
        last = share
        fewer += share
        share *= mean / k
    return Size(call_usd(goal.memory_bytes, run_s), spare_s, 1.0 - fewer, 1.0 - fewer + last)


def outlook(sizes: Sequence[Size], rate_per_s: float, wait_s: float) -> Iterator[Plan]:
    """What to expect of n = 1, 2, … with this wait, until hardly any batch gets as large.

    One pass: the sums over batches that are not full serve every n.
    """
    mean = rate_per_s * wait_s
    share = math.exp(-mean)  # P(exactly n)
    full = fuller = 1.0  # P(at least n), P(at least n − 1)
    requests = cost = met = 0.0  # Σ i·p_i, Σ p_i·c_i and Σ p_i · requests of i within the SLO, over i < n
    for n, (call, spare_s, early, sooner) in enumerate(sizes, start=1):
        if wait_s <= spare_s:
            met_full, met_part = n * full, n * share
        else:
            met_part = (n - 1) * spare_s / wait_s * share
            between = early + spare_s * rate_per_s / (n - 2) * max(0.0, fuller - sooner) if n > 2 else 0.0
            met_full = full + early + (n - 2) * between if n > 1 else full
        expected = requests + n * full
        yield Plan(n, wait_s, (cost + full * call) / expected, (met + met_full) / expected)
        requests += n * share
        cost += share * call
        met += met_part
        fuller, full = full, full - share
        if full < _ROUNDING:
            return
        share *= mean / n


class Planner:
    """Plans by rate of arrivals and size of bodies, each made once, and not oftener than `arrived` has paid for it.

    A plan takes about 30 µs for each size up to the goal's largest. One size of bodies has at most 218 of them.
    """

    def __init__(self, profile: Profile, goal: Goal) -> None:
        self._profile = profile
        self._goal = goal
        self._plans: dict[tuple[int, int], Plan] = {}
        self._spacing = _ARRIVALS_PER_SIZE * goal.size_max
        self._arrivals = 0

    def arrived(self) -> None:
        """A request came."""
        self._arrivals += 1

    def plan(self, rate_per_s: float, body_bytes: int, last: Plan | None) -> Plan:
        """`body_bytes`: of the largest body in a batch. `last`: what to go by while another plan costs too much."""
        rate_step = round(math.log(min(max(rate_per_s, _RATE_MIN), _RATE_MAX)) / _STEP)
        alike = len(self._profile.body_bytes) == 1
        body_step = 0 if alike or body_bytes < 1 else math.ceil(math.log(body_bytes) / _STEP - _ROUNDING)
        plan = self._plans.get((rate_step, body_step))
        if plan is None:
            if last is not None and self._arrivals < self._spacing:
                return last
            self._arrivals = 0
            if len(self._plans) >= _PLANS_MAX:
                self._plans.clear()
            curve_s = self._profile.curve_s(math.exp(body_step * _STEP))
            plan = self._plans[rate_step, body_step] = best_plan(curve_s, math.exp(rate_step * _STEP), self._goal)
        return plan
