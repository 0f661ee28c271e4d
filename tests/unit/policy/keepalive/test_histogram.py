"""`histogram`: percentiles, representativeness, and the forecast beyond its span."""

from __future__ import annotations

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, LayerView
from rewarm.policy.keepalive.histogram import Histogram, forecast

KEY = LangKey()
MIN = 60.0


def ask(rule: Histogram, since_s: float, now: float, uses: int = 1, startup_s: float = 1.0) -> KeepaliveDecision:
    return rule.on_idle(LayerView(Layer.USER, "a", KEY, startup_s, 1 << 20, since_s, since_s, uses), now)


def lived(rule: Histogram, idle_times_s: list[float]) -> float:
    """The function idled so long each time; returns the end of its last run, at which it has not been asked yet."""
    now = 1000.0
    for idle_s in idle_times_s:
        rule.on_arrival("a", KEY, now)
        now += 1.0
        ask(rule, now, now)
        now += idle_s
    rule.on_arrival("a", KEY, now)
    return now + 1.0


def test_keeps_for_the_span_while_there_are_few_idle_times() -> None:
    rule = Histogram()
    now = lived(rule, [10 * MIN] * 4)
    assert ask(rule, now, now) == Keep(240 * MIN)
    assert ask(rule, now, now + 240 * MIN) == Drop()


def test_an_instance_that_nobody_has_asked_for_is_kept_for_the_span() -> None:
    assert ask(Histogram(), 50.0, 50.0, uses=0) == Keep(240 * MIN)


def test_regular_gaps_unload_and_come_back_before_the_head() -> None:
    rule = Histogram()
    now = lived(rule, [30 * MIN + 20.0] * 5)  # bin 30: its head at 30 min, its tail at 31
    answer = ask(rule, now, now, startup_s=2.0)
    assert isinstance(answer, Drop) and answer.prewarm_after_s == pytest.approx(0.9 * 30 * MIN - 2.0)
    ready_s = now + 0.9 * 30 * MIN
    held = ask(rule, ready_s, ready_s, uses=0)
    assert isinstance(held, Keep) and held.for_s == pytest.approx((1.1 * 31 - 0.9 * 30) * MIN)
    assert ask(rule, ready_s, ready_s + held.for_s, uses=0) == Drop()


def test_percentiles_leave_the_outliers_out() -> None:
    rule = Histogram()
    now = lived(rule, [90.0 * MIN] + [5 * MIN] * 198 + [200 * MIN])
    answer = ask(rule, now, now)
    assert isinstance(answer, Drop) and answer.prewarm_after_s == pytest.approx(0.9 * 5 * MIN - 1.0)
    back_s = now + 0.9 * 5 * MIN
    held = ask(rule, back_s, back_s, uses=0)
    assert isinstance(held, Keep) and held.for_s == pytest.approx((1.1 * 6 - 0.9 * 5) * MIN)


def test_gaps_below_a_minute_are_held_from_the_start() -> None:
    rule = Histogram()
    now = lived(rule, [20.0] * 10)
    assert ask(rule, now, now) == Keep(pytest.approx(1.1 * MIN))


def test_spread_out_gaps_say_nothing() -> None:
    rule = Histogram()
    now = lived(rule, [k * MIN for k in range(240)])  # every bin once: coefficient of variation 0
    assert ask(rule, now, now) == Keep(240 * MIN)


@pytest.mark.parametrize(("bins", "answer"), [(47, Drop), (48, Drop), (49, Keep)])
def test_the_coefficient_of_variation_decides(bins: int, answer: type) -> None:
    """k of 240 bins alike have a coefficient of variation of sqrt(240 / k - 1): 2 at k = 48, which still counts."""
    rule = Histogram()
    now = lived(rule, [(2 + k) * MIN for k in range(bins)])
    decision = ask(rule, now, now)
    if answer is Keep:
        assert decision == Keep(240 * MIN)
    else:
        assert isinstance(decision, Drop) and decision.prewarm_after_s is not None


def test_a_request_while_it_runs_is_an_idle_time_of_nothing() -> None:
    rule = Histogram()
    for at_s in range(10):
        rule.on_arrival("a", KEY, float(at_s))
    assert ask(rule, 20.0, 20.0) == Keep(pytest.approx(1.1 * MIN))


def test_long_gaps_are_forecast() -> None:
    rule, plain = Histogram(), Histogram(forecast="false")
    now = lived(rule, [6 * 3600.0] * 6)
    assert lived(plain, [6 * 3600.0] * 6) == now
    answer = ask(rule, now, now)
    assert isinstance(answer, Drop) and answer.prewarm_after_s == pytest.approx(0.85 * 6 * 3600.0 - 1.0)
    back_s = now + 0.85 * 6 * 3600.0
    assert ask(rule, back_s, back_s, uses=0) == Keep(pytest.approx(0.3 * 6 * 3600.0))
    assert ask(plain, now, now) == Keep(240 * MIN)


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([7.0], 7.0),
        ([5.0] * 8, 5.0),
        ([10.0, 20.0, 30.0, 40.0, 50.0, 60.0], 70.0),  # a trend: differences of 10
        ([100.0, 300.0] * 8, 100.0),  # it alternates: a negative slope
    ],
)
def test_forecast(series: list[float], expected: float) -> None:
    assert forecast(series) == pytest.approx(expected, rel=0.03)


def test_what_is_below_an_instance_goes_with_it() -> None:
    for layer in (Layer.LANG, Layer.BARE):
        assert Histogram().on_idle(LayerView(layer, None, KEY, 1.0, 1, 0.0, 0.0, 1), 0.0) == Drop()


@pytest.mark.parametrize("span_s", [0.0, 60.0, 1e9, -1.0])
def test_bad_span(span_s: float) -> None:
    with pytest.raises(BadDefinition, match="span_s must be"):
        Histogram(span_s)
