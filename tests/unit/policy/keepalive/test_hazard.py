"""`hazard`: what it learns from gaps, when it holds, drops and comes back, and how memory pressure moves its price."""

from __future__ import annotations

import random

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, LayerView, Prewarm
from rewarm.policy.keepalive.hazard import Hazard

KEY = LangKey()
MB = 1 << 20


def view(
    function: str, since_s: float, uses: int = 1, startup_s: float = 1.0, mb: int = 10, others: int = 0
) -> LayerView:
    return LayerView(Layer.USER, function, KEY, startup_s, mb * MB, since_s, since_s, uses, others)


def lived(rule: Hazard, function: str, gaps_s: list[float], now: float = 1000.0) -> float:
    """One instance idled so long each time; returns the end of its last run, at which it has not been asked."""
    for gap_s in gaps_s:
        rule.on_idle(view(function, now), now)
        now += gap_s
        rule.on_arrival(function, KEY, now)
    return now


def keep_s(answer: KeepaliveDecision) -> float:
    assert isinstance(answer, Keep) and answer.for_s is not None
    return answer.for_s


def dropped(rule: Hazard, layer: LayerView) -> tuple[float, Drop]:
    """When an instance that nobody asks for is dropped, and how."""
    now = layer.idle_since_s
    while isinstance(answer := rule.on_idle(layer, now), Keep):
        now += keep_s(answer)
    return now, answer


def test_short_gaps_are_held_through() -> None:
    rule = Hazard(price=1e-4)
    now = lived(rule, "a", [20.0] * 20)
    dropped_s, _ = dropped(rule, view("a", now))
    assert now + 20.0 < dropped_s < now + 200.0


def test_a_dear_price_drops_at_once() -> None:
    rule = Hazard(price=1.0)
    now = lived(rule, "a", [20.0] * 20)
    answer = rule.on_idle(view("a", now), now)
    assert isinstance(answer, Drop) and answer.prewarm_after_s is None


def test_regular_long_gaps_are_bridged_by_raising_again_in_time() -> None:
    rule = Hazard()
    rng = random.Random(1)
    now = lived(rule, "a", [3600.0 + rng.uniform(-20, 20) for _ in range(12)])
    dropped_s, answer = dropped(rule, view("a", now))
    assert dropped_s < now + 60.0 and answer.prewarm_after_s is not None
    ready_s = dropped_s + answer.prewarm_after_s + 1.0
    assert now + 2400.0 < ready_s < now + 3580.0
    dropped_again_s, _ = dropped(rule, view("a", ready_s, uses=0))
    assert now + 3620.0 < dropped_again_s < now + 5400.0, "until the request is there, and not much longer"


def test_the_layer_below_is_raised_in_time_too() -> None:
    plain, layered = Hazard(), Hazard()
    layered.on_idle(LayerView(Layer.LANG, None, KEY, 7.0, 30 * MB, 5.0, 5.0, 1), 5.0)
    ahead_s = []
    for rule in (plain, layered):
        now = lived(rule, "a", [3600.0] * 12)
        _, answer = dropped(rule, view("a", now))
        assert answer.prewarm_after_s is not None
        ahead_s.append(answer.prewarm_after_s)
    assert ahead_s[0] - ahead_s[1] == pytest.approx(7.0)


def test_newcomers_are_judged_by_all_others() -> None:
    short, long = Hazard(price=1e-4), Hazard(price=1e-4)
    for rule, gap_s in ((short, 10.0), (long, 40_000.0)):
        for k in range(30):
            lived(rule, f"f{k}", [gap_s] * 5)
    assert keep_s(short.on_idle(view("new", 5e6), 5e6)) > 5.0
    answer = long.on_idle(view("new", 5e6), 5e6)
    assert isinstance(answer, Drop)


def test_holding_time_falls_with_price_and_size() -> None:
    rng = random.Random(2)
    gaps_s = [rng.expovariate(1 / 100.0) if rng.random() < 0.8 else 5000.0 for _ in range(300)]

    def held(price: float, mb: int) -> float:
        rule = Hazard(price)
        now = lived(rule, "a", gaps_s)
        answer = rule.on_idle(view("a", now, mb=mb), now)
        return keep_s(answer) if isinstance(answer, Keep) else 0.0

    by_price = [held(price, 100) for price in (1e-6, 1e-5, 1e-4, 1e-3)]
    assert by_price == sorted(by_price, reverse=True) and by_price[0] > by_price[-1]
    assert held(1e-5, 1000) == pytest.approx(held(1e-4, 100))


def test_a_changed_measurement_changes_the_plan_at_once() -> None:
    rule = Hazard(price=1e-4)
    now = lived(rule, "a", [300.0] * 40)
    assert isinstance(rule.on_idle(view("a", now, startup_s=8.0), now), Keep)
    assert isinstance(rule.on_idle(view("a", now, startup_s=0.001), now + 0.1), Drop)


def test_what_nobody_measured_is_kept_ten_minutes() -> None:
    rule = Hazard()
    assert rule.on_idle(view("a", 5.0, startup_s=0.0), 5.0) == Keep(600.0)
    assert rule.on_idle(view("a", 5.0, mb=0), 605.0) == Drop()


def test_several_instances_are_used_latest_first() -> None:
    """Two instances idle, the upper one is used each minute: the lower one's gap goes on, and is told from it."""
    rule = Hazard()
    rule.on_idle(view("a", 0.0), 0.0)
    for minute in range(60):
        rule.on_idle(view("a", 60.0 * minute + 1.0, others=1), 60.0 * minute + 1.0)
        rule.on_arrival("a", KEY, 60.0 * (minute + 1))
    assert isinstance(rule.on_idle(view("a", 3600.0), 3600.0), Keep), "59 seconds is what it expects"
    assert isinstance(rule.on_idle(view("a", 0.0, others=1), 3601.0), Drop), "an hour is not"


