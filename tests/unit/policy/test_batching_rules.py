"""Each batching rule alone: what it answers to a queue, and what it refuses."""

from __future__ import annotations

import math

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec
from rewarm.facts.request import Request
from rewarm.policy.batching.aimd import Aimd
from rewarm.policy.batching.base import Dispatch, Wait
from rewarm.policy.batching.dynamic import Dynamic
from rewarm.policy.batching.latency import SIZE_LIMIT
from rewarm.policy.batching.none import NoBatching
from rewarm.policy.batching.slo import Slo
from rewarm.policy.batching.static import Static

NOW = 1000.0
FUNCTION = FunctionSpec("f", "predict", "app:F", slo_s=0.2)
NO_SLO = FunctionSpec("f", "predict", "app:F")


def queue(size: int, age_s: float = 0.0, deadline_s: float = math.inf) -> list[Request]:
    return [Request("f", NOW - age_s, deadline_s) for _ in range(size)]


def test_none_sends_one() -> None:
    rule = NoBatching(FUNCTION)
    assert rule.max_size == 1
    assert rule.decide(queue(7), NOW) == Dispatch(1)


def test_static_waits_for_all_however_long() -> None:
    rule = Static(FUNCTION, 3)
    assert rule.decide(queue(2, age_s=3600.0), NOW) == Wait(None)
    assert rule.decide(queue(3), NOW) == Dispatch(3)
    assert rule.decide(queue(5), NOW) == Dispatch(3)


def test_dynamic_leaves_at_size_or_time() -> None:
    rule = Dynamic(FUNCTION, max_size=5, max_wait_s=0.3)
    assert rule.decide(queue(5), NOW) == Dispatch(5)
    assert rule.decide(queue(4, age_s=0.1), NOW) == Wait(pytest.approx(NOW + 0.2))  # type: ignore[arg-type]
    assert rule.decide(queue(4, age_s=0.3), NOW) == Dispatch(4)


def test_dynamic_without_wait_takes_what_is_there() -> None:
    rule = Dynamic(FUNCTION, max_size=5, max_wait_s=0.0)
    assert [rule.decide(queue(size), NOW) for size in (1, 4, 9)] == [Dispatch(1), Dispatch(4), Dispatch(5)]


def test_aimd_climbs_by_steps_and_backs_off() -> None:
    rule = Aimd(FUNCTION, max_size=10, step=2, backoff=0.5)
    assert rule.decide(queue(9), NOW) == Dispatch(1)
    rule.on_run(1, 0.01, NOW)
    rule.on_run(3, 0.01, NOW)
    assert rule.decide(queue(9), NOW) == Dispatch(5)
    assert rule.decide(queue(2), NOW) == Dispatch(2)
    rule.on_run(5, 0.2, NOW)
    assert rule.limit == 2
    for _ in range(9):
        rule.on_run(10, 0.01, NOW)
    assert rule.limit == 10
    for _ in range(9):
        rule.on_run(10, 1.0, NOW)
    assert rule.limit == 1


def test_aimd_learns_nothing_upward_from_a_part_filled_run() -> None:
    rule = Aimd(FUNCTION)
    rule.on_run(1, 0.01, NOW)
    rule.on_run(1, 0.01, NOW)
    assert rule.limit == 2


def test_aimd_has_an_objective_of_its_own() -> None:
    rule = Aimd(NO_SLO)
    assert rule.slo_s == 0.1


def test_rules_learn_run_times() -> None:
    rule = Dynamic(FUNCTION)
    assert rule.expected_run_s(4) is None
    rule.on_run(4, 0.02, NOW)
    rule.on_run(4, 99.0, NOW + 1e-6)  # so soon after the last that it is not looked at
    assert rule.expected_run_s(4) == pytest.approx(0.02)


# ---------------------------------------------------------------- slo


def busy(mode: str, gap_s: float, run_s: float = 0.01, slack_s: float = 0.005) -> Slo:
    """A rule that has seen arrivals every `gap_s` until NOW, and runs of `run_s` whatever their size."""
    rule = Slo(FUNCTION, mode=mode, slack_s=slack_s)
    for i in range(100):
        rule.on_arrival(NOW - (99 - i) * gap_s)
        rule.on_run(1 + i % 4, run_s, NOW - 50.0 + i * 0.01)
    return rule


def test_slo_latency_sends_before_it_knows_anything() -> None:
    assert Slo(FUNCTION, max_size=8).decide(queue(20), NOW) == Dispatch(8)
    assert Slo(FUNCTION, max_size=8).decide(queue(3), NOW) == Dispatch(3)


def test_slo_latency_waits_only_if_joining_saves_more_than_it_costs() -> None:
    assert busy("latency", gap_s=1 / 12).decide(queue(1), NOW) == Dispatch(1)
    crowd = busy("latency", gap_s=0.002, run_s=0.05)
    answer = crowd.decide(queue(1), NOW)
    assert isinstance(answer, Wait) and answer.until_s is not None
    assert 0.004 <= answer.until_s - NOW < 0.006  # two gaps
    assert crowd.decide(queue(40), NOW) == Dispatch(40)


def test_slo_cost_holds_until_the_deadline_less_run_time_and_margin() -> None:
    answer = busy("cost", gap_s=1 / 12).decide(queue(1, age_s=0.02), NOW)
    assert isinstance(answer, Wait) and answer.until_s is not None
    assert NOW + 0.2 - 0.02 - 0.06 < answer.until_s < NOW + 0.2 - 0.02 - 0.03 - 0.009


