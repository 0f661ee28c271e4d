"""Whole layers, when load time is not proportional to bytes. That it is exact: `tests/property/test_pinning.py`."""

from __future__ import annotations

import random
import time

import pytest

from rewarm.facts.pack import LayerFacts
from rewarm.policy.pinning import pareto
from rewarm.policy.pinning.timeline import ttfi_s, ttfi_with_pin_s


def ttfi_without(load_s: list[float], compute_s: list[float], pinned: frozenset[int]) -> float:
    return ttfi_s([0.0 if k in pinned else load for k, load in enumerate(load_s)], compute_s)


def test_a_slow_small_layer_before_a_quick_large_one() -> None:
    """Of the two it is the last that takes long to load; a prefix of its bytes would end in the first."""
    load_s, compute_s, sizes = [0.1, 9.0], [1.0, 1.0], [900, 100]
    assert pareto.pins(load_s, compute_s, sizes, 100) == {1}
    assert pareto.pins(load_s, compute_s, sizes, 1000) == {0, 1}
    assert pareto.pins(load_s, compute_s, sizes, 99) == frozenset()


def test_no_bytes_for_what_is_hidden() -> None:
    assert pareto.pins([1.0, 0.5, 0.5], [1.0, 1.0, 1.0], [5, 5, 5], 15) == {0}


def test_the_fewest_bytes_for_a_deadline() -> None:
    load_s, compute_s, sizes = [2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [10, 30, 20]
    assert pareto.pins_for_deadline(load_s, compute_s, sizes, 7.0) == frozenset()
    assert pareto.pins_for_deadline(load_s, compute_s, sizes, 5.0) == frozenset({0})
    assert pareto.pins_for_deadline(load_s, compute_s, sizes, 4.0) == frozenset({0, 2})
    assert pareto.pins_for_deadline(load_s, compute_s, sizes, 3.0) == frozenset({0, 1})
    assert pareto.pins_for_deadline(load_s, compute_s, sizes, 2.9) is None


def test_no_layers() -> None:
    assert pareto.pins([], [], [], 0) == frozenset()
    assert pareto.pins_for_deadline([], [], [], 0.0) == frozenset()


def test_layers_that_hold_no_bytes_or_take_no_time() -> None:
    assert pareto.pins([1.0, 0.0], [0.1, 0.1], [0, 7], 7) == {0}


@pytest.mark.parametrize("proportional", [False, True])
def test_two_hundred_layers_take_less_than_a_second(proportional: bool) -> None:
    """Of the process's own time: the machine may have other work."""
    rng = random.Random(7)
    sizes = [rng.randrange(1 << 20, 16 << 20) for _ in range(200)]
    load_s = [size / 1e9 * rng.uniform(0.5, 2.0) if proportional else rng.uniform(0.0, 0.01) for size in sizes]
    compute_s = [rng.uniform(0.0, 0.003) for _ in sizes]
    budget = sum(sizes) // 4
    began_s = time.process_time()
    pinned = pareto.pins(load_s, compute_s, sizes, budget)
    assert time.process_time() - began_s < 1.0
    assert sum(sizes[k] for k in pinned) <= budget
    got_s = ttfi_without(load_s, compute_s, pinned)
    deadline = pareto.pins_for_deadline(load_s, compute_s, sizes, got_s)
    assert deadline is not None
    assert sum(sizes[k] for k in deadline) <= sum(sizes[k] for k in pinned)


def test_more_choices_than_are_remembered() -> None:
    """Where load time is bytes over bandwidth choices are alike. A prefix to the byte is a bound, and nearly met."""
    rng = random.Random(7)
    sizes = [rng.randrange(1 << 20, 16 << 20) for _ in range(80)]
    load_s, compute_s = [size / 1e9 for size in sizes], [0.001] * len(sizes)
    budget = sum(sizes) // 4
    pinned = pareto.pins(load_s, compute_s, sizes, budget)
    assert sum(sizes[k] for k in pinned) <= budget
    layers = [LayerFacts(str(k), size, 0.001) for k, size in enumerate(sizes)]
    assert ttfi_without(load_s, compute_s, pinned) <= ttfi_with_pin_s(layers, 1e9, budget) * 1.0001
