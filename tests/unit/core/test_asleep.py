"""Functions that sleep on disk: when a snapshot is made, used, lost and given up. In virtual time."""

from __future__ import annotations

import math

import pytest

from rewarm.core.asleep import FAILURES_MAX
from rewarm.core.node import Node
from rewarm.core.state import SnapshotState, start_timeout_s
from rewarm.core.tree import tree
from rewarm.errors import SandboxFailed, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, PolicySpec
from rewarm.facts.prices import DISK_BYTES_PER_MEMORY_BYTE
from rewarm.facts.sandbox import Layer, StartKind
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, LayerView
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.testing import Outcome, Seconds, World

MB = 1 << 20
START_S = 12_345.678
DISK = 64 * MB  # of each snapshot of the fake driver
VM = {"isolation": "microvm", "memory_bytes": 256 * MB}


class Told(FixedKeepalive):
    """Keeps instances for a second. Of what is asleep it says what it was told to, and hears of ends."""

    watches_ends = True

    def __init__(self, asleep: KeepaliveDecision = Keep(None)) -> None:  # noqa: B008 - frozen
        super().__init__(user_s=1.0, lang_s=1.0, bare_s=0.0)
        self.asleep = asleep
        self.views: list[LayerView] = []
        self.gone: list[tuple[Layer, bool]] = []
        self.worth: dict[str | None, float] = {}

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        if layer.layer is not Layer.ASLEEP:
            return super().on_idle(layer, now)
        self.views.append(layer)
        return self.asleep

    def on_gone(self, layer: LayerView, evicted: bool, now: float) -> None:
        self.gone.append((layer.layer, evicted))

    def priority(self, layer: LayerView, now: float) -> float:
        return self.worth.get(layer.function, 1.0)


def world(**more: object) -> World:
    """User code does what the payload of a request says."""
    more.setdefault("keepalive", Told())
    return World(start_s=START_S, behave=lambda request: Outcome(request.payload or "ok"), **more)  # type: ignore[arg-type]


def asleep(w: World, name: str = "f", **fields: object) -> World:
    """A function that has its snapshot on disk."""
    w.deploy(name, **{**VM, **fields})
    w.run_for(2.0)
    assert name in w.asleep()
    return w


def served(w: World, name: str = "f", for_s: float = 0.5) -> StartKind:
    """One request, all the way; what it found."""
    request = w.arrive(name)
    w.run_for(for_s)
    assert w.ok(request), w.answers.get(request)
    return request.start


def state(w: World, name: str = "f") -> SnapshotState:
    snapshot = w.fn(name).snapshot
    assert snapshot is not None
    return snapshot.state


# ---------------------------------------------------------------- made


def test_a_function_in_a_micro_vm_sleeps_from_its_deploy_on() -> None:
    w = world()
    revision = w.deploy("f", **VM)
    assert w.done(m.Sleep) == [m.Sleep(revision)]
    assert state(w) is SnapshotState.MAKING and not w.asleep()
    w.run_for(2.0)
    assert state(w) is SnapshotState.THERE and w.asleep() == {"f"}
    assert w.node.pool.ground.disk.held_bytes == DISK
    assert w.held_bytes == 0, "disk is not memory"
    assert repr(w.fn("f").snapshot) == "<snapshot of f v1 asleep>"


def test_a_function_in_a_process_does_not_sleep() -> None:
    w = world()
    w.deploy("f")
    served(w, for_s=30.0)
    assert not w.done(m.Sleep) and not w.done(m.Restore) and not w.done(m.Forget)
    assert w.fn("f").snapshot is None


def test_what_is_found_on_disk_is_used_at_once() -> None:
    w = world()
    w.fake.disk["f-1"] = DISK
    w.deploy("f", **VM)
    assert w.asleep() == {"f"}
    assert served(w) is StartKind.RESTORED


