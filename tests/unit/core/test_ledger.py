"""The memory ledger: one account, whose total is the sum of its entries at all times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.core.ledger import Ledger


def test_entries_are_corrected_not_added() -> None:
    ledger = Ledger(100)
    ledger.enter("a", 30)
    ledger.enter("b", 20)
    ledger.enter("a", 50)
    assert (ledger.held_bytes, ledger.of("a"), ledger.of("b"), len(ledger)) == (70, 50, 20, 2)


def test_leaving_gives_everything_back() -> None:
    ledger = Ledger(100)
    ledger.enter("a", 30)
    ledger.leave("a")
    assert (ledger.held_bytes, "a" in ledger, ledger.of("a")) == (0, False, 0)


def test_an_end_may_be_reported_twice() -> None:
    ledger = Ledger(100)
    ledger.enter("a", 30)
    ledger.leave("a")
    ledger.leave("a")
    assert ledger.held_bytes == 0


@pytest.mark.parametrize(("extra", "short"), [(0, 0), (40, 0), (41, 1), (100, 60), (-50, 0)])
def test_what_is_missing(extra: int, short: int) -> None:
    ledger = Ledger(100)
    ledger.enter("a", 60)
    assert ledger.short_bytes(extra) == short


def test_check_finds_a_wrong_total() -> None:
    ledger = Ledger(100)
    ledger.enter("a", 60)
    ledger.check()
    ledger.held_bytes += 1
    with pytest.raises(AssertionError, match="ledger says 61, entries sum to 60"):
        ledger.check()


def test_what_is_ending_counts_as_free_and_is_held_until_it_is_gone() -> None:
    ledger = Ledger(100)
    ledger.enter("a", 60)
    ledger.enter("b", 30)
    ledger.told_to_end("a")
    assert (ledger.held_bytes, ledger.ending_bytes, ledger.ending) == (90, 60, {"a"})
    assert (ledger.short_bytes(70), ledger.short_bytes(71)) == (0, 1)
    ledger.enter("a", 50)
    ledger.enter("b", 40)
    assert (ledger.held_bytes, ledger.ending_bytes) == (90, 50)
    ledger.check()
    ledger.leave("a")
    assert (ledger.held_bytes, ledger.ending_bytes, ledger.ending) == (40, 0, set())


def test_check_finds_a_wrong_sum_of_what_is_ending() -> None:
    ledger = Ledger(100)
    ledger.enter("a", 60)
    ledger.told_to_end("a")
    ledger.check()
    ledger.ending_bytes -= 1
    with pytest.raises(AssertionError, match="ledger says 59 are ending, entries sum to 60"):
        ledger.check()


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 1000))))
def test_the_total_is_the_sum_of_its_parts(steps: list[tuple[int, int | None]]) -> None:
    ledger, model = Ledger(1000), {}
    for node, size in steps:
        if size is None:
            ledger.leave(node)
            model.pop(node, None)
        else:
            ledger.enter(node, size)
            model[node] = size
        ledger.check()
        assert ledger.held_bytes == sum(model.values())
        assert len(ledger) == len(model)
