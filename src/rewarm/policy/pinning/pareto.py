"""Which whole layers to pin where load time is not proportional to bytes: decompression, dequantising, a remote tier,
layers that are in the page cache already. A prefix of the bytes can be far off then.

The makespan of `timeline` is a recurrence from the last layer to the first, in which what is known of the layers
from k on is one number, the seconds h in which they are done if the loader begins with them:

    h_k = max(sum of c_i for i >= k, h_k+1)   if k is pinned        h_k = the same + l_k   if it is not

So of two choices for these layers, one that holds no fewer bytes and is no sooner done can be forgotten, and what is
left is a frontier (Nemhauser and Ullmann 1969; for late jobs, Lawler and Moore 1969). Choices that even with parts of
layers would miss what a quick guess, and then a first, rough pass reaches are forgotten as well.

It is exact while no more than `STATES_MAX` choices are left. Of ten layers there cannot be more; two hundred that all
differ have some hundred to two thousand. Only where load time is proportional to bytes after all, wholly or by groups,
there may be more, which are thinned then; what is lost is in the order of a thousandth of a layer.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from rewarm.policy.pinning.timeline import ttfi_s

STATES_MAX = 2048
_STATES_ROUGH = 256
_SLACK = 1e-9  # of the deadline: sums of floats in another order than what they are compared with

_State = tuple[int, float, int]  # bytes pinned, h, and the pinned layers as bits


def pins(
    load_s: Sequence[float], compute_s: Sequence[float], size_bytes: Sequence[int], budget_bytes: int
) -> frozenset[int]:
    """The layers to pin, of together at most `budget_bytes`, with which the first inference is over soonest.

    Of equals those with the fewest bytes. Layers count from 0; an unpinned one takes its `load_s`, a pinned one none.
    """
    best = _guess(load_s, compute_s, size_bytes, budget_bytes, 0.0)
    for states_max in (_STATES_ROUGH, STATES_MAX):
        soonest_s = _ttfi_s(load_s, compute_s, best)
        states = _frontier(load_s, compute_s, size_bytes, budget_bytes, soonest_s, states_max)
        best = _layers(states[-1][2]) if states else best
    return best


def pins_for_deadline(
    load_s: Sequence[float], compute_s: Sequence[float], size_bytes: Sequence[int], deadline_s: float
) -> frozenset[int] | None:
    """The layers of together the fewest bytes with which the first inference is over by `deadline_s`, give or take a
    billionth; None: not even with all of them."""
    deadline_s *= 1.0 + _SLACK
    if sum(compute_s) > deadline_s:
        return None
    best = _guess(load_s, compute_s, size_bytes, sum(size_bytes), deadline_s)
    for states_max in (_STATES_ROUGH, STATES_MAX):
        least_bytes = sum(size_bytes[k] for k in best)
        states = _frontier(load_s, compute_s, size_bytes, least_bytes, deadline_s, states_max)
        best = _layers(states[0][2]) if states else best
    return best


def _frontier(
    load_s: Sequence[float], compute_s: Sequence[float], size_bytes: Sequence[int], budget_bytes: int,
    deadline_s: float, states_max: int,
) -> list[_State]:  # fmt: skip
    """Every choice within budget and deadline that no other is better than: by bytes, and so by falling h."""
    states: list[_State] = [(0, 0.0, 0)]
    rest_s = 0.0
    for k in range(len(load_s) - 1, -1, -1):
        rest_s += compute_s[k]
        load, size, bit = load_s[k], size_bytes[k], 1 << k
        merged = [(held, max(h, rest_s) + load, bits) for held, h, bits in states]
        merged += [(held + size, max(h, rest_s), bits | bit) for held, h, bits in states]
        merged.sort()
        bound = _Bound(load_s[:k], size_bytes[:k])
        states, soonest_s = [], math.inf
        for state in merged:
            held, h, _ = state
            if held > budget_bytes:
                break
            if h < soonest_s and h + bound.least_s(budget_bytes - held) <= deadline_s * (1.0 + _SLACK):
                states.append(state)
                soonest_s = h
        if len(states) > states_max:
            states = _thinned(states, budget_bytes // states_max + 1)
    return [state for state in states if state[1] <= deadline_s]


def _thinned(states: list[_State], step_bytes: int) -> list[_State]:
    """The first and, of each step, the soonest done."""
    return [states[0], *{state[0] // step_bytes: state for state in states[1:]}.values()]


class _Bound:
    """The least load time that layers 0..k-1 can be left with: as a knapsack that takes parts of layers."""

    __slots__ = ("_saved_s", "_sizes", "_total_s")

    def __init__(self, load_s: Sequence[float], size_bytes: Sequence[int]) -> None:
        pairs = [(load, size) for load, size in zip(load_s, size_bytes, strict=True) if load > 0.0]
        pairs.sort(key=lambda pair: pair[1] / pair[0])
        self._sizes, self._saved_s = [0], [0.0]
        for load, size in pairs:
            self._sizes.append(self._sizes[-1] + size)
            self._saved_s.append(self._saved_s[-1] + load)
        self._total_s = self._saved_s[-1]

    def least_s(self, budget_bytes: int) -> float:
        sizes, saved_s = self._sizes, self._saved_s
        after = bisect_right(sizes, budget_bytes)
        if after == len(sizes):
            return 0.0
        part = (budget_bytes - sizes[after - 1]) / (sizes[after] - sizes[after - 1])
        return self._total_s - saved_s[after - 1] - part * (saved_s[after] - saved_s[after - 1])


def _guess(
    load_s: Sequence[float], compute_s: Sequence[float], size_bytes: Sequence[int], budget_bytes: int,
    deadline_s: float,
) -> frozenset[int]:  # fmt: skip
    """A good choice, quickly: of the layers whose load is waited for, pin the one that saves most per byte; again until
    the deadline is met or nothing more fits."""
    pinned: set[int] = set()
    while _ttfi_s(load_s, compute_s, pinned) > deadline_s:
        fits = [
            k
            for k in range(_critical(load_s, compute_s, pinned) + 1)
            if k not in pinned and load_s[k] > 0.0 and size_bytes[k] <= budget_bytes
        ]
        if not fits:
            break
        best = min(fits, key=lambda k: size_bytes[k] / load_s[k])
        pinned.add(best)
        budget_bytes -= size_bytes[best]
    return frozenset(pinned)


def _critical(load_s: Sequence[float], compute_s: Sequence[float], pinned: set[int]) -> int:
    """The k of the makespan's maximum, the first if there are several: after its load nothing is waited for."""
    last, ends_s, rest_s = -1, 0.0, 0.0
    for k in range(len(load_s) - 1, -1, -1):
        rest_s += compute_s[k]
        if rest_s >= ends_s:
            last, ends_s = k, rest_s
        if k not in pinned:
            ends_s += load_s[k]
    return last


def _ttfi_s(load_s: Sequence[float], compute_s: Sequence[float], pinned: set[int] | frozenset[int]) -> float:
    return ttfi_s([0.0 if k in pinned else load for k, load in enumerate(load_s)], compute_s)


def _layers(bits: int) -> frozenset[int]:
    return frozenset(k for k in range(bits.bit_length()) if bits >> k & 1)
