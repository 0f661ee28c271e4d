"""Layers: how long they are kept, what they rise from, and who goes first when memory is short. In virtual time."""

from __future__ import annotations

import math

import pytest

from rewarm.core.state import LayerState
from rewarm.errors import DeadlineExceeded, OverBudget, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, PolicySpec
from rewarm.facts.sandbox import IllegalMove, Layer, StartKind
from rewarm.facts.sandbox import SandboxState as State
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, LayerView, Prewarm
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.testing import Outcome, Seconds, World

MB = 1 << 20
INSTANCE = 32 * MB  # what the core believes before anything is measured
ZYGOTE = 24 * MB
START_S = 12_345.678


def fixed(user_s: float, lang_s: float) -> FixedKeepalive:
    return FixedKeepalive(user_s=user_s, lang_s=lang_s)


def world(mb: int = 1 << 20, **more: object) -> World:
    """User code does what the payload of a request says."""
    return World(mb * MB, start_s=START_S, behave=lambda request: Outcome(request.payload or "ok"), **more)  # type: ignore[arg-type]


# ---------------------------------------------------------------- how long layers are kept


def test_layers_are_dropped_one_after_the_other() -> None:
    w = world(keepalive=fixed(10.0, 30.0))
    w.deploy("f")
    w.arrive("f")
    w.run_for(5.0)
    assert (w.states("f"), len(w.langs())) == ([State.READY], 1)
    w.run_for(10.0)
    assert (w.states("f"), len(w.langs())) == ([], 1)
    w.run_for(30.0)
    assert w.langs() == set()
    assert w.held_bytes == 0
    assert [effect.reason for effect in w.done(m.Destroy) + w.done(m.DropLang)] == ["keepalive", "keepalive"]


def test_use_renews_the_window() -> None:
    w = world(keepalive=fixed(10.0, 10.0))
    w.deploy("f")
    requests = []
    for _ in range(8):
        requests.append(w.arrive("f"))
        w.run_for(8.0)
    assert w.ok(*requests)
    assert len(w.done(m.RaiseBare)) == 1


def test_a_zygote_with_instances_is_not_idle() -> None:
    w = world(keepalive=fixed(1000.0, 1.0))
    w.deploy("f")
    w.arrive("f")
    w.run_for(500.0)
    assert len(w.langs()) == 1


def test_keeping_nothing() -> None:
    w = world(keepalive=NoKeepalive())
    w.deploy("f")
    request = w.arrive("f")
    w.run_for(5.0)
    assert w.ok(request)
    assert not w.node.pool.sandboxes and not w.langs()
    again = w.arrive("f")
    w.run_for(5.0)
    assert w.ok(again)
    assert again.start is StartKind.COLD


def test_a_request_that_meets_a_dying_zygote_gets_a_new_one() -> None:
    w = world(keepalive=NoKeepalive(), seconds=Seconds(exit=1.0))
    w.deploy("f")
    w.arrive("f")
    w.run_for(0.9)
    w.run_for(1.0)
    (lang,) = w.node.pool.langs.values()
    assert lang.state is LayerState.DYING
    request = w.arrive("f")
    w.run_for(5.0)
    assert w.ok(request)
    assert len(w.done(m.RaiseLang)) == 2


def test_a_function_may_have_a_policy_of_its_own() -> None:
    w = world(keepalive=fixed(1000.0, 1000.0))
    w.deploy("f", keepalive=PolicySpec("none"))
    w.deploy("g")
    w.arrive("f")
    w.arrive("g")
    w.run_for(5.0)
    assert (w.ids("f"), len(w.ids("g"))) == ([], 1)


class Scripted:
    """A policy of a third party: prewarms on arrival, and says what it was told to about idle layers."""

    name = "scripted"

    def __init__(self, idle: KeepaliveDecision, prewarm: Prewarm | None = None) -> None:
        self.idle = idle
        self.warm = prewarm
        self.seen: list[LayerView] = []

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return self.warm

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        self.seen.append(layer)
        return self.idle

    def priority(self, layer: LayerView, now: float) -> float:
        return 0.0


