"""The rate at which one request follows another."""

from __future__ import annotations

import random

import pytest

from rewarm.policy.batching.rate import ArrivalRate


def fed(gaps_s: list[float], horizon_s: float = 0.2) -> ArrivalRate:
    rate, now = ArrivalRate(horizon_s), 1000.0
    rate.arrived(now)
    for gap_s in gaps_s:
        now += gap_s
        rate.arrived(now)
    return rate


def test_nobody_is_expected_at_first() -> None:
    assert ArrivalRate(0.2).per_s == 0.0
    assert ArrivalRate(0.2).gap_s > 1e6
    assert fed([]).per_s == 0.0


def test_regular_arrivals() -> None:
    rate = fed([0.1] * 200)
    assert rate.per_s == pytest.approx(10.0, rel=0.02)
    assert rate.gap_s == pytest.approx(0.1, rel=0.02)
    assert rate.last_gap_s == pytest.approx(0.1)


def test_poisson_arrivals_give_their_rate_though_gaps_are_censored() -> None:
    rng = random.Random(1)
    rates = [fed([rng.expovariate(12.0) for _ in range(200)]).per_s for _ in range(50)]
    assert sum(rates) / len(rates) == pytest.approx(12.0, rel=0.1)


def test_bursts_give_the_rate_inside_a_burst() -> None:
    burst = [0.01] * 9 + [5.0]
    assert fed(burst * 20).per_s > 25.0


def test_a_rare_caller_is_followed_by_nobody() -> None:
    assert fed([0.001] * 20 + [60.0] * 200).per_s < 0.1


def test_many_at_one_instant() -> None:
    rate = fed([0.0] * 50_000)
    assert 1e6 < rate.per_s <= 1e9
    assert 0.0 <= rate.gap_s < 1e-6
