"""`rainbowcake`: windows, quantiles, floors, and what its variants leave out."""

from __future__ import annotations

import math

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.base import Drop, Keep, LayerView, Prewarm
from rewarm.policy.keepalive.rainbowcake import RainbowCake

KEY, OTHER_KEY = LangKey(), LangKey(("numpy",))
MB = 1 << 20
Q80 = -math.log(0.2)
EVER = 1 - 1e-9  # alpha: memory costs nothing, so that the rate alone decides


def view(layer: Layer, function: str | None = None, since_s: float = 0.0, key: LangKey = KEY) -> LayerView:
    return LayerView(layer, function, key, 1.0, 10 * MB, since_s, since_s, 1)


def ttl_s(rule: RainbowCake, layer: LayerView) -> float | None:
    answer = rule.on_idle(layer, layer.idle_since_s)
    return answer.for_s if isinstance(answer, Keep) else 0.0


def test_windows_of_function_key_and_all() -> None:
    rule = RainbowCake(alpha=EVER, floor_s=0)
    for at_s, function, key in ((0.0, "a", KEY), (30.0, "b", KEY), (50.0, "c", OTHER_KEY), (100.0, "a", KEY)):
        rule.on_arrival(function, key, at_s)
    assert ttl_s(rule, view(Layer.USER, "a", 110.0)) == pytest.approx(Q80 * 110.0 / 2)
    assert ttl_s(rule, view(Layer.LANG, None, 110.0)) == pytest.approx(Q80 * 110.0 / 3)
    assert ttl_s(rule, view(Layer.LANG, None, 110.0, OTHER_KEY)) == pytest.approx(Q80 * 60.0)
    assert ttl_s(rule, view(Layer.BARE, None, 110.0)) == pytest.approx(Q80 * 110.0 / 4)


def test_a_window_holds_n_arrivals_of_a_day() -> None:
    rule = RainbowCake(alpha=EVER, floor_s=0, n=3)
    for at_s in (0.0, 100.0, 200.0, 300.0):
        rule.on_arrival("a", KEY, at_s)
    assert ttl_s(rule, view(Layer.USER, "a", 400.0)) == pytest.approx(Q80 * 300.0 / 3)
    assert ttl_s(rule, view(Layer.USER, "a", 86_650.0)) == pytest.approx(Q80 * 86_350.0 / 1)


def test_the_break_even_time_bounds_the_quantile() -> None:
    rule = RainbowCake(alpha=0.996, floor_s=0)
    rule.on_arrival("a", KEY, 0.0)
    assert ttl_s(rule, view(Layer.USER, "a", 10.0)) == pytest.approx(Q80 * 10.0)
    assert ttl_s(rule, view(Layer.USER, "a", 1000.0)) == pytest.approx(249.0 * 1.0 / 10.0)


def test_the_floor_is_tested_first_as_in_the_published_code() -> None:
    rule = RainbowCake()
    rule.on_arrival("a", KEY, 0.0)
    assert ttl_s(rule, view(Layer.USER, "a", 37.0)) == 60.0, "1.609 * 37 s is below the floor"
    assert ttl_s(rule, view(Layer.USER, "a", 38.0)) == pytest.approx(24.9), "above it the break-even time holds"


def test_without_arrivals_or_measurements_the_bound_holds() -> None:
    rule = RainbowCake()
    assert ttl_s(rule, view(Layer.USER, "never")) == pytest.approx(24.9)
    unknown = LayerView(Layer.LANG, None, KEY, 0.0, 0, 5.0, 5.0, 0)
    assert ttl_s(rule, unknown) == 600.0
    rule.on_arrival("a", KEY, 0.0)
    assert ttl_s(rule, view(Layer.USER, "a", 90_000.0)) == pytest.approx(24.9), "more than a day ago"


def test_a_window_is_set_once() -> None:
    rule = RainbowCake()
    rule.on_arrival("a", KEY, 0.0)
    layer = view(Layer.USER, "a", 10.0)
    assert rule.on_idle(layer, 10.0) == Keep(60.0)
    assert rule.on_idle(layer, 70.0) == Drop()


def test_prewarm_comes_at_the_quantile() -> None:
    rule = RainbowCake(p=0.99)
    assert rule.on_arrival("a", KEY, 0.0) is None, "one arrival is no rate"
    answer = rule.on_arrival("a", KEY, 60.0)
    assert isinstance(answer, Prewarm)
    assert (answer.after_s, answer.instances) == (pytest.approx(-math.log(0.01) * 30.0), 1)
    off = RainbowCake(prewarm=False)
    assert [off.on_arrival("a", KEY, at_s) for at_s in (0.0, 60.0)] == [None, None]


def test_without_layers_everything_ends_with_the_instance() -> None:
    rule = RainbowCake(layers="false")
    rule.on_arrival("a", KEY, 0.0)
    assert rule.on_idle(view(Layer.LANG), 0.0) == rule.on_idle(view(Layer.BARE), 0.0) == Drop()
    assert ttl_s(rule, view(Layer.USER, "a")) == 60.0


def test_without_sharing_lower_layers_follow_their_last_function() -> None:
    rule = RainbowCake(alpha=EVER, floor_s=0, sharing=False)
    for at_s, function, key in ((0.0, "a", KEY), (100.0, "b", KEY), (150.0, "c", OTHER_KEY)):
        rule.on_arrival(function, key, at_s)
    assert ttl_s(rule, view(Layer.LANG, None, 200.0)) == pytest.approx(Q80 * 100.0)
    assert ttl_s(rule, view(Layer.BARE, None, 200.0)) == pytest.approx(Q80 * 50.0)


def test_least_recently_used_goes_first_over_all_layers() -> None:
    rule = RainbowCake()
    assert rule.priority(view(Layer.BARE, None, 1.0), 9.0) < rule.priority(view(Layer.USER, "a", 2.0), 9.0)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"alpha": 1.0}, "alpha must lie between"), ({"p": 0.0}, "p must lie between"),
        ({"floor_s": -1.0}, "floor_s must be 0 or more seconds"), ({"n": 0}, "n must be a whole number from 1"),
        ({"n": 2.5}, "n must be a whole number from 1"), ({"sharing": "yes"}, "sharing must be true or false"),
    ],
)  # fmt: skip
def test_bad_parameters(params: dict[str, object], says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        RainbowCake(**params)  # type: ignore[arg-type]