def test_any_function_may_turn_out_to_have_one() -> None:
    w = world()
    revision = w.deploy("f")
    w.fake.disk[revision.digest] = DISK
    w.tell(m.Slept(revision.digest, SnapshotFacts(revision.digest, DISK, 0.1, 2.0)))
    assert served(w) is StartKind.RESTORED


def test_nothing_is_made_that_the_policy_does_not_want_and_what_lies_there_goes() -> None:
    w = world(keepalive=NoKeepalive(asleep=False))
    w.fake.disk["f-1"] = DISK
    revision = w.deploy("f", **VM)
    assert w.done(m.Forget) == [m.Forget(revision)] and not w.fake.disk
    served(w, for_s=30.0)
    assert not w.done(m.Sleep)


def test_the_functions_own_policy_decides() -> None:
    w = world(keepalive=NoKeepalive(asleep=False))
    w.deploy("f", keepalive=PolicySpec("none"), **VM)
    w.run_for(2.0)
    assert w.asleep() == {"f"}


def test_nothing_is_made_while_the_server_ends() -> None:
    rule = Told()
    w = asleep(world(keepalive=rule))
    served(w, for_s=0.5)
    w.tell(m.Draining())
    w.deploy("g", **VM)
    rule.asleep = Drop()
    w.run_for(30.0)
    assert len(w.done(m.Sleep)) == 1 and not w.done(m.Forget), "what sleeps now sleeps until the next server"
    assert w.fake.disk == {"f-1": DISK}


def test_starts_go_the_long_way_until_it_is_there() -> None:
    w = world(seconds=Seconds(sleep=30.0))
    w.deploy("f", **VM)
    assert served(w, for_s=5.0) is StartKind.COLD
    assert served(w, for_s=5.0) is not StartKind.RESTORED
    w.run_for(30.0)
    assert served(w) is StartKind.RESTORED


# ---------------------------------------------------------------- woken


def test_a_start_from_it_is_one_step() -> None:
    w = asleep(world())
    before = len(w.effects)
    assert served(w) is StartKind.RESTORED
    restore, run = w.effects[before:]
    revision = w.fn("f").revision
    assert isinstance(restore, m.Restore) and restore.revision is revision
    assert isinstance(run, m.Run) and run.sandbox_id == restore.sandbox_id
    assert w.states("f") == [State.READY]
    assert not w.langs() and w.meter.starts[StartKind.RESTORED] == 1


def test_a_micro_vm_takes_no_bare_that_waits_and_leaves_none() -> None:
    w = world(keepalive=FixedKeepalive(user_s=1.0, lang_s=1.0, bare_s=60.0), seconds=Seconds(sleep=math.inf))
    w.deploy("p")
    served(w, "p", for_s=3.0)
    bares = w.bares()
    assert len(bares) == 1
    w.deploy("f", **VM)
    assert served(w, "f") is StartKind.COLD
    assert [effect.vm for effect in w.done(m.RaiseBare)] == [False, False, True]
    w.run_for(10.0)
    assert not w.fn("f").sandboxes and w.bares() == bares


def test_what_waking_costs_is_what_policies_see_of_the_instance() -> None:
    rule = Told()
    w = asleep(world(keepalive=rule))
    fn = w.fn("f")
    assert fn.up_s.value == pytest.approx(0.02), "as it was made"
    w.fake.seconds = Seconds(restore=0.08)
    served(w)
    assert [fn.up_s.value, fn.start_s.value] == pytest.approx([0.08, 0.08]), "as it was measured"
    assert w.node.pool.user_view(fn.idle[0]).startup_s == pytest.approx(0.08)
    w.fake.disk.clear()
    w.tell(m.SleepLost("f-1"))
    assert fn.up_s is fn.user_s
    assert fn.start_s.value == pytest.approx(0.065), "the long way: fork, load"