def test_lang_layers_learn_from_all_functions_of_the_key() -> None:
    rule = Hazard(price=1e-4)
    lang = [LayerView(Layer.LANG, None, KEY, 0.5, 20 * MB, at_s, at_s, 1) for at_s in (0.0, 50.0, 100.0, 150.0)]
    for layer, function in zip(lang, "abcd", strict=True):
        rule.on_idle(layer, layer.idle_since_s)
        rule.on_arrival(function, KEY, layer.idle_since_s + 30.0)
    last = LayerView(Layer.LANG, None, KEY, 0.5, 20 * MB, 200.0, 200.0, 1)
    assert keep_s(rule.on_idle(last, 200.0)) > 30.0
    never = LayerView(Layer.LANG, None, KEY, 0.5, 2000 * MB, 300.0, 300.0, 1)
    dropped = rule.on_idle(never, 300.0)
    assert dropped == Drop(), "only functions are raised again ahead"


def test_priority_is_what_is_expected_to_be_saved() -> None:
    rule = Hazard()
    often, seldom = lived(rule, "often", [10.0] * 20), lived(rule, "seldom", [9000.0] * 20)
    now = max(often, seldom)
    assert rule.priority(view("often", now), now) > rule.priority(view("seldom", now), now) > 0.0
    assert rule.priority(view("often", now, startup_s=2.0), now) > rule.priority(view("often", now), now)
    assert rule.priority(view("often", now, mb=200), now) < rule.priority(view("often", now), now)
    assert rule.priority(view("often", now), now + 3000.0) < rule.priority(view("often", now), now), "overdue"


def test_pressure_raises_the_price_and_fades() -> None:
    rule = Hazard(price=1e-4)
    assert rule.price_at(0.0) == 1e-4
    rule.on_gone(view("a", 0.0), False, 10.0)
    assert rule.price_at(10.0) == 1e-4, "a window that was over is no pressure"
    for _ in range(20):
        rule.on_gone(view("a", 0.0), True, 20.0)
    raised = rule.price_at(20.0)
    assert raised == pytest.approx(1e-4 * 2.718281828, rel=1e-6)
    assert raised > rule.price_at(600.0) > rule.price_at(6000.0) == pytest.approx(1e-4, rel=1e-3)
    for _ in range(100_000):
        rule.on_gone(view("a", 0.0), True, 20.0)
    assert rule.price_at(20.0) < 0.2, "bounded"


def test_memory_of_a_function_is_bounded() -> None:
    rule = Hazard()
    for second in range(1000):
        rule.on_idle(view("a", float(second)), float(second))
    book = rule._tiers[Layer.USER].books["a"]
    assert len(book.open_s) == 64 and book.open_s[-1] == 999.0


# ---------------------------------------------------------------- the first call


def deploy(rule: Hazard, function: str, now: float) -> Prewarm | None:
    return rule.on_deployed(view(function, now, uses=0, startup_s=0.1, mb=32), now)


def test_a_new_function_is_raised_where_memory_is_cheap() -> None:
    assert deploy(Hazard(price=1e-6), "a", 50.0) == Prewarm(0.0)
    assert deploy(Hazard(price=1e-3), "a", 50.0) is None


def test_many_new_functions_are_raised_one_after_the_other() -> None:
    rule = Hazard(price=1e-6)
    answers = [deploy(rule, f"f{k}", 50.0) for k in range(5)]
    assert [answer.after_s for answer in answers if answer] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert deploy(rule, "later", 90.0) == Prewarm(0.0)


def test_it_is_held_while_the_first_call_is_worth_waiting_for() -> None:
    held_s = []
    for price in (1e-7, 1e-5, 1e-3, 1e-1):
        rule = Hazard(price)
        deploy(rule, "a", 50.0)
        until_s, answer = dropped(rule, view("a", 51.0, uses=0))
        assert answer == Drop()
        held_s.append(until_s - 51.0)
    assert held_s == sorted(held_s, reverse=True)
    assert held_s[0] > 3600.0 > held_s[1] > held_s[2] > 0.0 == held_s[3]


def test_first_calls_of_others_are_a_lesson() -> None:
    soon, late = Hazard(price=5e-5), Hazard(price=5e-5)
    for rule, wait_s in ((soon, 3.0), (late, 40_000.0)):
        for k in range(40):
            deploy(rule, f"f{k}", 0.0)
        for k in range(40):
            rule.on_arrival(f"f{k}", KEY, wait_s)
    assert deploy(soon, "new", 50_000.0) is not None
    assert deploy(late, "new", 50_000.0) is None


def test_after_the_first_call_gaps_count() -> None:
    rule = Hazard(price=1e-4)
    deploy(rule, "a", 0.0)
    assert isinstance(rule.on_idle(view("a", 5_000.0, uses=0), 5_000.0), Drop), "too late to hope"
    now = lived(rule, "a", [20.0] * 20, now=5_100.0)
    assert isinstance(rule.on_idle(view("a", now), now), Keep)


def test_a_function_without_calls_is_worth_less_than_one_that_is_called() -> None:
    rule = Hazard()
    now = lived(rule, "often", [10.0] * 20)
    deploy(rule, "new", now)
    assert 0.0 < rule.priority(view("new", now, uses=0), now) < rule.priority(view("often", now), now)
    assert rule.priority(view("new", now, uses=0), now + 3000.0) < rule.priority(view("new", now, uses=0), now)


@pytest.mark.parametrize("price", [0, -1.0, float("inf"), float("nan"), True, "cheap"])
def test_bad_price(price: float) -> None:
    with pytest.raises(BadDefinition, match="price must be more than 0"):
        Hazard(price)
