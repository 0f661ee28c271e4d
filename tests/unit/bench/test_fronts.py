"""Fronts of two costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.bench.fronts import Point, at_least, hull, pareto, suffered_at

POINTS = [(1.0, 10.0), (2.0, 9.0), (3.0, 2.0), (3.0, 4.0), (5.0, 2.0), (6.0, 1.0)]


def same(point: Point) -> Point:
    return point


def test_a_front_has_what_nothing_else_beats() -> None:
    assert pareto(POINTS, same) == [(1.0, 10.0), (2.0, 9.0), (3.0, 2.0), (6.0, 1.0)]
    assert pareto([], same) == []


def test_fronts_below_the_front_fill_it_up() -> None:
    assert at_least(POINTS, same, 4) == pareto(POINTS, same)
    assert at_least(POINTS, same, 5) == sorted(POINTS)
    assert at_least(POINTS, same, 99) == sorted(POINTS)


def test_a_hull_leaves_out_what_lies_above_a_line() -> None:
    assert hull(POINTS) == [(1.0, 10.0), (3.0, 2.0), (6.0, 1.0)]


@pytest.mark.parametrize(
    ("spent", "suffered"),
    [(0.9, None), (1.0, 10.0), (2.0, 6.0), (3.0, 2.0), (4.5, 1.5), (6.0, 1.0), (100.0, 1.0)],
)
def test_between_corners_it_is_linear_and_beyond_the_last_nothing_is_gained(spent: float, suffered: float) -> None:
    assert suffered_at(POINTS, spent) == suffered
    assert suffered_at([], spent) is None


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1), st.floats(0, 1e6))
def test_a_hull_is_never_above_a_point(points: list[Point], spent: float) -> None:
    found = suffered_at(points, spent)
    affordable = [y for x, y in points if x <= spent]
    assert (found is None) == (not affordable)
    if found is not None:
        assert found <= min(affordable) * (1 + 1e-9) + 1e-6
        assert found >= min(y for _, y in points) * (1 - 1e-9) - 1e-6