def test_a_policy_is_asked_about_what_it_saves_and_costs() -> None:
    rule = Told()
    w = asleep(world(keepalive=rule))
    unknown, known = rule.views
    assert (unknown.startup_s, unknown.resident_bytes, unknown.uses) == (0.0, 0, 0)
    assert known.startup_s == pytest.approx(0.065 - 0.02)
    assert known.resident_bytes == math.ceil(DISK / DISK_BYTES_PER_MEMORY_BYTE)
    assert (known.layer, known.function, known.key) == (Layer.ASLEEP, "f", w.fn("f").key)
    served(w, for_s=5.0)
    third = rule.views[-1]
    assert len(rule.views) == 3 and third.uses == 1
    assert third.idle_since_s > third.last_used_s > known.idle_since_s


def test_memory_is_what_an_instance_needs_and_no_runtime() -> None:
    w = asleep(world(budget_bytes=40 * MB))  # 32 for an instance; a runtime of a process would be 24 more
    assert served(w) is StartKind.RESTORED
    assert w.held_bytes == 32 * MB


def test_what_wakes_too_late_says_nothing_about_another_snapshot() -> None:
    w = asleep(world(seconds=Seconds(exit=3.0)))
    w.arrive("f")
    (node,) = w.ids("f")
    w.deploy("f", **VM)
    w.tell(m.Raised(node, State.READY, 9.0))  # it crossed with the order to end
    w.run_for(1.5)
    snapshot = w.fn("f").snapshot
    assert snapshot is not None and snapshot.restore_s.value == pytest.approx(0.02)
    w.tell(m.Removed("f"))
    w.tell(m.Raised(node, State.READY, 9.0))
    assert w.node.pool.sandboxes[node].state is State.DYING


def test_a_prewarm_and_a_load_wake_it_too() -> None:
    w = asleep(world())
    w.tell(m.Load("f"))
    w.run_for(0.5)
    assert w.states("f") == [State.READY] and len(w.done(m.Restore)) == 1


# ---------------------------------------------------------------- a restore that fails


def test_a_damaged_snapshot_is_nobodys_error() -> None:
    w = asleep(world())
    w.fake.damaged.add("f-1")
    assert served(w, for_s=1.0) is StartKind.COLD
    assert len(w.done(m.Restore)) == 1
    assert state(w) is SnapshotState.NONE
    w.run_for(10.0)
    assert w.asleep() == {"f"}, "made anew once the instance has gone"
    assert served(w) is StartKind.RESTORED


def test_one_that_is_lost_while_nobody_looks_is_made_anew_at_once() -> None:
    w = asleep(world())
    w.fake.disk.clear()
    w.tell(m.SleepLost("f-1"))
    assert state(w) is SnapshotState.MAKING
    w.run_for(2.0)
    assert w.asleep() == {"f"}


def test_a_restore_that_fails_without_a_reason_is_followed_by_a_start_without() -> None:
    w = asleep(world())
    w.fake.restores = lambda revision: SandboxFailed("no more processes")
    assert served(w, for_s=1.0) is StartKind.COLD
    assert w.asleep() == {"f"}, "nobody said that the snapshot is at fault"
    w.fake.restores = lambda revision: None
    w.run_for(10.0)
    assert served(w) is StartKind.RESTORED


def test_what_never_wakes_is_given_up_after_a_few_times() -> None:
    for hangs in (False, True):
        w = asleep(world(keepalive=Told() if hangs else FixedKeepalive(user_s=1.0, bare_s=0.0)))
        w.fake.seconds = Seconds(restore=math.inf if hangs else 0.02)
        w.fake.restores = lambda revision: SandboxFailed("its after_restore hook raised")
        deadline_s = start_timeout_s(w.fn("f").key) + 5.0
        for _ in range(FAILURES_MAX):
            request = w.arrive("f", within_s=1000.0)
            w.run_for(deadline_s)
            assert w.ok(request) and request.start is not StartKind.RESTORED
        assert len(w.done(m.Restore)) == FAILURES_MAX
        assert len(w.done(m.Forget)) == 1 and state(w) is SnapshotState.NONE and not w.fake.disk
        assert served(w, for_s=5.0) is not StartKind.RESTORED
        assert len(w.done(m.Sleep)) == 1, "nor is it made again"


