from __future__ import annotations

import itertools

import pytest

from rewarm.facts.sandbox import LEGAL_MOVES, IllegalMove, Layer, SandboxState, StartKind, check_move

S = SandboxState
UP = [S.ABSENT, S.BARE, S.LANG, S.USER, S.READY, S.BUSY]


@pytest.mark.parametrize(("old", "new"), list(itertools.product(S, S)), ids=lambda state: state.value)
def test_a_move_is_in_the_table_or_raises(old: SandboxState, new: SandboxState) -> None:
    if new in LEGAL_MOVES[old]:
        check_move(old, new)
    else:
        with pytest.raises(IllegalMove, match=f"^{old.value} → {new.value}$"):
            check_move(old, new)


def test_the_table_is_whole() -> None:
    assert set(LEGAL_MOVES) == set(S)


def test_the_way_up_is_one_layer_at_a_time() -> None:
    for (low, old), (high, new) in itertools.product(enumerate(UP), enumerate(UP)):
        if high > low:
            restored = (old, new) == (S.ABSENT, S.READY)
            assert (new in LEGAL_MOVES[old]) == (high == low + 1 or restored)


def test_every_life_can_end_and_no_life_begins_again() -> None:
    for state in S:
        ends = {S.DYING, S.GONE} - {state} if state not in (S.DYING, S.GONE) else {S.GONE} - {state}
        assert ends <= LEGAL_MOVES[state]
        assert S.ABSENT not in LEGAL_MOVES[state]
        assert state not in LEGAL_MOVES[state]
    assert LEGAL_MOVES[S.GONE] == frozenset()


def test_a_busy_instance_is_never_peeled() -> None:
    assert LEGAL_MOVES[S.BUSY] == {S.READY, S.DYING, S.GONE}


def test_peeling_goes_down() -> None:
    assert {S.USER, S.LANG} <= LEGAL_MOVES[S.READY]
    assert S.LANG in LEGAL_MOVES[S.USER]
    assert S.BARE in LEGAL_MOVES[S.LANG]


def test_layers_are_ordered_lowest_first() -> None:
    assert Layer.BARE < Layer.LANG < Layer.USER < Layer.MODEL


def test_start_kinds_are_the_header_values() -> None:
    assert {kind.value for kind in StartKind} == {"warm", "user", "lang", "bare", "cold", "restored"}
