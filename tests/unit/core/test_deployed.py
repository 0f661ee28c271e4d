"""Functions that are new: a policy that wants to know may have an instance raised ahead of the first call."""

from __future__ import annotations

import pytest

from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.sandbox import StartKind
from rewarm.policy.keepalive.base import Keep, KeepaliveDecision, KeepalivePolicy, LayerView, Prewarm
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.hazard import Hazard
from rewarm.policy.keepalive.rainbowcake import RainbowCake
from rewarm.testing import World

MB = 1 << 20
INSTANCE, ZYGOTE = 32 * MB, 24 * MB  # what the core believes before anything is measured


class Ahead:
    """Raises every new function five seconds after it is deployed, and writes down what it was told."""

    name = "ahead"
    watches_arrivals = False
    watches_deploys = True

    def __init__(self) -> None:
        self.told: list[tuple[LayerView, float]] = []

    def on_deployed(self, instance: LayerView, now: float) -> Prewarm | None:
        self.told.append((instance, now))
        return Prewarm(5.0)

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return Keep(None)

    def priority(self, layer: LayerView, now: float) -> float:
        return 0.0


def test_an_instance_is_there_before_the_first_call() -> None:
    rule = Ahead()
    w = World(keepalive=rule)
    w.deploy("f")
    w.run_for(4.9)
    assert w.states("f") == []
    w.run_for(2.0)
    assert w.states("f") == [State.READY]
    request = w.arrive("f")
    w.run_for(1.0)
    assert w.ok(request) and request.start is StartKind.WARM
    ((instance, now),) = rule.told
    assert (instance.function, instance.startup_s, instance.resident_bytes, instance.uses, now) == (
        "f", 0.1, INSTANCE, 0, 0.0,
    )  # fmt: skip


def test_a_new_revision_is_no_new_function() -> None:
    rule = Ahead()
    w = World(keepalive=rule)
    w.deploy("f")
    w.deploy("f")
    assert len(rule.told) == 1


@pytest.mark.parametrize("rule", [FixedKeepalive(), RainbowCake(), Hazard(price=1e-3)])
def test_others_raise_nothing(rule: KeepalivePolicy) -> None:
    w = World(keepalive=rule)
    w.deploy("f")
    w.run_for(60.0)
    assert not w.effects


def test_hazard_raises_what_is_new_and_lets_go_of_what_nobody_calls() -> None:
    w = World(keepalive=Hazard())
    w.deploy("f")
    w.run_for(2.0)
    assert w.states("f") == [State.READY]
    w.run_for(3600.0)
    assert w.states("f") == []
    assert w.held_bytes == 0


def test_what_is_new_takes_nothing_from_what_is_called() -> None:
    w = World(ZYGOTE + 2 * INSTANCE, keepalive=Hazard())
    w.deploy("often")
    w.deploy("more")
    for _ in range(30):
        requests = [w.arrive("often"), w.arrive("more")]
        w.run_for(5.0)
        assert w.ok(*requests)
    requests = [w.arrive("often"), w.arrive("more")]
    w.run_for(1.0)
    held = {*w.ids("often"), *w.ids("more")}
    for k in range(10):
        w.deploy(f"new{k}")
    w.run_for(3.0)  # those of the two are due a second from now
    assert len(held) == 2 and {*w.ids("often"), *w.ids("more")} == held
    assert not any(w.ids(f"new{k}") for k in range(10))
    assert w.node.pool.evictions == 0