def test_making_it_again_is_no_proof_that_it_wakes() -> None:
    w = asleep(world())
    w.fake.restores = lambda revision: SandboxFailed("its after_restore hook raised")
    for _ in range(FAILURES_MAX - 1):
        served(w, for_s=5.0)
    revision = w.fn("f").revision
    w.tell(m.Slept(revision.digest, SnapshotFacts(revision.digest, DISK, 0.02, 1.0)))
    served(w, for_s=5.0)
    assert state(w) is SnapshotState.NONE


def test_what_does_not_wake_while_the_server_ends_stays() -> None:
    w = asleep(world())
    w.fake.restores = lambda revision: SandboxFailed("no more processes")
    for _ in range(FAILURES_MAX - 1):
        served(w, for_s=5.0)
    w.arrive("f")
    w.tell(m.Draining())
    w.run_for(5.0)
    assert len(w.done(m.Restore)) == FAILURES_MAX and state(w) is SnapshotState.THERE


def test_a_start_that_fails_both_ways_is_told() -> None:
    w = asleep(world())
    w.fake.restores = lambda revision: SandboxFailed("no more processes")
    w.fake.starts = lambda revision: StartFailed("does not import")
    request = w.arrive("f")
    w.run_for(5.0)
    assert w.rejected(request, StartFailed)
    assert len(w.done(m.Restore)) == 1 and len(w.done(m.LoadUser)) == 1


def test_a_restore_that_hangs_is_given_up() -> None:
    w = asleep(world())
    w.fake.seconds = Seconds(restore=math.inf)
    request = w.arrive("f", within_s=1000.0)
    w.run_for(start_timeout_s(w.fn("f").key) + 2.0)
    assert w.ok(request) and request.start is StartKind.COLD


def test_each_of_a_burst_is_served_though_the_snapshot_is_damaged() -> None:
    w = asleep(world(), max_instances=3)
    w.fake.damaged.add("f-1")
    requests = [w.arrive("f", payload="ok") for _ in range(30)]
    w.run_for(5.0)
    assert w.ok(*requests)


def test_one_that_was_started_ahead_is_replaced_unless_the_server_ends() -> None:
    for ends in (False, True):
        w = asleep(world())
        w.fake.damaged.add("f-1")
        w.tell(m.Load("f"))
        if ends:
            w.tell(m.Draining())
        w.run_for(0.5)
        assert w.states("f") == ([] if ends else [State.READY])


def test_there_may_be_no_memory_for_the_long_way() -> None:
    w = asleep(world(budget_bytes=100 * MB))
    w.deploy("p", timeout_s=3.0)
    w.arrive("p", payload="hangs")
    w.run_for(0.5)
    (busy,) = w.ids("p")
    w.fake.damaged.add("f-1")
    request = w.arrive("f")
    w.tell(m.Measured(busy, 90 * MB))
    w.run_for(0.1)
    assert request not in w.answers and w.fn("f").starved
    w.run_for(5.0)
    assert w.ok(request), "as soon as there is"


# ---------------------------------------------------------------- making fails


def test_a_snapshot_that_cannot_be_made_is_tried_a_few_times() -> None:
    w = world()
    w.fake.sleeps = lambda revision: SandboxFailed("no space is left on the disk")
    w.deploy("f", **VM)
    for _ in range(FAILURES_MAX + 3):
        w.run_for(3.0)
        served(w, for_s=3.0)
    assert len(w.done(m.Sleep)) == FAILURES_MAX
    w.fake.sleeps = lambda revision: None
    w.deploy("f", **VM)
    w.run_for(3.0)
    assert w.asleep() == {"f"}, "a new deploy is a new chance"


def test_waking_well_ends_the_count() -> None:
    w = asleep(world())
    for _ in range(2 * FAILURES_MAX):
        served(w, for_s=3.0)
        w.fake.disk.clear()
        w.tell(m.SleepLost("f-1", SandboxFailed("deleted by somebody")))
        w.run_for(2.0)
        assert w.asleep() == {"f"}


