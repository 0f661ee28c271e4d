"""The curve of first calls: what is assumed, what those that were called teach, and what those that still wait do."""

from __future__ import annotations

import pytest

from rewarm.policy.keepalive.firsts import FirstCalls
from rewarm.policy.keepalive.gaps import EDGES_S, bin_of

DAY_S = 86_400.0


def deployed(count: int, now: float = 0.0, name: str = "f") -> FirstCalls:
    firsts = FirstCalls()
    for k in range(count):
        firsts.deployed(f"{name}{k}", now)
    return firsts


def within(mass: list[float], from_s: float, until_s: float) -> float:
    """Of those that have waited `from_s`, the share that is called before `until_s`."""
    first, end = bin_of(from_s), bin_of(until_s)
    return sum(mass[first:end]) / sum(mass[first:])


def test_before_anything_is_known_each_order_of_magnitude_is_alike() -> None:
    mass = FirstCalls().mass(0.0)
    assert len(mass) == len(EDGES_S)
    assert sum(mass) == pytest.approx(1.0)
    assert within(mass, 10.0, 100.0) == pytest.approx(within(mass, 100.0, 1000.0), rel=0.05)
    assert mass[-1] == pytest.approx(0.37, abs=0.01), "a third are not called within a day"


def test_first_calls_within_seconds_are_expected_of_the_next_one() -> None:
    firsts = deployed(40)
    before = within(firsts.mass(0.0), 0.0, 10.0)
    for k in range(40):
        firsts.called(f"f{k}", 2.0 + 0.1 * k)
    firsts.deployed("new", 100.0)
    assert within(firsts.mass(100.0), 0.0, 10.0) > 0.6 > before


def test_those_that_still_wait_say_that_it_takes_long() -> None:
    firsts = deployed(40)
    for k in range(10):
        firsts.called(f"f{k}", 2.0)
    soon, later = firsts.mass(10.0), firsts.mass(5_000.0)
    assert within(later, 0.0, 10.0) == pytest.approx(0.25, abs=0.1), "ten of forty"
    assert within(later, 100.0, 4_000.0) < 0.5 * within(soon, 100.0, 4_000.0), "thirty waited so long, none was called"
    assert within(later, 6_000.0, DAY_S) < 0.5 * within(soon, 6_000.0, DAY_S), "and so it goes on"


def test_the_worth_of_being_ready_falls_while_nobody_is_called() -> None:
    firsts = deployed(20)
    worths = [firsts.worth_per_s("f0", now) for now in (60.0, 100.0, 1_000.0, 10_000.0)]
    assert worths == sorted(worths, reverse=True) and worths[0] > worths[-1] > 0.0
    assert deployed(20).worth_per_s("f0", 0.0) < 0.01, "no hope of the next second"


def test_the_curve_is_whole_whatever_comes() -> None:
    firsts = FirstCalls()
    for k in range(200):
        firsts.deployed(f"f{k}", 50.0 * k)
        if k % 3:
            firsts.called(f"f{k}", 50.0 * k + k**2)
        mass = firsts.mass(50.0 * k)
        assert min(mass) >= 0.0 and sum(mass) == pytest.approx(1.0)
    with pytest.raises(KeyError):
        firsts.called("f1", 1e6)
