"""When a first inference is over: by hand, and the figures of a real model."""

from __future__ import annotations

import pytest

from rewarm.facts.pack import LayerFacts
from rewarm.policy.pinning.timeline import bubble_s, loads_s, ttfi_s, ttfi_with_pin_s, zero_bubble_bytes

MB = 1 << 20


def layers(*pairs: tuple[int, float]) -> list[LayerFacts]:
    return [LayerFacts(f"layer {n}", size, compute_s) for n, (size, compute_s) in enumerate(pairs)]


def test_nothing_to_load_is_compute_alone() -> None:
    assert ttfi_s([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]) == 6.0
    assert bubble_s([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]) == 0.0
    assert ttfi_s([], []) == 0.0


def test_the_first_layer_is_always_waited_for() -> None:
    assert ttfi_s([5.0, 0.0], [1.0, 1.0]) == 7.0
    assert bubble_s([5.0, 0.0], [1.0, 1.0]) == 5.0


def test_load_bound_is_all_loads_and_the_last_compute() -> None:
    assert ttfi_s([3.0, 3.0, 3.0], [1.0, 2.0, 1.0]) == 10.0
    assert bubble_s([3.0, 3.0, 3.0], [1.0, 2.0, 1.0]) == 6.0


def test_compute_bound_is_the_first_load_and_all_computes() -> None:
    assert ttfi_s([1.0, 2.0, 2.0], [3.0, 3.0, 3.0]) == 10.0


def test_the_bottleneck_may_lie_in_the_middle() -> None:
    assert ttfi_s([1.0, 9.0, 1.0], [1.0, 2.0, 5.0]) == 1.0 + 9.0 + 2.0 + 5.0


def test_setup_hides_loads() -> None:
    assert ttfi_s([2.0, 2.0], [1.0, 1.0], setup_s=1.0) == 5.0
    assert ttfi_s([2.0, 2.0], [1.0, 1.0], setup_s=4.0) == 6.0
    assert bubble_s([2.0, 2.0], [1.0, 1.0], setup_s=1.0) == 2.0
    assert bubble_s([2.0, 2.0], [1.0, 1.0], setup_s=4.0) == 0.0


def test_as_many_loads_as_computes() -> None:
    with pytest.raises(ValueError):
        ttfi_s([1.0], [1.0, 2.0])


def test_a_pin_takes_the_front_and_may_end_within_a_layer() -> None:
    model = layers((100, 0.0), (50, 0.0), (100, 0.0))
    assert loads_s(model, 10.0) == [10.0, 5.0, 10.0]
    assert loads_s(model, 10.0, 120) == [0.0, 3.0, 10.0]
    assert loads_s(model, 10.0, 1000) == [0.0, 0.0, 0.0]


def test_what_is_read_on_demand_is_neither_loaded_nor_pinned() -> None:
    model = [LayerFacts("table", 1000, 1.0, on_demand=True), *layers((100, 1.0), (100, 1.0))]
    assert loads_s(model, 10.0, 150) == [0.0, 0.0, 5.0]
    assert ttfi_with_pin_s(model, 10.0, 0) == 21.0
    # 100 bytes, less 10 that are read while the table is used; of the second layer's 100 so many are read in a second
    assert zero_bubble_bytes(model, 10.0) == 180
    assert zero_bubble_bytes(model[:1], 10.0) == 0


def test_load_bound_zero_bubble_budget() -> None:
    """All bytes, less what is read while all layers but the last compute."""
    model = layers((40 * MB, 0.010), (40 * MB, 0.010), (40 * MB, 0.010))
    assert zero_bubble_bytes(model, 1000.0 * MB) == 100 * MB
    assert ttfi_with_pin_s(model, 1000.0 * MB, 100 * MB) == pytest.approx(0.030)
    assert ttfi_with_pin_s(model, 1000.0 * MB, 99 * MB) == pytest.approx(0.031)


def test_compute_bound_zero_bubble_budget_is_the_first_layer() -> None:
    assert zero_bubble_bytes(layers((8, 10.0), (8, 10.0), (8, 10.0)), 1.0) == 8


def test_setup_lowers_the_zero_bubble_budget_by_what_is_read_meanwhile() -> None:
    model = layers((40 * MB, 0.010), (40 * MB, 0.010), (40 * MB, 0.010))
    assert zero_bubble_bytes(model, 1000.0 * MB, setup_s=0.030) == 70 * MB
    assert zero_bubble_bytes(model, 1000.0 * MB, setup_s=1.0) == 0


def test_bert_base_at_3_gb_per_second() -> None:
    """Twelve layers of 28 MB beside 94 MB of embeddings, 6.3 ms each: about half has to be pinned (measured, too)."""
    bert = layers((94_000_000, 0.0005), *[(28_400_000, 0.0063)] * 12)
    total = sum(layer.size_bytes for layer in bert)
    assert ttfi_with_pin_s(bert, 3.1e9, 0) == pytest.approx(0.147, abs=0.005)
    assert zero_bubble_bytes(bert, 3.1e9) / total == pytest.approx(0.50, abs=0.02)