def test_none_is_made_while_memory_is_short() -> None:
    w = world(budget_bytes=60 * MB)
    w.deploy("p", timeout_s=9.0)
    asleep(w)
    w.arrive("p", payload="hangs")
    w.run_for(1.0)
    assert w.held_bytes > 30 * MB
    w.fake.disk.clear()
    w.tell(m.SleepLost("f-1"))
    assert state(w) is SnapshotState.NONE


# ---------------------------------------------------------------- given up


def test_what_is_not_worth_its_disk_is_forgotten() -> None:
    rule = Told(Keep(20.0))
    w = asleep(world(keepalive=rule))
    rule.asleep = Drop()
    w.run_for(30.0)
    assert w.done(m.Forget) == [m.Forget(w.fn("f").revision)]
    assert not w.asleep() and not w.fake.disk and w.node.pool.ground.disk.held_bytes == 0
    assert rule.gone[-1] == (Layer.ASLEEP, False)
    assert len(rule.views) == 3


def test_a_window_is_only_over_if_nothing_came() -> None:
    rule = Told(Keep(3.0))
    w = asleep(world(keepalive=rule))
    for _ in range(4):
        served(w, for_s=2.5)
    assert not w.done(m.Forget)
    asked = len(rule.views)
    served(w, for_s=0.9)
    w.run_for(2.0)
    assert len(rule.views) <= asked + 1, "no question while an instance lives"


def test_after_one_was_given_up_the_next_has_to_be_worth_the_making() -> None:
    rule = Told(Keep(20.0))
    w = asleep(world(keepalive=rule))
    rule.asleep = Drop()
    w.run_for(30.0)
    rule.asleep = Keep(9.0)  # it takes a second to make one
    served(w, for_s=3.0)
    assert len(w.done(m.Sleep)) == 1
    rule.asleep = Keep(11.0)
    served(w, for_s=3.0)
    assert len(w.done(m.Sleep)) == 2


def test_one_that_saves_nothing_goes_and_is_not_made_again() -> None:
    w = world(seconds=Seconds(restore=5.0))
    w.deploy("f", **VM)
    w.run_for(2.0)
    assert len(w.done(m.Forget)) == 1 and not w.asleep()
    served(w, for_s=10.0)
    assert len(w.done(m.Sleep)) == 1


def test_a_new_revision_and_a_removal_take_it_along() -> None:
    w = asleep(world())
    first = w.fn("f").revision
    w.deploy("f", **VM)
    assert w.done(m.Forget) == [m.Forget(first)]
    w.tell(m.Removed("f"))
    assert len(w.done(m.Forget)) == 2, "though it was only being made"
    w.run_for(3.0)
    assert not w.fake.disk
    w.deploy("f")
    w.tell(m.Removed("f"))
    assert len(w.done(m.Forget)) == 2


def test_the_same_revision_again_changes_nothing() -> None:
    w = asleep(world())
    w.post(m.Deployed(w.fn("f").revision))
    assert len(w.done(m.Sleep)) == 1 and not w.done(m.Forget)


def test_events_about_what_nobody_knows_are_ignored() -> None:
    w = asleep(world())
    w.tell(m.Slept("x", SnapshotFacts("x", 1, 0.1, 1.0)))
    w.tell(m.SleepLost("x"))
    w.deploy("p")
    w.tell(m.SleepLost("p-1"))
    served(w)
    w.fake.disk.clear()
    w.tell(m.SleepLost("f-1"))
    w.tell(m.SleepLost("f-1"))
    snapshot = w.fn("f").snapshot
    assert snapshot is not None and snapshot.failures == 1


def test_a_timer_of_one_that_has_gone_rings_for_nothing() -> None:
    rule = Told(Keep(20.0))
    w = asleep(world(keepalive=rule))
    w.deploy("f", **VM)
    w.run_for(15.0)
    asked = len(rule.views)
    w.run_for(4.0)
    assert len(rule.views) == asked


