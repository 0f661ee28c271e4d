"""`none` and `fixed`: windows per layer, and who goes first when memory is short."""

from __future__ import annotations

import math

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.base import Drop, Keep, KeepalivePolicy, LayerView
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.none import NoKeepalive

SINCE = 1_234_567.8


def view(layer: Layer = Layer.USER, startup_s: float = 1.0, size: int = 100 << 20, used: float = SINCE) -> LayerView:
    return LayerView(layer, "f", LangKey(), startup_s, size, SINCE, used, 1)


@pytest.mark.parametrize("layer", list(Layer))
def test_none_drops_everything_but_what_is_on_disk(layer: Layer) -> None:
    rule = NoKeepalive()
    assert rule.on_idle(view(layer), SINCE) == (Keep(None) if layer is Layer.ASLEEP else Drop())
    assert NoKeepalive(asleep="false").on_idle(view(layer), SINCE) == Drop()
    assert rule.on_arrival("f", LangKey(), SINCE) is None


@pytest.mark.parametrize(
    ("rule", "layer", "ttl_s"),
    [
        (FixedKeepalive(), Layer.MODEL, 600.0),
        (FixedKeepalive(), Layer.USER, 600.0),
        (FixedKeepalive(), Layer.LANG, 600.0),
        (FixedKeepalive(), Layer.BARE, 60.0),
        (FixedKeepalive(ttl_s=5), Layer.USER, 5.0),
        (FixedKeepalive(ttl_s=5), Layer.LANG, 5.0),
        (FixedKeepalive(ttl_s=5), Layer.BARE, 60.0),
        (FixedKeepalive(ttl_s=5, lang_s=7), Layer.LANG, 7.0),
        (FixedKeepalive(user_s=0.1, lang_s=3, bare_s=2), Layer.USER, 0.1),
        (FixedKeepalive(user_s=0.1, lang_s=3, bare_s=2), Layer.BARE, 2.0),
    ],
)
def test_fixed_keeps_for_its_window_then_drops(rule: FixedKeepalive, layer: Layer, ttl_s: float) -> None:
    assert rule.on_idle(view(layer), SINCE) == Keep(ttl_s)
    assert rule.on_idle(view(layer), SINCE + ttl_s) == Drop()
    assert rule.on_idle(view(layer), SINCE + ttl_s + 100) == Drop()
    assert rule.on_arrival("f", LangKey(), SINCE) is None


def test_fixed_asked_early_gives_the_rest() -> None:
    answer = FixedKeepalive(ttl_s=10).on_idle(view(), SINCE + 4)
    assert isinstance(answer, Keep)
    assert answer.for_s == pytest.approx(6.0)


def test_zero_drops_at_once() -> None:
    assert FixedKeepalive(ttl_s=0).on_idle(view(), SINCE) == Drop()


@pytest.mark.parametrize("word", ["ttl_s", "user_s", "lang_s", "bare_s"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan, True, "long"])
def test_fixed_refuses_what_is_no_duration(word: str, value: object) -> None:
    with pytest.raises(BadDefinition, match=f"^{word} must be 0 or more seconds"):
        FixedKeepalive(**{word: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [NoKeepalive(), FixedKeepalive()])
def test_priority_is_worth_per_byte_then_recency(rule: KeepalivePolicy) -> None:
    now = SINCE + 50
    worth = rule.priority(view(startup_s=2.0, size=100), now)
    assert worth == pytest.approx(0.02)
    assert rule.priority(view(startup_s=2.0, size=200), now) < worth < rule.priority(view(startup_s=3.0, size=100), now)
    unknown = [rule.priority(view(startup_s=0.0, size=0, used=used), now) for used in (SINCE - 9, SINCE, now)]
    assert unknown == sorted(unknown) and len(set(unknown)) == 3
    assert unknown[-1] < rule.priority(view(startup_s=1e-6, size=1 << 34), now)


def test_fixed_may_let_the_least_recently_used_go_first() -> None:
    rule, now = FixedKeepalive(ttl_s=9, evict="lru"), SINCE + 50
    dear, cheap = view(startup_s=9.0, size=100, used=SINCE), view(startup_s=0.1, size=100, used=SINCE + 1)
    assert rule.priority(dear, now) < rule.priority(cheap, now)
    assert FixedKeepalive(ttl_s=9).priority(dear, now) > FixedKeepalive(ttl_s=9).priority(cheap, now)
    assert rule.on_idle(view(), SINCE) == Keep(9.0)


@pytest.mark.parametrize("word", ["LRU", "", 1])
def test_fixed_refuses_another_order(word: object) -> None:
    with pytest.raises(BadDefinition, match="evict must be worth or lru"):
        FixedKeepalive(evict=word)  # type: ignore[arg-type]