def test_prewarm_after_a_drop() -> None:
    w = world(keepalive=Scripted(Drop(prewarm_after_s=10.0)))
    w.deploy("f")
    w.arrive("f")
    w.run_for(5.0)
    assert w.ids("f") == []
    w.run_for(5.4)  # it is dropped again as soon as it is ready, and that is asked for again
    assert len(w.done(m.RaiseBare)) == 2
    w.run_for(30.0)
    assert len(w.done(m.RaiseBare)) > 3


def test_prewarm_on_arrival() -> None:
    w = world(keepalive=Scripted(Keep(1.0), Prewarm(5.0)))
    w.deploy("f")
    w.arrive("f")
    w.tell(m.Unload("f"))
    w.run_for(4.0)
    w.tell(m.Unload("f"))
    w.run_for(3.0)
    (instance,) = w.fn("f").sandboxes.values()
    assert instance.uses == 0
    request = w.arrive("f")
    assert request.start is StartKind.WARM


@pytest.mark.parametrize("busy", [1, 2])
def test_prewarm_keeps_to_the_limit(busy: int) -> None:
    w = world(keepalive=Scripted(Keep(None), Prewarm(5.0)))
    w.deploy("f", max_instances=busy, timeout_s=300.0)
    for _ in range(busy):
        w.arrive("f", payload="hangs")
        w.run_for(1.0)
    w.run_for(20.0)
    assert w.states("f") == [State.BUSY] * busy


def test_nothing_is_prewarmed_for_what_is_gone_or_going() -> None:
    w = world(keepalive=Scripted(Drop(), Prewarm(5.0)))
    w.deploy("f")
    w.deploy("g")
    w.arrive("f")
    w.arrive("g")
    w.run_for(2.0)
    w.tell(m.Removed("f"))
    w.tell(m.Draining())
    w.run_for(20.0)
    assert len(w.done(m.RaiseBare)) == 2


def test_what_a_policy_is_told() -> None:
    policy = Scripted(Keep(None))
    w = world(keepalive=policy)
    w.deploy("f")
    w.arrive("f")
    w.run_for(2.0)
    (sandbox_id,) = w.ids("f")
    w.tell(m.Measured(sandbox_id, 7 * MB))
    w.arrive("f")
    w.run_for(2.0)
    w.tell(m.Unload("f"))
    w.run_for(2.0)
    user, lang = policy.seen[-2:]
    assert (user.layer, user.function, user.resident_bytes, user.uses) == (Layer.USER, "f", 7 * MB, 2)
    assert user.startup_s > 0 and user.idle_since_s == user.last_used_s
    assert (lang.layer, lang.function, lang.resident_bytes, lang.uses) == (Layer.LANG, None, ZYGOTE, 1)
    assert lang.startup_s > 0


# ---------------------------------------------------------------- what rises from what


def test_a_zygote_is_forked_from_its_nearest_living_ancestor() -> None:
    w = world()
    packages = [(), ("a",), ("a", "b"), ("z",), ("a", "b", "c")]
    for index, preload in enumerate(packages):
        w.deploy(f"f{index}", preload=preload)
        w.arrive(f"f{index}")
        w.run_for(5.0)
    parents = {str(effect.key): str(effect.parent) for effect in w.done(m.RaiseLang)}
    assert parents == {
        "python": "None",
        "python+a": "python",
        "python+a+b": "python+a",
        "python+z": "python",
        "python+a+b+c": "python+a+b",
    }


def test_one_that_is_still_rising_or_going_is_no_ancestor() -> None:
    w = world(seconds=Seconds(exit=5.0), keepalive=fixed(1.0, 1.0))
    w.deploy("f")
    w.deploy("g", preload=("a",))
    w.deploy("h", preload=("b",))
    w.arrive("f")
    w.arrive("g")
    assert [effect.parent for effect in w.done(m.RaiseLang)] == [None, None]
    w.run_for(9.0)
    assert {lang.state for lang in w.node.pool.langs.values()} == {LayerState.DYING}
    request = w.arrive("h")
    assert w.done(m.RaiseLang)[-1].parent is None
    w.run_for(5.0)
    assert w.ok(request)