def test_a_window_that_was_moved_is_waited_for() -> None:
    rule = Told(Keep(2.0))
    w = asleep(world(keepalive=rule))
    rule.asleep = Keep(20.0)
    served(w, for_s=1.5)  # the first window's timer rings in the second's
    asked = len(rule.views)
    w.run_for(10.0)
    assert len(rule.views) == asked


# ---------------------------------------------------------------- room on disk


def test_the_least_worth_goes_when_disk_is_short() -> None:
    rule = Told()
    rule.worth = {"f": 3.0, "g": 1.0, "h": 2.0}
    w = world(keepalive=rule, disk_bytes=2 * DISK)
    for name in "fgh":
        w.deploy(name, **VM)
    w.run_for(5.0)
    assert w.asleep() == {"f", "h"}
    assert w.node.pool.evictions == 0, "memory was not short"
    served(w, "g", for_s=5.0)
    assert w.asleep() == {"f", "h"} and len(w.done(m.Sleep)) == 3, "it would be the one to go"
    rule.worth["g"] = 4.0
    served(w, "g", for_s=5.0)
    assert w.asleep() == {"f", "g"}


def test_what_is_just_being_restored_stays() -> None:
    rule = Told()
    rule.worth = {"f": 1.0, "g": 2.0}
    w = world(keepalive=rule, disk_bytes=DISK, seconds=Seconds(restore=0.05, user=1.0))
    w.deploy("f", **VM)
    w.run_for(1.5)
    w.deploy("g", **VM)
    w.run_for(0.99)
    w.arrive("f")
    w.run_for(0.03)
    assert w.asleep() == {"f"}, "g came and found no room"


def test_the_runtime_of_a_micro_vm_is_on_disk() -> None:
    w = world(disk_bytes=10 * DISK, seconds=Seconds(sleep=math.inf))
    w.deploy("f", **VM)
    served(w, for_s=0.5)
    key = w.fn("f").key
    w.tell(m.Measured(key, 150 * MB))
    assert key not in w.meter.living, "no memory idles there"
    disk = w.node.pool.ground.disk
    assert disk.of(key) == 150 * MB and w.held_bytes == 32 * MB
    view = w.node.pool.runtimes.view(w.node.pool.langs[key])
    assert view.resident_bytes == math.ceil(150 * MB / DISK_BYTES_PER_MEMORY_BYTE)
    w.run_for(10.0)
    assert key in w.langs(), "a rule with windows for memory says nothing of disk"


def test_a_runtime_on_disk_may_be_the_least_worth() -> None:
    rule = Told()
    rule.worth = {"f": 5.0, "p": 5.0, None: 1.0}
    w = world(keepalive=rule, disk_bytes=2 * DISK)
    w.deploy("f", **VM)
    served(w, for_s=5.0)
    key = w.fn("f").key
    assert key in w.langs() and w.asleep() == {"f"}
    w.tell(m.Measured(key, 100 * MB))
    w.run_for(1.0)
    assert w.done(m.DropLang) == [m.DropLang(key, "disk")]
    assert w.asleep() == {"f"} and w.node.pool.ground.disk.held_bytes == DISK


def test_a_runtime_on_disk_that_is_in_use_stays_whatever_the_budget() -> None:
    w = world(disk_bytes=DISK, keepalive=FixedKeepalive(user_s=60.0), seconds=Seconds(sleep=math.inf))
    w.deploy("f", **VM)
    served(w)
    w.tell(m.Measured(w.fn("f").key, 2 * DISK))
    assert w.fn("f").key in w.langs() and not w.done(m.DropLang)


def test_a_runtime_that_nobody_raised_is_counted_and_goes_like_any_other() -> None:
    node = Node(1 << 30, Told(), DISK)
    key, disk = LangKey(("json",), vm_bytes=256 * MB), node.pool.ground.disk
    assert node.handle(m.LangFound(key, DISK), 1.0) == []
    assert node.pool.runtimes.idle(node.pool.langs[key])
    assert disk.held_bytes == DISK and node.pool.ledger.held_bytes == 0
    node.check()
    assert node.handle(m.LangFound(key, DISK + 1), 2.0) == [m.DropLang(key, "disk")], "the same, weighed again"
    node.check()
    assert node.handle(m.LangExited(key), 3.0) == []
    assert disk.held_bytes == 0
    node.check()


