"""The menu: how policies are written, found and refused."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, PolicySpec
from rewarm.facts.sandbox import Layer
from rewarm.policy import registry
from rewarm.policy.batching.base import BatchingPolicy
from rewarm.policy.keepalive.base import Keep, Prewarm
from rewarm.policy.keepalive.faascache import FaasCache
from rewarm.testing import check_batching_policy, check_keepalive_policy, check_policy

FUNCTION = FunctionSpec("f", "predict", "app:F", slo_s=0.2)

BATCHING = ["none", "static:size=5", "dynamic:max_size=5,max_wait=300ms", "dynamic:max_wait_s=0", "aimd", "slo"]
BATCHING += ["aimd:step=3,backoff=0.5", "slo:mode=cost,max_size=32", "slo:mode=cost,slack=50ms"]
KEEPALIVE = ["none", "fixed", "fixed:ttl=10min", "fixed:user_s=30,lang_s=60", "fixed:ttl=0", "lru", "faascache"]
KEEPALIVE += ["break_even:alpha=0.9999", "histogram", "histogram:forecast=false,span=1h", "barista:slot=1min"]
KEEPALIVE += ["rainbowcake:alpha=0.9999,p=0.99,floor=60s", "rainbowcake:sharing=false,layers=false,prewarm=false,n=2"]
KEEPALIVE += ["rainbowcake:floor=0", "hazard", "hazard:price=0.004"]


@pytest.mark.parametrize("text", BATCHING)
def test_batching_policies_keep_the_contract(text: str) -> None:
    check_batching_policy(lambda: registry.batching(registry.parse(text), FUNCTION))


@pytest.mark.parametrize("text", KEEPALIVE)
def test_keepalive_policies_keep_the_contract(text: str) -> None:
    check_keepalive_policy(lambda: registry.keepalive(registry.parse(text)))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("fixed", PolicySpec("fixed")),
        (" fixed : ttl = 10min ", PolicySpec("fixed", {"ttl_s": 600.0})),
        ("fixed:user_s=30,lang_s=60", PolicySpec("fixed", {"user_s": 30.0, "lang_s": 60.0})),
        ("slo:mode=cost,max_size=32", PolicySpec("slo", {"mode": "cost", "max_size": 32})),
        ("dynamic:max_size=5,max_wait=300ms", PolicySpec("dynamic", {"max_size": 5, "max_wait_s": 0.3})),
        ("aimd:backoff=0.5", PolicySpec("aimd", {"backoff": 0.5})),
        ("theirs:window_s=2min,n=3,how=well", PolicySpec("theirs", {"window_s": 120.0, "n": 3, "how": "well"})),
    ],
)
def test_parse(text: str, spec: PolicySpec) -> None:
    assert registry.parse(text) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a policy"),
        (":ttl=1", "is not a policy"),
        ("fixed:", "is not a policy"),
        ("fixed:ttl", "is not key=value"),
        ("fixed:ttl=", "is not key=value"),
        ("fixed:ttl=1,,", "is not key=value"),
        ("fixed:ttl=1,ttl=2", "ttl is given twice"),
        ("fixed:ttl=1,ttl_s=2", "ttl_s is given twice"),
        ("fixed:ttl=soon", "ttl_s: 'soon' is not a duration"),
        ("fixed:usr_s=1", "did you mean 'user_s'"),
        ("none:size=1", "has no parameter 'size'; its parameters are asleep"),
        ("static", "needs size, for example 'static:size=8'"),
        ("slo:function=3", "has no parameter 'function'"),
    ],
)
def test_parse_refuses(text: str, says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        registry.parse(text)


def test_unknown_names_are_answered_with_the_menu() -> None:
    with pytest.raises(
        BadDefinition, match=r"unknown batching policy 'dynamik' \(did you mean 'dynamic'\?\); there are"
    ):
        registry.batching(PolicySpec("dynamik"), FUNCTION)
    with pytest.raises(BadDefinition, match="unknown keepalive policy 'zzz'; there are none, fixed"):
        registry.keepalive(PolicySpec("zzz"))


def test_specs_from_json_may_carry_text_durations_and_aliases() -> None:
    rule = registry.batching(PolicySpec("dynamic", {"max_wait": "300ms"}), FUNCTION)
    assert rule.max_size == 16
    with pytest.raises(BadDefinition, match="max_wait_s"):
        registry.batching(PolicySpec("dynamic", {"max_wait_s": "never"}), FUNCTION)


def test_names() -> None:
    assert registry.batching_names()[:7] == ("none", "static", "dynamic", "aimd", "slo", "batch", "mbs")
    ours = ("none", "fixed", "lru", "faascache", "break_even", "histogram", "rainbowcake", "barista", "hazard")
    assert registry.keepalive_names()[:9] == ours


class Point:
    """Stands for an entry point of an installed distribution."""

    def __init__(self, name: str, loaded: Any) -> None:
        self.name = name
        self._loaded = loaded

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(function: FunctionSpec, **params: Any) -> BatchingPolicy:
        return registry.batching(PolicySpec("static", {"size": params["rows"]}), function)

    points = {
        "rewarm.batching": [Point("theirs", make), Point("broken", ImportError("no such thing")), Point("odd", 3)],
        "rewarm.keepalive": [],
    }
    monkeypatch.setattr(metadata, "entry_points", lambda group: points[group])


@pytest.mark.usefixtures("installed")
def test_third_parties() -> None:
    assert registry.batching(registry.parse("theirs:rows=7"), FUNCTION).max_size == 7
    assert registry.batching_names()[7:] == ("broken", "odd", "theirs")
    with pytest.raises(BadDefinition, match="could not be imported: ImportError"):
        registry.batching(PolicySpec("broken"), FUNCTION)
    with pytest.raises(BadDefinition, match="is not callable"):
        registry.batching(PolicySpec("odd"), FUNCTION)


def test_suites_catch_what_breaks_the_contract() -> None:
    class Greedy(type(registry.batching(PolicySpec("none"), FUNCTION))):  # type: ignore[misc]
        def decide(self, queue: Any, now: float) -> Any:
            queue.pop()
            return super().decide(queue, now)

    class Backward(type(registry.keepalive(PolicySpec("none")))):  # type: ignore[misc]
        def on_idle(self, layer: Any, now: float) -> Any:
            return (
                registry.keepalive(PolicySpec("fixed")).on_idle(layer, now - 1e9) if layer.layer is Layer.BARE else None
            )

    with pytest.raises(AssertionError, match="must not change the queue"):
        check_batching_policy(lambda: Greedy(FUNCTION))
    with pytest.raises(AssertionError, match="must answer Keep or Drop"):
        check_keepalive_policy(Backward)
    with pytest.raises(AssertionError, match="must not change the queue"):
        check_policy(lambda: Greedy(FUNCTION))
    with pytest.raises(AssertionError, match="must answer Keep or Drop"):
        check_policy(Backward)


class _Faulty(FaasCache):
    """Keeps the contract; each heir breaks it in one place."""


class _NoWord(_Faulty):
    watches_runs = True  # and no on_run


class _NoInstance(_Faulty):
    def on_arrival(self, function: str, key: Any, now: float) -> Prewarm:
        return Prewarm(1.0, 0)


class _Past(_Faulty):
    def on_arrival(self, function: str, key: Any, now: float) -> Prewarm:
        return Prewarm(-1.0)


class _Crumbs(_Faulty):
    def on_idle(self, layer: Any, now: float) -> Keep:
        return Keep(1e-3)


class _Endless(_Faulty):
    def on_gone(self, layer: Any, evicted: bool, now: float) -> None:
        raise AssertionError(f"told of an end, evicted: {evicted}")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (_NoWord, "so on_run must be a method"),
        (_NoInstance, "asks for no instance"),
        (_Past, "is not a time ahead"),
        (_Crumbs, "windows must be worth the asking"),
        (_Endless, "told of an end"),
    ],
)
def test_keepalive_suite_catches(rule: type[FaasCache], says: str) -> None:
    check_policy(_Faulty)
    with pytest.raises(AssertionError, match=says):
        check_policy(rule)
