"""`lru`, `faascache` and `break_even`: who goes first, and when."""

from __future__ import annotations

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.base import Drop, Keep, LayerView
from rewarm.policy.keepalive.break_even import BreakEven
from rewarm.policy.keepalive.faascache import FaasCache
from rewarm.policy.keepalive.lru import LeastRecentlyUsed

KEY = LangKey()
MB = 1 << 20


def user(
    function: str, startup_s: float = 2.0, mb: float = 50.0, used_s: float = 0.0, others: int = 0, idle_s: float = 0.0
) -> LayerView:
    return LayerView(Layer.USER, function, KEY, startup_s, int(mb * MB), used_s + idle_s, used_s, 1, others)


@pytest.mark.parametrize("rule", [LeastRecentlyUsed(), FaasCache()])
@pytest.mark.parametrize("layer", list(Layer))
def test_caches_have_no_time_limit(rule: LeastRecentlyUsed | FaasCache, layer: Layer) -> None:
    view = LayerView(layer, None, KEY, 1.0, MB, 0.0, 0.0, 1)
    assert rule.on_idle(view, 0.0) == rule.on_idle(view, 1e6) == Keep(None)


def test_lru_frees_the_longest_unused_first() -> None:
    rule = LeastRecentlyUsed()
    dear, cheap = user("a", startup_s=9.0, mb=1.0, used_s=10.0), user("b", startup_s=0.1, mb=900.0, used_s=11.0)
    assert rule.priority(dear, 20.0) < rule.priority(cheap, 20.0)


def test_faascache_is_clock_plus_frequency_times_cost_over_size() -> None:
    rule = FaasCache()
    for at_s in (1.0, 2.0, 3.0):
        rule.on_arrival("a", KEY, at_s)
    assert rule.priority(user("a", used_s=3.0), 9.0) == pytest.approx(3 * 2.0 / 50.0)
    lang = LayerView(Layer.LANG, None, KEY, 0.6, 30 * MB, 3.0, 3.0, 4)
    assert rule.priority(lang, 9.0) == pytest.approx(4 * 0.6 / 30.0)
    assert rule.priority(user("a", mb=0.001, used_s=3.0), 9.0) == pytest.approx(3 * 2.0), "at least 1 MB"


def test_faascache_clock_is_the_highest_victim_as_of_the_last_use() -> None:
    rule = FaasCache()
    for function in "aabc":
        rule.on_arrival(function, KEY, 1.0)
    victim = user("a", used_s=1.0)
    worth = rule.priority(victim, 5.0)
    assert worth == pytest.approx(2 * 2.0 / 50.0)
    rule.on_gone(victim, True, 5.0)
    assert rule.priority(user("b", used_s=4.9), 6.0) == pytest.approx(2.0 / 50.0), "not used since"
    assert rule.priority(user("b", used_s=5.0), 6.0) == pytest.approx(worth + 2.0 / 50.0)
    rule.on_gone(user("c", startup_s=0.1, used_s=1.0), True, 7.0)  # a cheaper victim does not turn the clock back
    assert rule.priority(user("b", used_s=8.0), 9.0) == pytest.approx(worth + 2.0 / 50.0)


def test_faascache_clock_moves_on_evictions_only() -> None:
    rule = FaasCache()
    rule.on_arrival("a", KEY, 1.0)
    rule.on_gone(user("a", used_s=1.0), False, 5.0)
    rule.on_arrival("b", KEY, 6.0)
    assert rule.priority(user("b", used_s=6.0), 7.0) == pytest.approx(2.0 / 50.0)


def test_faascache_forgets_frequency_with_the_last_instance() -> None:
    rule = FaasCache()
    for at_s in (1.0, 2.0, 3.0):
        rule.on_arrival("a", KEY, at_s)
    rule.on_gone(user("a", used_s=3.0, others=1), False, 5.0)
    assert rule.priority(user("a", used_s=3.0), 6.0) == pytest.approx(3 * 2.0 / 50.0)
    rule.on_gone(user("a", used_s=3.0, others=0), False, 7.0)
    rule.on_arrival("a", KEY, 8.0)
    assert rule.priority(user("a", used_s=8.0), 9.0) == pytest.approx(2.0 / 50.0)


def test_faascache_remembers_a_bounded_past() -> None:
    rule = FaasCache()
    for step in range(1, 10_001):
        rule.on_gone(LayerView(Layer.LANG, None, KEY, float(step), MB, 0.0, float(step), 1), True, float(step))
    fresh, stale = user("a", used_s=10_000.0), user("a", used_s=0.0)
    assert rule.priority(fresh, 1e5) > rule.priority(stale, 1e5) > 0.0, "what is beyond the past ages with its oldest"


@pytest.mark.parametrize(
    ("alpha", "startup_s", "mb", "beta_s"),
    [(0.996, 2.0, 200.0, 2.49), (0.996, 2.0, 20.0, 24.9), (0.996, 0.5, 2.0, 62.25), (0.5, 3.0, 1.0, 3.0)],
)
def test_break_even_is_when_memory_has_cost_a_start(alpha: float, startup_s: float, mb: float, beta_s: float) -> None:
    rule, view = BreakEven(alpha), user("a", startup_s, mb)
    first = rule.on_idle(view, 0.0)
    assert isinstance(first, Keep) and first.for_s == pytest.approx(beta_s)
    again = rule.on_idle(view, beta_s / 2)
    assert isinstance(again, Keep) and again.for_s == pytest.approx(beta_s / 2)
    assert rule.on_idle(view, beta_s) == Drop()


def test_neither_raises_anything_ahead() -> None:
    assert BreakEven().on_arrival("a", KEY, 0.0) is None
    assert LeastRecentlyUsed().on_arrival("a", KEY, 0.0) is None


def test_break_even_of_the_unmeasured_is_ten_minutes() -> None:
    assert BreakEven().on_idle(user("a", startup_s=0.0), 0.0) == Keep(600.0)
    assert BreakEven().on_idle(user("a", mb=0.0), 0.0) == Keep(600.0)


@pytest.mark.parametrize("alpha", [0, 1, -1, 2, True, "much", float("nan")])
def test_break_even_refuses_what_is_no_share(alpha: float) -> None:
    with pytest.raises(BadDefinition, match="alpha must lie between 0 and 1"):
        BreakEven(alpha)