@pytest.mark.parametrize(
    ("before", "found"), [("nothing", "cold"), ("ancestor", "bare"), ("zygote", "lang"), ("instance", "warm")]
)
def test_what_a_request_found(before: str, found: str) -> None:
    w = world()
    w.deploy("f", preload=("a",))
    w.deploy("other", preload=() if before == "ancestor" else ("a",))
    if before != "nothing":
        w.tell(m.Load("f" if before == "instance" else "other"))
    w.run_for(5.0)
    request = w.arrive("f")
    w.run_for(5.0)
    assert request.start.value == found


def test_instances_outlive_their_zygote() -> None:
    w = world()
    w.deploy("f", max_instances=2)
    w.arrive("f")
    w.run_for(5.0)
    w.fake.kill(w.fn("f").key)
    assert w.langs() == set()
    request = w.arrive("f")
    w.run_for(5.0)
    assert w.ok(request)
    assert len(w.done(m.RaiseBare)) == 1
    w.tell(m.Unload("f"))
    w.run_for(5.0)
    again = w.arrive("f")
    w.run_for(5.0)
    assert w.ok(again)
    assert len(w.done(m.RaiseLang)) == 2


def test_the_end_of_a_zygote_may_be_told_before_its_last_fork() -> None:
    w = world(seconds=Seconds(fork=1.0))
    w.deploy("f")
    request = w.arrive("f")
    w.run_for(0.5)
    assert w.node.handle(m.LangExited(w.fn("f").key, StartFailed("it ended")), w.now) == []
    (load,) = w.node.handle(m.Raised(w.ids("f")[0], State.LANG, 1.0), w.now)
    assert isinstance(load, m.LoadUser)
    w.node.check()
    assert request not in w.answers


def test_a_zygote_that_dies_while_it_forks_takes_that_start_along() -> None:
    w = world(seconds=Seconds(fork=1.0))
    w.deploy("f")
    request = w.arrive("f")
    w.run_for(0.5)
    w.fake.kill(w.fn("f").key)
    w.run_for(5.0)
    assert request in w.answers
    assert not w.node.pool.sandboxes
    again = w.arrive("f")
    w.run_for(5.0)
    assert w.ok(again)


def test_a_zygote_that_dies_while_it_rises_fails_all_who_wait_for_it() -> None:
    w = world()
    w.deploy("f")
    w.deploy("g")
    requests = [w.arrive("f"), w.arrive("g")]
    w.run_for(0.1)
    w.fake.kill(w.fn("f").key)
    w.run_for(5.0)
    assert all(w.rejected(request, StartFailed) for request in requests)
    assert not w.node.pool.sandboxes


def test_a_zygote_nobody_waits_for_any_more_is_kept_like_an_idle_one() -> None:
    w = world(keepalive=fixed(1.0, 10.0))
    w.deploy("f")
    w.arrive("f")
    w.tell(m.Removed("f"))
    w.run_for(5.0)
    assert len(w.langs()) == 1
    w.run_for(10.0)
    assert w.langs() == set()


def test_a_zygote_may_take_as_long_as_those_who_wait_for_it() -> None:
    w = world(seconds=Seconds(zygote=90.0))
    w.deploy("f", timeout_s=300.0)
    request = w.arrive("f", within_s=1000.0)
    w.run_for(200.0)
    assert w.ok(request)
    assert len(w.done(m.RaiseLang)) == 1


def test_a_zygote_that_hangs_and_that_nobody_waits_for_is_stopped() -> None:
    w = world(seconds=Seconds(zygote=1e9))
    w.deploy("f")
    w.arrive("f")
    w.tell(m.Removed("f"))
    w.run_for(200.0)
    assert w.langs() == set()
    assert [effect.reason for effect in w.done(m.DropLang)] == ["start timeout"]


# ---------------------------------------------------------------- memory