def test_a_runtime_that_is_found_while_instances_live_is_in_use() -> None:
    w = world(seconds=Seconds(sleep=math.inf), disk_bytes=DISK)
    w.deploy("f", **VM)
    served(w)
    node, now, key = w.node, w.now, w.fn("f").key
    node.handle(m.LangExited(key), now)
    assert node.handle(m.LangFound(key, 2 * DISK), now) == [], "though there is no room for it"
    node.check()
    assert not node.pool.runtimes.idle(node.pool.langs[key])


def test_what_is_on_disk_is_not_dropped_because_the_server_ends() -> None:
    w = world(seconds=Seconds(sleep=math.inf), keepalive=FixedKeepalive(user_s=600.0))
    w.deploy("f", **VM)
    served(w, for_s=2.0)
    w.tell(m.Draining(final=True))
    w.tell(m.Unload("f"))
    w.run_for(5.0)
    assert not w.ids("f") and not w.done(m.DropLang)


def test_memory_that_is_short_frees_no_disk() -> None:
    w = world(budget_bytes=60 * MB, keepalive=FixedKeepalive(user_s=1.0, lang_s=600.0, bare_s=0.0),
              seconds=Seconds(sleep=math.inf))  # fmt: skip
    w.deploy("f", **VM)
    served(w, for_s=5.0)
    w.deploy("p")
    served(w, "p", for_s=0.5)
    assert w.fn("f").key in w.langs()


def test_no_limit_of_disk_is_one_that_is_never_met() -> None:
    assert Node(1, NoKeepalive()).pool.ground.disk.budget_bytes > 1 << 60
    assert Node(1, NoKeepalive(), 7).pool.ground.disk.budget_bytes == 7


# ---------------------------------------------------------------- shown


def test_the_tree_shows_it() -> None:
    w = world()
    w.deploy("f", **VM)
    w.deploy("p")
    branch = {one.id: one for one in tree(w.node, w.now)}["asleep:f"]
    assert (branch.state, branch.disk_bytes, branch.idle_s) == ("making", 0, None)
    w.run_for(3.0)
    found = {one.id: one for one in tree(w.node, w.now)}
    branch, lang = found["asleep:f"], found["lang:microvm-256mb+python"]
    assert (branch.parent, lang.state, lang.children) == (lang.id, "gone", 1)
    assert (branch.layer, branch.name, branch.state) == (Layer.ASLEEP, "f", "asleep")
    assert (branch.resident_bytes, branch.disk_bytes, branch.startup_s) == (0, DISK, 0.02)
    assert (branch.uses, branch.saved_s, branch.expires_s) == (0, 0.0, None)
    assert branch.idle_s == pytest.approx(2.0)
    for _ in range(2):
        served(w, for_s=5.0)
    served(w)
    found = {one.id: one for one in tree(w.node, w.now)}
    branch = found["asleep:f"]
    assert (branch.uses, branch.saved_s, branch.idle_s) == (3, pytest.approx(3 * 0.045), None)
    (instance,) = [one for one in found.values() if one.layer is Layer.USER]
    assert instance.startup_s == pytest.approx(0.02)


def test_idling_of_what_woke_up_is_metered() -> None:
    w = asleep(world())
    served(w, for_s=0.5)
    (node,) = w.ids("f")
    w.meter.resident(node, 10 * MB, w.now)
    served(w, for_s=3.0)
    assert not w.meter.living
    assert w.meter.used_byte_s[Layer.USER] + w.meter.wasted_byte_s[Layer.USER] > 0


def test_a_guest_has_more_time_to_come_up() -> None:
    assert start_timeout_s(LangKey(("json",), vm_bytes=256 * MB)) > start_timeout_s(LangKey(("json",)))
