"""Quantiles in bounded memory."""

from __future__ import annotations

import math
import random

import pytest

from rewarm.sim.quantiles import LogHistogram


def test_nothing_counted() -> None:
    histogram = LogHistogram()
    assert (histogram.mean, histogram.quantile(0.99), histogram.count) == (0.0, 0.0, 0)


def test_quantiles_are_within_half_a_percent_of_the_nearest_rank() -> None:
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(0.0, 2.0) for _ in range(5000))
    histogram = LogHistogram()
    for value in values:
        histogram.add(value)
    for q in (0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        assert histogram.quantile(q) == pytest.approx(values[math.ceil(q * 5000) - 1], rel=0.005)
    assert histogram.mean == pytest.approx(sum(values) / 5000)
    assert histogram.quantile(1.0) <= histogram.largest == values[-1]


def test_zeros_come_first() -> None:
    histogram = LogHistogram()
    histogram.add(2.0)
    histogram.add(0.0)
    histogram.add_zeros(8)
    assert histogram.count == 10
    assert histogram.mean == pytest.approx(0.2)
    assert histogram.quantile(0.9) == 0.0
    assert histogram.quantile(0.91) == pytest.approx(2.0, rel=0.005)


def test_memory_is_bounded_by_the_range_of_the_figures() -> None:
    histogram = LogHistogram()
    for index in range(100_000):
        histogram.add(1e-6 * 1.0003**index)  # up to 1e7 s
    assert len(histogram._bins) < 3_100
