from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.bench.stats import Summary, percentile, slo_percent, summarise


def test_percentiles_are_nearest_rank() -> None:
    # The textbook example of the nearest-rank method.
    values = [15.0, 20.0, 35.0, 40.0, 50.0]
    assert [percentile(values, p) for p in (0, 5, 30, 40, 50, 100)] == [15, 15, 20, 20, 35, 50]


def test_rank_is_not_moved_by_floating_point() -> None:
    # 99 % of 700 is exactly rank 693.
    assert percentile([float(value) for value in range(1, 701)], 99) == 693


def test_p99_of_few_values_is_their_maximum() -> None:
    assert percentile([1.0, 2.0, 9.0], 99) == 9.0


def test_summary_of_known_values() -> None:
    summary = summarise([float(value) for value in range(100, 0, -1)])
    assert summary == Summary(count=100, mean=50.5, p50=50.0, p90=90.0, p99=99.0, max=100.0)
    assert summarise([]) == Summary()


def test_bad_percentiles_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)
    with pytest.raises(ValueError, match="0 to 100"):
        percentile([1.0], 101)


def test_a_request_without_an_answer_misses_the_slo() -> None:
    assert slo_percent([0.1, 0.2, 0.3], 0.2, requests=4) == 50.0
    assert slo_percent([], 0.2, requests=0) == 100.0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) in values
