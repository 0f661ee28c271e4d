"""The learnt law L(b): exact on clean data, careful on little, unmoved by one outlier."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.policy.batching.latency import LatencyModel


def at(model: LatencyModel, size: int) -> float:
    value = model.expected_s(size)
    assert value is not None
    return value


def learnt(rng: random.Random, count: int = 200, noise: float = 0.0, scale: float = 1.0) -> LatencyModel:
    model = LatencyModel()
    teach(model, rng, count, noise, scale)
    return model


def teach(model: LatencyModel, rng: random.Random, count: int, noise: float, scale: float) -> None:
    for _ in range(count):
        size = rng.randint(1, 8)
        model.observe(size, scale * (0.004 + 0.001 * size) * rng.uniform(1 - noise, 1 + noise))


def test_knows_nothing_at_first() -> None:
    model = LatencyModel()
    assert model.expected_s(1) is None and model.q99_s(1) is None
    assert model.largest(0.1, 64) == 64


def test_finds_the_line() -> None:
    model = learnt(random.Random(1))
    for size in (1, 4, 8, 16):
        assert at(model, size) == pytest.approx(0.004 + 0.001 * size, rel=0.03)
    assert model.tail < 1.1


def test_q99_covers_the_noise() -> None:
    rng = random.Random(2)
    model = learnt(rng, noise=0.2)
    q99_s = model.q99_s(4)
    assert q99_s is not None
    assert 0.008 * 1.2 < q99_s < 0.008 * 1.8


def test_one_outlier_hardly_counts() -> None:
    model = learnt(random.Random(3), noise=0.05)
    before = at(model, 4)
    model.observe(4, 10 * before)
    assert at(model, 4) == pytest.approx(before, rel=0.05)
    assert model.tail < 1.5


def test_a_cold_first_run_is_soon_forgotten() -> None:
    model = LatencyModel()
    model.observe(1, 0.05)
    for _ in range(5):
        model.observe(1, 0.005)
    assert at(model, 1) == pytest.approx(0.005, rel=0.2)


def test_follows_a_lasting_change() -> None:
    rng = random.Random(4)
    model = learnt(rng, noise=0.1)
    teach(model, rng, 100, 0.1, scale=3.0)
    assert at(model, 4) == pytest.approx(0.024, rel=0.15)


def test_one_size_gives_the_dearer_guess_on_both_sides() -> None:
    model = LatencyModel()
    for _ in range(50):
        model.observe(8, 0.016)
    assert at(model, 8) == pytest.approx(0.016)
    assert at(model, 16) == pytest.approx(0.032)
    assert at(model, 1) == pytest.approx(0.016)
    assert model.saved_s(8) >= 0.0


def test_nonsense_is_not_learnt() -> None:
    model = LatencyModel()
    for run_s in (math.nan, math.inf):
        model.observe(1, run_s)
    model.observe(0, 0.01)
    assert model.samples == 0
    model.observe(1, -1.0)
    assert at(model, 1) > 0.0


samples = st.lists(st.tuples(st.integers(1, 64), st.floats(0.0, 10.0)), min_size=1, max_size=30)


@given(samples)
def test_is_never_negative_and_never_falls_with_size(pairs: list[tuple[int, float]]) -> None:
    model = LatencyModel()
    for size, run_s in pairs:
        model.observe(size, run_s)
    law = [at(model, size) for size in range(1, 80)]
    assert law[0] > 0.0
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(law))
    assert all(model.saved_s(size) >= -1e-9 * law[-1] for size in range(1, 64))


@given(samples, st.floats(-0.1, 20.0), st.floats(0.0, 0.5), st.integers(1, 70))
def test_largest_is_the_largest(pairs: list[tuple[int, float]], budget_s: float, gap_s: float, limit: int) -> None:
    model = LatencyModel()
    for size, run_s in pairs:
        model.observe(size, run_s)
    got = model.largest(budget_s, limit, gap_s)
    assert 0 <= got <= limit

    def needs_s(size: int) -> float:
        return (model.q99_s(size) or 0.0) + (size - 1) * gap_s

    assert got == 0 or needs_s(got) <= budget_s + 1e-6
    assert got == limit or needs_s(got + 1) > budget_s - 1e-6
