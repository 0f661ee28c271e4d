from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.bench import arrivals
from rewarm.bench.arrivals import Burst
from rewarm.errors import BadDefinition


def test_uniform_is_evenly_spaced_from_zero_and_ends_before_the_duration() -> None:
    assert arrivals.uniform(4, 1) == [0.0, 0.25, 0.5, 0.75]
    assert len(arrivals.uniform(12, 60)) == 720
    assert arrivals.uniform(0.5, 3) == [0.0, 2.0]


def test_the_same_seed_gives_the_same_times_and_another_seed_others() -> None:
    for pattern in ("bursty", "poisson"):
        first = arrivals.make(pattern, 12, 30, seed=7)
        assert first == arrivals.make(pattern, 12, 30, seed=7)
        assert first != arrivals.make(pattern, 12, 30, seed=8)


@pytest.mark.parametrize("pattern", arrivals.PATTERNS)
def test_every_pattern_has_the_mean_rate_it_is_asked_for(pattern: str) -> None:
    # 24 000 expected; a Poisson count strays by about its square root, 155.
    assert len(arrivals.make(pattern, 12, 2000, seed=3)) == pytest.approx(24_000, abs=620)


def test_poisson_gaps_vary_as_much_as_their_mean() -> None:
    times = arrivals.poisson(10, 1000, seed=1)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)


def test_bursty_begins_busy_and_each_phase_has_its_own_rate() -> None:
    burst = Burst(on_rate=20, off_rate=4, on_s=2, off_s=2)
    assert burst.mean_rate == 12
    times = arrivals.bursty(burst, 2000, seed=1)
    busy = sum(time % 4 < 2 for time in times)
    assert busy == pytest.approx(20_000, rel=0.03)
    assert len(times) - busy == pytest.approx(4_000, rel=0.06)


def test_a_quiet_phase_may_be_silent() -> None:
    times = arrivals.bursty(Burst(on_rate=50, off_rate=0, on_s=1, off_s=1), 10, seed=1)
    assert times
    assert all(time % 2 < 1 for time in times)


def test_the_shape_for_a_mean_rate_keeps_that_mean() -> None:
    assert arrivals.burst_of(12).mean_rate == pytest.approx(12)
    assert arrivals.burst_of(12).on_rate == pytest.approx(20)


@given(
    pattern=st.sampled_from(arrivals.PATTERNS),
    rate=st.floats(0.1, 200),
    duration_s=st.floats(0.01, 20),
    seed=st.integers(0, 1000),
)
def test_times_rise_and_lie_within_the_load(pattern: str, rate: float, duration_s: float, seed: int) -> None:
    times = arrivals.make(pattern, rate, duration_s, seed)
    assert times == sorted(times)
    assert all(0 <= time < duration_s for time in times)


@pytest.mark.parametrize(("rate", "duration_s"), [(0, 1), (-1, 1), (1, 0), (float("inf"), 1), (1e6, 1e6)])
def test_loads_that_cannot_be_meant_are_refused(rate: float, duration_s: float) -> None:
    with pytest.raises(BadDefinition):
        arrivals.uniform(rate, duration_s)


def test_an_unknown_pattern_names_the_known_ones() -> None:
    with pytest.raises(BadDefinition, match="uniform, bursty, poisson"):
        arrivals.make("wavy", 1, 1, 1)
    with pytest.raises(BadDefinition):
        arrivals.bursty(Burst(on_rate=1, off_rate=1, on_s=0, off_s=1), 1, 1)
