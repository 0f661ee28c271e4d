"""Behaviours that a review asked for: takeover by a new revision, the end of draining, a bounded timer heap."""

from __future__ import annotations

import dataclasses

from rewarm.core.node import Node
from rewarm.core.timers import Timers
from rewarm.errors import Unavailable
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, PolicySpec, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState as State
from rewarm.policy.keepalive.fixed import FixedKeepalive


def revision(version: int = 1, **changes: object) -> Revision:
    spec = FunctionSpec("f", "handler", "app:f", max_instances=1, timeout_s=3600.0)
    return Revision(dataclasses.replace(spec, **changes), f"digest{version}", version, "/code")


def node() -> Node:
    return Node(1 << 30, FixedKeepalive())


def up(machine: Node, sandbox_id: int, now: float) -> list[m.Effect]:
    out: list[m.Effect] = []
    for state in (State.BARE, State.LANG, State.USER, State.READY):
        out += machine.handle(m.Raised(sandbox_id, state, 0.0), now)
        if state is State.BARE:
            for effect in out:
                if isinstance(effect, m.RaiseLang):
                    out += machine.handle(m.LangRaised(effect.key, 0.0), now)
    return out


def started(effects: list[m.Effect]) -> list[int]:
    return [effect.sandbox_id for effect in effects if isinstance(effect, m.RaiseBare)]


def test_a_new_revision_does_not_wait_for_a_run_of_the_old_one() -> None:
    machine = node()
    machine.handle(m.Deployed(revision(1)), 0.0)
    (old,) = started(machine.handle(m.Arrived(Request("f", 0.0, 3600.0)), 0.0))
    assert any(isinstance(effect, m.Run) for effect in up(machine, old, 0.1))
    machine.handle(m.Deployed(revision(2)), 1.0)
    (new,) = started(machine.handle(m.Arrived(Request("f", 1.0, 3600.0)), 1.0))
    assert new != old
    machine.check()


def test_the_final_draining_refuses_the_queue_and_starts_nothing() -> None:
    machine = node()
    machine.handle(m.Deployed(revision()), 0.0)
    (sandbox_id,) = started(machine.handle(m.Arrived(Request("f", 0.0, 3600.0)), 0.0))
    waiting = Request("f", 0.1, 3600.0)
    machine.handle(m.Arrived(waiting), 0.1)
    refused = machine.handle(m.Draining(final=True), 0.2)
    errors = [effect.error for effect in refused if isinstance(effect, m.Reject)]
    assert len(errors) == 2 and all(isinstance(error, Unavailable) for error in errors)
    assert started(machine.handle(m.Exited(sandbox_id), 0.3)) == []


def test_the_final_draining_tells_who_is_running_that_the_server_ends() -> None:
    machine = node()
    machine.handle(m.Deployed(revision()), 0.0)
    running = Request("f", 0.0, 3600.0)
    (sandbox_id,) = started(machine.handle(m.Arrived(running), 0.0))
    up(machine, sandbox_id, 0.1)
    assert machine.unfinished == 1
    assert not machine.handle(m.Draining(), 0.2)
    destroy, reject = machine.handle(m.Draining(final=True), 0.3)
    assert destroy == m.Destroy(sandbox_id, "shutdown")
    assert isinstance(reject, m.Reject) and reject.request is running and isinstance(reject.error, Unavailable)
    assert machine.handle(m.RunDone(sandbox_id, 0.1), 0.4) == []
    assert not any(isinstance(effect, m.Reject) for effect in machine.handle(m.Exited(sandbox_id), 0.5))
    assert machine.unfinished == 0
    machine.check()


def test_holds_leave_no_pile_of_timers() -> None:
    machine = node()
    gathering = PolicySpec("dynamic", {"max_size": 8, "max_wait_s": 0.005})
    machine.handle(m.Deployed(revision(batched=True, batching=gathering)), 0.0)
    (sandbox_id,) = started(machine.handle(m.Arrived(Request("f", 0.0, 3600.0)), 0.0))
    up(machine, sandbox_id, 0.001)
    now = 0.01
    for _ in range(20_000):
        machine.handle(m.Tick(), now)
        machine.handle(m.RunDone(sandbox_id, 0.0001), now + 0.0001)
        machine.handle(m.Arrived(Request("f", now + 0.001, now + 3600.0)), now + 0.001)
        now += 0.01
    assert len(machine.timers) < 2048


def test_compaction_keeps_what_is_still_wanted() -> None:
    class Sleeper:
        timer_at_s = float("inf")

    timers, sleepers = Timers(), [Sleeper() for _ in range(1500)]
    for sleeper in sleepers:
        timers.arm(sleeper, 100.0)
    for at_s in range(99, 0, -1):
        timers.arm(sleepers[0], float(at_s))
    assert timers.pop_due(1.0) is sleepers[0]
    woken = set()
    while (sleeper := timers.pop_due(100.0)) is not None:
        woken.add(id(sleeper))
    assert woken == {id(sleeper) for sleeper in sleepers[1:]}
