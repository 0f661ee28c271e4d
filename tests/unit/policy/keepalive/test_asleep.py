"""What each rule says of what is on disk: snapshots of functions, and the Lang layers of micro-VMs."""

from __future__ import annotations

import math

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey, PolicySpec
from rewarm.facts.sandbox import Layer
from rewarm.policy import registry
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, LayerView, on_disk
from rewarm.policy.keepalive.break_even import BreakEven
from rewarm.policy.keepalive.faascache import FaasCache
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.hazard import Hazard
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.policy.keepalive.rainbowcake import RainbowCake
from rewarm.testing import check_policy

MB = 1 << 20
KEY = LangKey()
VM = LangKey((), vm_bytes=256 * MB)
SINCE_S = 10_000.0


def asleep(since_s: float = SINCE_S, startup_s: float = 1.4, mb: int = 6, uses: int = 1) -> LayerView:
    """A snapshot of 240 MB on disk, which saves 1.4 s."""
    return LayerView(Layer.ASLEEP, "f", VM, startup_s, mb * MB, since_s, since_s, uses)


def user(since_s: float, startup_s: float = 0.15) -> LayerView:
    """The instance over it, which saves what waking takes."""
    return LayerView(Layer.USER, "f", VM, startup_s, 60 * MB, since_s, since_s, 1)


def lang(key: LangKey) -> LayerView:
    return LayerView(Layer.LANG, None, key, 8.0, 4 * MB, SINCE_S, SINCE_S, 1)


def kept_s(answer: KeepaliveDecision) -> float:
    assert isinstance(answer, Keep)
    return math.inf if answer.for_s is None else answer.for_s


def test_what_is_on_disk() -> None:
    assert on_disk(asleep()) and on_disk(lang(VM))
    assert not on_disk(lang(KEY)) and not on_disk(user(0.0))


@pytest.mark.parametrize("name", ["none", "fixed", "lru", "faascache", "histogram", "barista"])
def test_rules_that_say_nothing_of_sleep_keep_it(name: str) -> None:
    rule = registry.keepalive(PolicySpec(name))
    for layer in (asleep(), lang(VM)):
        assert rule.on_idle(layer, SINCE_S) == rule.on_idle(layer, SINCE_S + 1e7) == Keep(None)


@pytest.mark.parametrize("name", ["none", "histogram", "barista"])
def test_rules_without_layers_still_drop_those_in_memory(name: str) -> None:
    assert registry.keepalive(PolicySpec(name)).on_idle(lang(KEY), SINCE_S) == Drop()


def test_none_may_be_asked_otherwise() -> None:
    rule = registry.keepalive(registry.parse("none:asleep=false"))
    assert rule.on_idle(asleep(), SINCE_S) == rule.on_idle(lang(VM), SINCE_S) == Drop()
    with pytest.raises(BadDefinition, match="asleep must be true or false, not 'maybe'"):
        NoKeepalive(asleep="maybe")


def test_fixed_may_be_given_a_time() -> None:
    rule = registry.keepalive(registry.parse("fixed:ttl=1min,asleep=1h"))
    for layer in (asleep(), lang(VM)):
        assert rule.on_idle(layer, SINCE_S) == Keep(3600.0)
        assert rule.on_idle(layer, SINCE_S + 600.0) == Keep(3000.0)
        assert rule.on_idle(layer, SINCE_S + 3600.0) == Drop()
    assert rule.on_idle(lang(KEY), SINCE_S) == Keep(60.0)
    assert FixedKeepalive(asleep_s=0).on_idle(asleep(), SINCE_S) == Drop()
    with pytest.raises(BadDefinition, match="asleep_s must be 0 or more seconds"):
        FixedKeepalive(asleep_s=-1)


def test_break_even_weighs_it_like_any_layer() -> None:
    rule = BreakEven()
    assert kept_s(rule.on_idle(asleep(), SINCE_S)) == pytest.approx(249.0 * 1.4 / 6.0)
    assert kept_s(rule.on_idle(user(SINCE_S), SINCE_S)) == pytest.approx(249.0 * 0.15 / 60.0)
    assert rule.on_idle(asleep(), SINCE_S + 249.0 * 1.4 / 6.0) == Drop()


def test_rainbowcake_gives_it_the_window_of_its_function() -> None:
    rule = RainbowCake(alpha=1 - 1e-9, floor_s=0)
    for at_s, function in ((0.0, "f"), (30.0, "g"), (60.0, "g"), (100.0, "f")):
        rule.on_arrival(function, VM, at_s)
    since_s = 110.0
    expected_s = -math.log(0.2) * since_s / 2
    assert kept_s(rule.on_idle(asleep(since_s), since_s)) == pytest.approx(expected_s)
    assert kept_s(rule.on_idle(user(since_s), since_s)) == pytest.approx(expected_s)
    assert rule.on_idle(asleep(since_s), since_s + expected_s) == Drop()
    assert RainbowCake(layers=False).on_idle(asleep(), SINCE_S) == Drop()
    assert kept_s(RainbowCake().on_idle(asleep(), SINCE_S)) == pytest.approx(249.0 * 1.4 / 6.0), "nothing came yet"


def test_faascache_counts_how_often_it_was_woken() -> None:
    rule = FaasCache()
    rule.on_arrival("f", VM, 1.0)
    assert rule.priority(asleep(uses=0), SINCE_S) == 0.0
    assert rule.priority(asleep(uses=3), SINCE_S) == pytest.approx(3 * 1.4 / 6.0)


def gone_by(rule: Hazard, gap_s: float) -> tuple[float, float]:
    """A function whose requests come up to so far apart: how long its instance and then its snapshot are kept."""
    now = 1000.0
    for number in range(60):
        rule.on_idle(user(now), now)
        rule.on_idle(asleep(now), now)
        now += gap_s * (0.1, 0.4, 0.9, 0.2, 0.7, 1.0)[number % 6]
        rule.on_arrival("f", VM, now)
    kept: list[float] = []
    for make in (user, asleep):
        layer, at_s = make(now), now
        while isinstance(answer := rule.on_idle(layer, at_s), Keep) and at_s - now < 1e6:
            at_s += kept_s(answer)
        kept.append(at_s - now)
    return kept[0], kept[1]


def test_hazard_keeps_an_instance_through_short_gaps_and_sleeps_through_long_ones() -> None:
    user_s, _ = gone_by(Hazard(), 20.0)
    assert user_s > 20.0, user_s
    user_s, asleep_s = gone_by(Hazard(), 2000.0)
    assert user_s < 60.0 and asleep_s > 2000.0
    user_s, asleep_s = gone_by(Hazard(price=1e-2), 20_000.0)
    assert user_s < 60.0 and asleep_s < 60.0, "disk is not free either"


def test_hazard_learns_of_sleep_apart_from_idling() -> None:
    rule = Hazard()
    gone_by(rule, 600.0)
    assert rule.priority(asleep(SINCE_S), SINCE_S) > 0.0
    assert rule.priority(asleep(SINCE_S), SINCE_S) != rule.priority(user(SINCE_S), SINCE_S)


@pytest.mark.parametrize("name", registry.keepalive_names())
def test_every_rule_keeps_to_the_contract(name: str) -> None:
    check_policy(lambda: registry.keepalive(PolicySpec(name)))
