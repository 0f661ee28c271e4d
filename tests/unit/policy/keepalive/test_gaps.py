"""Histograms of gaps and the plan that `hazard` makes of them, against brute force."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.policy.keepalive.gaps import EDGES_S, WIDTHS_S, GapHistogram, bin_of, plan, worth_per_s

UNIFORM = [1.0 / len(EDGES_S)] * len(EDGES_S)


def value(
    held: set[int], mass: list[float], saved_s: float, rent: float, again_s: float, widths_s: list[float]
) -> float:
    """The expected value of holding exactly the bins `held`, gap by gap: nothing is shared with `plan`."""
    total = 0.0
    for end, p in enumerate(mass):
        begins = sum(1 for k in held if 0 < k <= end and k - 1 not in held)
        seconds = sum(widths_s[k] * (0.5 if k == end else 1.0) for k in held if k <= end)
        total += p * ((saved_s if end in held else 0.0) - rent * seconds - again_s * begins)
    return total


def normal(weights: list[int]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


BINS = 6
masses = st.lists(st.integers(0, 9), min_size=BINS + 1, max_size=BINS + 1).filter(any).map(normal)
widths = st.lists(st.integers(1, 50).map(float), min_size=BINS, max_size=BINS)
amounts = st.floats(0.01, 5.0)


@given(masses, widths, amounts, amounts, st.floats(0.0, 2.0))
def test_no_set_of_bins_is_worth_more_than_the_plan(
    mass: list[float], widths_s: list[float], saved_s: float, rent: float, again_s: float
) -> None:
    ranges = plan(mass, saved_s, rent, again_s, widths_s)
    chosen = {k for first, end in ranges for k in range(first, end)}
    assert len(chosen) == sum(end - first for first, end in ranges), "ranges do not overlap"
    sets = (set(c) for size in range(BINS + 1) for c in itertools.combinations(range(BINS), size))
    best = max(value(held, mass, saved_s, rent, again_s, widths_s) for held in sets)
    assert value(chosen, mass, saved_s, rent, again_s, widths_s) == pytest.approx(best, abs=1e-9)


@given(masses, widths, amounts, amounts)
def test_without_coming_back_it_is_the_best_time_to_live(
    mass: list[float], widths_s: list[float], saved_s: float, rent: float
) -> None:
    """V(b) = saved_s * F(b) - rent * E[min(gap, b)]."""
    ranges = plan(mass, saved_s, rent, 1e9, widths_s)
    assert all(first == 0 for first, _ in ranges)
    lives = [0.0]
    for b in range(1, BINS + 1):
        inside = sum(p * (sum(widths_s[:k]) + widths_s[k] / 2) for k, p in enumerate(mass[:b]))
        lives.append(saved_s * sum(mass[:b]) - rent * (inside + sum(widths_s[:b]) * sum(mass[b:])))
    chosen = ranges[0][1] if ranges else 0
    assert lives[chosen] == pytest.approx(max(lives), abs=1e-9)


@given(masses, widths, amounts, st.integers(0, BINS - 1))
def test_worth_is_the_rent_at_which_holding_stops_to_pay(
    mass: list[float], widths_s: list[float], saved_s: float, first: int
) -> None:
    worth = worth_per_s(mass, first, saved_s, widths_s)
    assert worth >= 0.0
    below, above = (plan(mass[first:], saved_s, worth * factor, 1e9, widths_s[first:]) for factor in (0.99, 1.01))
    assert not above
    assert bool(below) == (worth > 0.0)


def test_bins_cover_everything() -> None:
    assert bin_of(0.0) == bin_of(0.999) == 0
    assert bin_of(1e9) == len(WIDTHS_S) == 145
    assert EDGES_S[-1] == pytest.approx(86_400.0)
    for k in range(1, 145):
        middle_s = (EDGES_S[k] + EDGES_S[k + 1]) / 2
        assert bin_of(middle_s) == k


def test_histogram_decays_and_spreads() -> None:
    gaps = GapHistogram(decay=0.5)
    gaps.add(10)
    gaps.add(20)
    mixed = gaps.mixed(UNIFORM, 0.0)
    assert mixed[9:12] == pytest.approx([1 / 12, 2 / 12, 1 / 12]), "half as much as the one that followed"
    assert mixed[19:22] == pytest.approx([2 / 12, 4 / 12, 2 / 12])
    assert (gaps.count, gaps.total) == (2, pytest.approx(1.5))


def test_the_prior_weighs_as_many_samples_as_it_says() -> None:
    gaps = GapHistogram()
    assert gaps.mixed(UNIFORM, 1.0) == pytest.approx(UNIFORM)
    for _ in range(3):
        gaps.add(len(WIDTHS_S))  # the endless one: a sample in it is not spread
    assert gaps.mixed(UNIFORM, 1.0)[-1] == pytest.approx((3.0 + UNIFORM[-1]) / 4)
    assert sum(gaps.mixed(UNIFORM, 1.0)) == pytest.approx(1.0)


def test_histogram_lasts() -> None:
    gaps = GapHistogram(decay=0.9)
    for k in range(5000):
        gaps.add(30 if k < 2500 else 40)
    mixed = gaps.mixed(UNIFORM, 0.0)
    assert sum(mixed) == pytest.approx(1.0)
    assert mixed[40] == pytest.approx(0.5)
    assert mixed[30] == pytest.approx(0.0, abs=1e-9)


def test_what_is_not_there_is_raised_only_for_more_than_raising_costs() -> None:
    mass = [0.5, 0.1, 0.4]
    for again_s in (0.0, 0.3, 0.6):
        there = plan(mass, 1.0, 0.01, again_s, widths_s=[1.0, 1.0])
        absent = plan(mass, 1.0, 0.01, again_s, widths_s=[1.0, 1.0], there=False)
        assert there == [(0, 2)]
        assert absent == ([(0, 2)] if again_s < 0.5 else []), "it saves 0.6 less its rent"
