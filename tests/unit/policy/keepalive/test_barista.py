"""`barista`: how many instances a forecast rate needs, and when they are started."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.barista import Barista, SlotForecast
from rewarm.policy.keepalive.base import Drop, Keep, LayerView, Prewarm

KEY = LangKey()
SPEC = FunctionSpec("a", "handler", "app:f", slo_s=1.0)


def idle(since_s: float, others: int = 0, startup_s: float = 2.0) -> LayerView:
    return LayerView(Layer.USER, "a", KEY, startup_s, 1 << 20, since_s, since_s, 1, others)


def steady(rule: Barista, per_slot: int, slots: int, run_s: float) -> list[Prewarm | None]:
    """`per_slot` requests in each slot of 60 s from 0 on, evenly spread."""
    answers = []
    for k in range(per_slot * slots):
        answers.append(rule.on_arrival("a", KEY, k * 60.0 / per_slot))
        rule.on_run(SPEC, 1, run_s, k * 60.0 / per_slot)
    return answers


def add(forecast: SlotForecast, counts: np.ndarray) -> None:
    for count in counts:
        forecast.add([float(count)])


@pytest.mark.parametrize(
    ("per_slot", "run_s", "instances"),
    [
        (600, 0.3, 4),  # 10/s; an instance serves floor(1 / 0.3) = 3 within the second: ceil(10 / 3)
        (120, 0.1, 1),
        (240, 2.0, 4),  # slower than its objective: one request a second and instance
    ],
)
def test_instances_are_rate_over_what_one_serves(per_slot: int, run_s: float, instances: int) -> None:
    rule = Barista(slot_s=60)
    answers = [a for a in steady(rule, per_slot - 3, 10, run_s) if a is not None]  # - 3: no case on the edge of a ceil
    assert len(answers) == 9, "once a slot"
    assert answers[-1].instances == instances


def test_they_start_ahead_by_what_a_start_takes() -> None:
    rule = Barista(slot_s=60)
    steady(rule, 10, 5, 0.1)
    rule.on_idle(LayerView(Layer.LANG, None, KEY, 5.0, 1 << 20, 299.0, 299.0, 1), 299.0)
    rule.on_idle(idle(299.0), 299.0)
    answer = rule.on_arrival("a", KEY, 310.0)
    assert answer is not None and answer.after_s == pytest.approx(360.0 - 310.0 - 2.0 - 5.0)


def test_what_the_slots_need_is_kept_and_the_rest_dropped() -> None:
    rule = Barista(slot_s=60)
    assert rule.on_idle(idle(1.0), 1.0) == Keep(59.0), "nothing is known yet"
    steady(rule, 597, 5, 0.3)
    assert rule.on_idle(idle(301.0, others=3), 301.0) == Keep(pytest.approx(59.0))
    assert rule.on_idle(idle(301.0, others=4), 301.0) == Drop()


def test_a_function_that_went_quiet_is_dropped() -> None:
    rule = Barista(slot_s=60)
    steady(rule, 10, 5, 0.1)
    now, asked = 301.0, 0
    while isinstance(answer := rule.on_idle(idle(301.0), now), Keep):
        assert answer.for_s is not None
        now, asked = now + answer.for_s, asked + 1
        assert asked < 500, "a third of a day without a request"
    assert now > 301.0


def test_forecast_follows_level_and_trend() -> None:
    forecast = SlotForecast(1440, 0)
    assert forecast.ahead(3).tolist() == [0.0, 0.0, 0.0]
    add(forecast, np.full(300, 20.0))
    assert forecast.ahead(5) == pytest.approx([20.0] * 5, rel=0.02)
    rising = SlotForecast(1440, 0)
    add(rising, 0.1 * np.arange(400))
    assert rising.ahead(1)[0] == pytest.approx(40.0, rel=0.05)


def test_forecast_follows_the_hour() -> None:
    forecast = SlotForecast(1440, 0)
    wave = 50.0 + 40.0 * np.sin(2 * math.pi * np.arange(1440) / 60)
    add(forecast, wave[:1200])
    assert np.abs(forecast.ahead(60) - wave[1200:1260]).max() < 6.0


def test_the_corrector_carries_a_persistent_error_on() -> None:
    forecast = SlotForecast(1440, 0)
    add(forecast, np.full(300, 10.0))
    add(forecast, np.full(6, 40.0))
    uncorrected = 10.0 + 6 * 0.002 * 30.0 * 3  # what the fit alone could have learnt by now, generously
    assert forecast.ahead(1)[0] > uncorrected + 10.0


def test_empty_slots_count_one_by_one_or_at_once() -> None:
    one, all_at_once = SlotForecast(288, 7), SlotForecast(288, 7)
    counts = [5.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0]
    for count in counts:
        one.add([count])
    all_at_once.add(counts)
    assert one.next_slot == all_at_once.next_slot == 14
    assert one._fit == pytest.approx(all_at_once._fit)


@pytest.mark.parametrize("slot_s", [0.5, 7.0, 7200.0, -1.0])
def test_bad_slots(slot_s: float) -> None:
    with pytest.raises(BadDefinition, match="slot_s must be"):
        Barista(slot_s)
