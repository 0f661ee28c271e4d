"""One heap of moments: nobody is woken too late, and what was outgrown wakes nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rewarm.core.timers import Timers

INF = float("inf")


class Sleeper:
    def __init__(self) -> None:
        self.timer_at_s = INF


def test_empty() -> None:
    timers = Timers()
    assert timers.next_s() is None
    assert timers.pop_due(1e9) is None
    assert len(timers) == 0


def test_in_order_and_not_before_their_time() -> None:
    timers, late, early = Timers(), Sleeper(), Sleeper()
    timers.arm(late, 2.0)
    timers.arm(early, 1.0)
    assert timers.next_s() == 1.0
    assert timers.pop_due(0.5) is None
    assert timers.pop_due(2.0) is early
    assert timers.pop_due(2.0) is late
    assert timers.pop_due(2.0) is None


def test_who_wakes_earlier_anyway_costs_nothing() -> None:
    timers, sleeper = Timers(), Sleeper()
    timers.arm(sleeper, 1.0)
    timers.arm(sleeper, 1.0)
    timers.arm(sleeper, 5.0)
    timers.arm(sleeper, INF)
    assert len(timers) == 1


def test_never_is_no_moment() -> None:
    timers = Timers()
    timers.arm(Sleeper(), INF)
    assert timers.next_s() is None


def test_an_outgrown_entry_wakes_nobody() -> None:
    timers, sleeper = Timers(), Sleeper()
    timers.arm(sleeper, 5.0)
    timers.arm(sleeper, 1.0)
    assert timers.pop_due(1.0) is sleeper
    assert sleeper.timer_at_s == INF
    assert timers.pop_due(9.0) is None


def test_armed_again_after_waking() -> None:
    timers, sleeper = Timers(), Sleeper()
    timers.arm(sleeper, 1.0)
    assert timers.pop_due(1.0) is sleeper
    timers.arm(sleeper, 3.0)
    assert timers.pop_due(2.0) is None
    assert timers.pop_due(3.0) is sleeper


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20))), st.lists(st.integers(0, 20)))
def test_everyone_is_woken_at_the_earliest_moment_asked_for(asked: list[tuple[int, int]], looks: list[int]) -> None:
    timers, sleepers = Timers(), [Sleeper() for _ in range(4)]
    wanted: dict[int, int] = {}
    for who, at in asked:
        timers.arm(sleepers[who], at)
        wanted[who] = min(at, wanted.get(who, at))
    for now in sorted(looks):
        woken = set()
        while (sleeper := timers.pop_due(now)) is not None:
            woken.add(sleepers.index(sleeper))
        assert woken == {who for who, at in wanted.items() if at <= now}
        for who in woken:
            del wanted[who]