def test_the_estimate_is_corrected_by_measuring() -> None:
    w = world()
    w.deploy("f")
    w.arrive("f")
    assert w.held_bytes == INSTANCE + ZYGOTE
    w.run_for(5.0)
    (sandbox_id,) = w.ids("f")
    w.tell(m.Measured(sandbox_id, 5 * MB))
    w.tell(m.Measured(w.fn("f").key, 8 * MB))
    assert w.held_bytes == 13 * MB
    w.tell(m.Unload("f"))
    w.tell(m.Measured(sandbox_id, 4 * MB))
    w.run_for(5.0)
    assert w.held_bytes == 8 * MB
    w.arrive("f")
    assert w.held_bytes == 13 * MB  # what the last one held is what the next one will


def test_too_large_for_the_budget() -> None:
    w = world(40)
    w.deploy("f")
    requests = w.burst("f", 3)
    assert all(w.rejected(request, OverBudget) for request in requests)
    assert not w.effects or not w.done(m.RaiseBare)


def test_the_idle_make_room() -> None:
    w = world(100)
    w.deploy("f")
    w.deploy("g")
    w.deploy("h")
    for name in "fg":
        w.arrive(name)
        w.run_for(5.0)
    request = w.arrive("h")  # 24 + 32 + 32 are held
    w.run_for(5.0)
    assert w.ok(request)
    assert [effect.reason for effect in w.done(m.Destroy)] == ["memory"]
    assert w.ids("f") == [] and len(w.ids("g")) == 1  # the least recently used of equals
    assert w.node.pool.evictions == 1


def test_the_least_worth_per_byte_goes_first() -> None:
    w = world(100)
    w.deploy("slow")
    w.deploy("fast")
    w.deploy("h")
    w.fake.seconds.user = 5.0
    w.arrive("slow")
    w.run_for(10.0)
    w.fake.seconds.user = 0.01
    w.arrive("fast")
    w.run_for(10.0)
    w.arrive("h")
    w.run_for(5.0)
    assert len(w.ids("slow")) == 1 and w.ids("fast") == []


def test_the_busy_are_never_evicted_and_the_starved_are_served_once_there_is_room() -> None:
    w = world(60)
    w.deploy("f", timeout_s=30.0)
    w.deploy("g")
    running = w.arrive("f", payload="hangs")
    w.run_for(5.0)
    hungry = w.burst("g", 3)
    w.run_for(10.0)
    assert running not in w.answers and not any(request in w.answers for request in hungry)
    w.run_for(40.0)
    assert running in w.answers
    assert w.ok(*hungry)


def test_the_starved_have_deadlines_too() -> None:
    w = world(60)
    w.deploy("f", timeout_s=30.0)
    w.deploy("g")
    w.arrive("f", payload="hangs")
    w.run_for(5.0)
    hungry, gone = w.arrive("g", within_s=2.0), w.arrive("g")
    w.cancel(gone)
    w.run_for(60.0)
    assert w.rejected(hungry, DeadlineExceeded)
    assert w.ids("g") == []


def test_another_runtime_makes_room_layer_by_layer() -> None:
    """Neither the idle instance nor its zygote is enough, and the zygote is idle only once the instance is gone."""
    w = world(60)
    w.deploy("f")
    w.deploy("g", preload=("numpy",))
    w.arrive("f")
    w.run_for(5.0)
    request = w.arrive("g")
    w.run_for(5.0)
    assert w.ok(request)
    assert {str(key) for key in w.langs()} == {"python+numpy"}


def test_nothing_is_evicted_in_vain() -> None:
    w = world(120)
    w.deploy("idle")
    w.deploy("busy", timeout_s=500.0)
    w.deploy("big", preload=("numpy",))
    w.arrive("idle")
    w.arrive("busy", payload="hangs")
    w.run_for(5.0)
    w.fn("big").resident.add(60 * MB)
    hungry = w.arrive("big", within_s=20.0)
    w.run_for(10.0)
    assert hungry not in w.answers
    assert len(w.ids("idle")) == 1


