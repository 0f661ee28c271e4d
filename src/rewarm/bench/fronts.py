"""Fronts of two costs, both better when less: which points count, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

Point = tuple[float, float]  # what is spent, what is suffered

_T = TypeVar("_T")


def pareto(items: Sequence[_T], of: Callable[[_T], Point]) -> list[_T]:
    """Those that no other is as good as in both and better in one, by what is spent; of equal ones the first."""
    best = float("inf")
    kept: list[_T] = []
    for item in sorted(items, key=of):
        suffered = of(item)[1]
        if suffered < best:
            best = suffered
            kept.append(item)
    return kept


def at_least(items: Sequence[_T], of: Callable[[_T], Point], count: int) -> list[_T]:
    """The Pareto front; if it has fewer than `count`, also that of what it leaves, and so on."""
    left, kept = list(items), list[_T]()
    while left and len(kept) < count:
        front = pareto(left, of)
        kept += front
        left = [item for item in left if all(item is not other for other in front)]
    return sorted(kept, key=of)


def hull(points: Sequence[Point]) -> list[Point]:
    """The lower left convex hull, from the least spent to the least suffered.

    Every point between two of its corners can be had: one setting for a share of the functions, the other for the rest.
    """
    corners: list[Point] = []
    for x, y in pareto(points, lambda point: point):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append((x, y))
    return corners


def suffered_at(points: Sequence[Point], spent: float) -> float | None:
    """What the hull of `points` suffers at `spent`, linear between its corners.

    None where even the cheapest point spends more. Beyond the dearest one nothing more is gained.
    """
    corners = hull(points)
    if not corners or spent < corners[0][0]:
        return None
    for (x0, y0), (x1, y1) in pairwise(corners):
        if spent <= x1:
            return y0 + (y1 - y0) * (spent - x0) / (x1 - x0)
    return corners[-1][1]