def test_slo_cost_keeps_the_slack_it_is_told() -> None:
    wide = busy("cost", gap_s=0.02, slack_s=0.15).decide(queue(1), NOW)
    assert isinstance(wide, Wait) and wide.until_s is not None
    assert wide.until_s < NOW + 0.04


def test_slo_cost_leaves_when_full() -> None:
    rule = busy("cost", gap_s=1 / 12)
    assert isinstance(rule.decide(queue(1), NOW), Wait)
    assert rule.decide(queue(3), NOW) == Dispatch(3)  # a fourth would come 250 ms after the first
    assert busy("cost", gap_s=1e-4).decide(queue(64), NOW) == Dispatch(64)


def test_slo_cost_ends_a_hold_when_arrivals_stay_away() -> None:
    rule = busy("cost", gap_s=0.005)
    answer = rule.decide(queue(1), NOW)
    assert isinstance(answer, Wait) and answer.until_s is not None
    assert answer.until_s < NOW + 0.02
    assert rule.decide([Request("f", NOW, math.inf)], answer.until_s) == Dispatch(1)


def test_slo_cost_does_not_hold_when_nobody_is_expected() -> None:
    assert busy("cost", gap_s=10.0).decide(queue(1), NOW) == Dispatch(1)
    first = Slo(FUNCTION, mode="cost")
    first.on_arrival(NOW)
    assert first.decide(queue(1), NOW) == Dispatch(1)


def test_slo_cost_has_a_prior_for_the_run_time() -> None:
    rule = Slo(FUNCTION, mode="cost")
    for i in range(100):
        rule.on_arrival(NOW - (99 - i) * 0.05)
    answer = rule.decide(queue(1), NOW)
    assert isinstance(answer, Wait) and answer.until_s is not None
    assert answer.until_s - NOW == pytest.approx(0.15, rel=0.05)  # three gaps


@pytest.mark.parametrize("mode", ["latency", "cost"])
def test_slo_never_holds_what_is_late(mode: str) -> None:
    rule = busy(mode, gap_s=0.002, run_s=0.05)
    assert isinstance(rule.decide(queue(3, age_s=0.3), NOW), Dispatch)
    assert isinstance(rule.decide(queue(3, deadline_s=NOW + 0.05), NOW), Dispatch)


def test_slo_sends_no_more_than_the_oldest_can_wait_for() -> None:
    rule = Slo(FUNCTION)
    for i in range(200):
        size = 1 + i % 8
        rule.on_run(size, 0.01 * size, NOW + i)
    fresh, old = rule.decide(queue(64), NOW), rule.decide(queue(64, age_s=0.1), NOW)
    assert isinstance(fresh, Dispatch) and isinstance(old, Dispatch)
    assert 17 <= fresh.size <= 20
    assert 8 <= old.size <= 10


def test_slo_drains_when_the_objective_is_out_of_reach() -> None:
    rule = Slo(FUNCTION)
    for i in range(200):
        size = 1 + i % 8
        rule.on_run(size, 0.3 + 0.01 * size, NOW + i)
    answer = rule.decide(queue(64), NOW)
    assert isinstance(answer, Dispatch)
    assert 20 <= answer.size <= 40  # at most twice as long as a lone call


def test_slo_margin_grows_with_what_timers_lose() -> None:
    rule = busy("cost", gap_s=1 / 12)
    before = rule.decide(queue(1), NOW)
    assert isinstance(before, Wait) and before.until_s is not None
    late_s = before.until_s + 0.02
    assert rule.decide([Request("f", NOW, math.inf)], late_s) == Dispatch(1)
    rule.on_run(1, 0.01, late_s + 0.01)
    again = rule.decide(queue(1), NOW)
    assert isinstance(again, Wait) and again.until_s is not None
    assert before.until_s - again.until_s == pytest.approx(0.02, abs=0.003)


# ---------------------------------------------------------------- what they refuse


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "8", SIZE_LIMIT + 1, None])
def test_sizes_are_whole_and_positive(size: object) -> None:
    for make, word in ((Static, "size"), (Dynamic, "max_size"), (Aimd, "max_size"), (Slo, "max_size")):
        with pytest.raises(BadDefinition, match=f"^{word} must be a whole number from 1 to {SIZE_LIMIT}"):
            make(FUNCTION, **{word: size})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "params", "says"),
    [
        (Dynamic, {"max_wait_s": -1.0}, "max_wait_s must be 0 or more"),
        (Dynamic, {"max_wait_s": math.inf}, "max_wait_s must be 0 or more"),
        (Dynamic, {"max_wait_s": "soon"}, "max_wait_s must be 0 or more"),
        (Aimd, {"step": 0}, "step must be more than 0"),
        (Aimd, {"step": 65}, "at most max_size"),
        (Aimd, {"backoff": 1.0}, "backoff must lie between 0 and 1"),
        (Aimd, {"backoff": "x"}, "backoff must lie between 0 and 1"),
        (Slo, {"mode": "cheap"}, "mode must be one of latency, cost"),
        (Slo, {"slack_s": 0.2}, "slack_s must be from 0 to less than the slo"),
        (Slo, {"slack_s": -0.1}, "slack_s must be from 0"),
    ],
)
def test_bad_parameters(make: type, params: dict[str, object], says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        make(FUNCTION, **params)


def test_slo_needs_an_objective() -> None:
    with pytest.raises(BadDefinition, match='add slo="200ms"'):
        Slo(NO_SLO)