def test_a_second_instance_waits_for_memory_without_taking_anything_away() -> None:
    w = world(64, seconds=Seconds(run=5.0))
    w.deploy("f", max_instances=4)
    requests = w.burst("f", 4)
    w.run_for(60.0)
    assert w.ok(*requests)
    assert len(w.done(m.RaiseBare)) == 1


def test_measured_above_the_budget() -> None:
    w = world(100)
    w.deploy("f")
    w.deploy("g")
    w.arrive("f")
    w.run_for(5.0)
    w.arrive("g")
    w.run_for(5.0)
    (first,) = w.ids("f")
    w.tell(m.Measured(first, 60 * MB))
    w.run_for(1.0)
    assert (w.ids("f"), len(w.ids("g"))) == ([], 1)
    assert w.held_bytes <= 100 * MB


def test_measured_far_above_the_budget_while_busy() -> None:
    w = world(100)
    w.deploy("f", timeout_s=20.0)
    request = w.arrive("f", payload="hangs")
    w.run_for(5.0)
    (sandbox_id,) = w.ids("f")
    w.tell(m.Measured(sandbox_id, 500 * MB))
    w.run_for(5.0)
    assert w.states("f") == [State.BUSY]
    assert request not in w.answers


def test_room_that_is_on_its_way_counts() -> None:
    w = world(60, seconds=Seconds(exit=1.0))
    w.deploy("f")
    w.deploy("g")
    w.arrive("f")
    w.run_for(5.0)
    w.tell(m.Unload("f"))
    request = w.arrive("g")
    assert len(w.done(m.RaiseBare)) == 2
    w.run_for(5.0)
    assert w.ok(request)


def test_load_does_nothing_without_memory() -> None:
    w = world(60)
    w.deploy("f")
    w.deploy("g")
    w.arrive("f", payload="hangs")
    w.run_for(5.0)
    w.tell(m.Load("g"))
    assert w.ids("g") == []


# ---------------------------------------------------------------- how often the policy is asked what a layer is worth


class Appraiser(NoKeepalive):
    """Keeps all, and counts how often it is asked what an instance is worth."""

    def __init__(self, holds: float) -> None:
        self.worth_holds = holds
        self.asked: list[str | None] = []

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return Keep(None) if layer.layer is not Layer.BARE else Drop()

    def priority(self, layer: LayerView, now: float) -> float:
        self.asked.append(layer.function)
        return layer.last_used_s


@pytest.mark.parametrize(("holds", "times"), [(0.0, 2), (0.5, 2), (5.0, 1), (math.inf, 1)])
def test_an_answer_about_worth_is_used_again_for_as_long_as_it_holds(holds: float, times: int) -> None:
    rule = Appraiser(holds)
    w = world(mb=3 * 32 + 24, keepalive=rule)
    for name in "abcde":
        w.deploy(name)
    for name in "abc":
        w.arrive(name)
        w.run_for(1.0)
    w.run_for(10.0)
    for name in "de":  # 'a' goes for the first, and 'b' is next
        w.arrive(name)
        w.run_for(20.0)
    assert [effect.reason for effect in w.done(m.Destroy)] == ["memory", "memory"]
    assert rule.asked.count("c") == times


def test_a_new_idle_time_is_asked_about_anew() -> None:
    rule = Appraiser(math.inf)
    w = world(mb=3 * 32 + 24, keepalive=rule)
    for name in "abcde":
        w.deploy(name)
    for name in ("a", "b", "c", "d", "b", "c", "e"):
        w.arrive(name)
        w.run_for(10.0)
    assert w.states("b") == w.states("c") == [State.READY]
    assert w.states("d") == []
    assert rule.asked.count("b") >= 2


def test_a_driver_that_leaves_a_layer_out_is_a_bug() -> None:
    w = world(seconds=Seconds(bare=5.0))
    w.deploy("f")
    w.arrive("f")
    with pytest.raises(IllegalMove, match="absent → user"):
        w.post(m.Raised(1, State.USER, 0.1))
