from __future__ import annotations

import pytest

from rewarm.clock import Clock, ManualClock, system_clock


def test_the_system_clock_does_not_go_back() -> None:
    readings = [system_clock() for _ in range(100)]
    assert readings == sorted(readings)


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(5.0)
    assert clock() == clock() == 5.0
    assert clock.advance(1.5) == 6.5
    assert clock.advance(0.0) == clock() == 6.5


def test_time_does_not_go_back() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-0.1)
    assert clock() == 0.0


def test_both_are_clocks() -> None:
    clocks: list[Clock] = [system_clock, ManualClock()]
    assert all(isinstance(clock(), float) for clock in clocks)
