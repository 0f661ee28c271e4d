"""Queues, batches and instances of one node, in virtual time: what a caller gets, and what it costs."""

from __future__ import annotations

import math

import pytest

from rewarm.errors import (
    Busy,
    DeadlineExceeded,
    FunctionTimeout,
    InstanceDied,
    NotFound,
    OutOfMemory,
    RewarmError,
    SandboxFailed,
    StartFailed,
    Unavailable,
)
from rewarm.facts import messages as m
from rewarm.facts.function import PolicySpec
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.sandbox import StartKind
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.testing import Outcome, Seconds, World

START_S = 12_345.678  # sums of such numbers are never exact


def dynamic(size: int, max_wait_s: float = 0.0) -> PolicySpec:
    return PolicySpec("dynamic", {"max_size": size, "max_wait_s": max_wait_s})


def static(size: int) -> PolicySpec:
    return PolicySpec("static", {"size": size})


@pytest.fixture
def world() -> World:
    """User code does what the payload of a request says."""
    return World(start_s=START_S, behave=lambda request: Outcome(request.payload or "ok"))


# ---------------------------------------------------------------- from zero


def test_one_request_from_nothing(world: World) -> None:
    world.deploy("f")
    request = world.arrive("f")
    world.run_for(5.0)
    assert world.ok(request)
    assert request.start is StartKind.COLD
    assert request.init_s > 0
    kinds = [type(effect) for effect in world.effects]
    assert kinds == [m.RaiseLang, m.RaiseBare, m.Fork, m.LoadUser, m.Run]
    assert world.states("f") == [State.READY]


def test_the_next_one_is_warm(world: World) -> None:
    world.deploy("f")
    world.arrive("f")
    world.run_for(5.0)
    request = world.arrive("f")
    world.run_for(5.0)
    assert world.ok(request)
    assert (request.start, request.init_s) == (StartKind.WARM, 0.0)
    assert len(world.done(m.RaiseBare)) == 1


def test_a_burst_at_zero_that_one_batch_serves_starts_one(world: World) -> None:
    world.deploy("f", max_instances=8, batching=dynamic(128))
    requests = world.burst("f", 100)
    world.run_for(5.0)
    assert world.ok(*requests)
    assert len(world.done(m.RaiseBare)) == len(world.done(m.LoadUser)) == len(world.done(m.RaiseLang)) == 1
    assert [len(run.requests) for run in world.done(m.Run)] == [100]


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_a_burst_at_zero_never_starts_more_than_allowed(limit: int) -> None:
    world = World(start_s=START_S, seconds=Seconds(run=0.5))
    world.deploy("f", max_instances=limit)
    requests = world.burst("f", 100)
    world.run_for(200.0)
    assert world.ok(*requests)
    assert len(world.done(m.RaiseBare)) == limit
    assert len(world.done(m.RaiseLang)) == 1


def test_functions_with_the_same_packages_share_a_zygote(world: World) -> None:
    world.deploy("f")
    world.deploy("g")
    requests = [world.arrive("f"), world.arrive("g")]
    world.run_for(5.0)
    assert world.ok(*requests)
    assert len(world.done(m.RaiseLang)) == 1


def test_a_queue_that_is_soon_served_is_not_worth_a_start() -> None:
    world = World(start_s=START_S, seconds=Seconds(zygote=1.0, run=0.001, row=0.0))
    world.deploy("f", max_instances=4)
    world.arrive("f")
    world.run_for(5.0)
    requests = world.burst("f", 50)
    world.run_for(5.0)
    assert world.ok(*requests)
    assert len(world.done(m.RaiseBare)) == 1


def test_waiting_as_long_as_a_start_takes_is_the_evidence_for_one_more(world: World) -> None:
    world.deploy("f", max_instances=2, timeout_s=30.0)
    hanging = world.arrive("f", payload="hangs")
    world.run_for(2.0)
    served = world.arrive("f")  # how long a run takes is not known: none has ended
    world.run_for(2.0)
    assert world.ok(served)
    assert hanging not in world.answers
    assert len(world.done(m.RaiseBare)) == 2


@pytest.mark.parametrize("start_s", [n * 1_234.567 for n in range(40)])
def test_a_moment_that_rounding_puts_off_does_come(start_s: float) -> None:
    """Sums of floats are not exact; a core that insisted would ask for the same moment for ever."""
    world = World(start_s=start_s, seconds=Seconds(user=0.1 + start_s / 1e5, run=math.inf, row=0.0))
    world.deploy("f", max_instances=2, timeout_s=30.0)
    world.arrive("f")
    world.run_for(2.01 + start_s / 1e5)
    world.arrive("f")
    world.run_for(10.0)
    assert len(world.done(m.RaiseBare)) == 2


# ---------------------------------------------------------------- refusals


def test_unknown_function(world: World) -> None:
    request = world.arrive("nobody")
    assert world.rejected(request, NotFound)


def test_full_queue(world: World) -> None:
    world.deploy("f", queue_max=3, max_instances=1)
    requests = world.burst("f", 5)
    assert [world.rejected(request, Busy) for request in requests] == [False, False, False, True, True]
    error = world.answers[requests[3]]
    assert isinstance(error, Busy)
    assert error.retry_after_s is not None and 1.0 <= error.retry_after_s < math.inf
    world.run_for(5.0)
    assert world.ok(*requests[:3])


def test_deadline_in_the_queue(world: World) -> None:
    world.deploy("f", max_instances=1)
    first = world.arrive("f", payload="hangs")
    late = world.arrive("f", within_s=1.0)
    patient = world.arrive("f", within_s=600.0)
    world.run_for(2.0)
    assert world.rejected(late, DeadlineExceeded)
    world.run_for(100.0)
    assert world.rejected(first, FunctionTimeout)
    assert world.ok(patient)
    assert late not in world.fake.ran


def test_a_deadline_that_passes_during_a_start_says_so(world: World) -> None:
    world.fake.seconds = Seconds(user=8.0)
    world.deploy("f", max_instances=1)
    hurried, patient = world.arrive("f", within_s=2.0), world.arrive("f", payload="hangs")
    world.run_for(3.0)
    said = str(world.answers[hurried])
    assert "2000 ms in the queue, while an instance was still starting; the work was not run" in said
    world.run_for(10.0)
    queued = world.arrive("f", within_s=1.0)
    world.run_for(2.0)
    assert patient not in world.answers
    assert "1000 ms in the queue; the work was not run" in str(world.answers[queued])


def test_a_deadline_that_has_passed_when_the_request_comes(world: World) -> None:
    world.deploy("f")
    world.arrive("f")
    world.run_for(5.0)
    late = world.arrive("f", within_s=-0.5)
    assert world.rejected(late, DeadlineExceeded)
    assert len(world.fake.ran) == 1


def test_deadlines_in_any_order(world: World) -> None:
    world.deploy("f", max_instances=1)
    world.arrive("f", payload="hangs")
    waits = [5.0, 1.0, 3.0, 2.0, 4.0]
    requests = [world.arrive("f", within_s=wait) for wait in waits]
    for second in range(1, 6):
        world.run_for(1.0)
        gone = {wait for wait, request in zip(waits, requests, strict=True) if request in world.answers}
        assert gone == {wait for wait in waits if wait <= second}


# ---------------------------------------------------------------- user code misbehaves


def test_an_exception_is_an_answer(world: World) -> None:
    world.deploy("f", batching=dynamic(4))
    requests = [world.arrive("f", payload=word) for word in ("ok", "error", "ok")]
    world.run_for(5.0)
    assert world.ok(requests[0], requests[2]) and not world.ok(requests[1])
    assert world.states("f") == [State.READY]
    assert not world.done(m.Destroy)


def test_hang(world: World) -> None:
    world.deploy("f", max_instances=1, timeout_s=3.0)
    hanging = world.arrive("f", payload="hangs")
    rest = world.burst("f", 5)
    world.run_for(20.0)
    assert world.rejected(hanging, FunctionTimeout)
    assert world.ok(*rest)
    assert len(world.done(m.RaiseBare)) == 2
    assert [effect.reason for effect in world.done(m.Destroy)] == ["timeout"]


@pytest.mark.parametrize(
    ("word", "error"), [("dies", InstanceDied), ("exits", InstanceDied), ("eats memory", OutOfMemory)]
)
def test_a_crash_hurts_its_batch_only(world: World, word: str, error: type[RewarmError]) -> None:
    world.deploy("f", max_instances=1, batching=dynamic(3))
    requests = [world.arrive("f", payload=what) for what in ("ok", word, "ok", "ok", "ok")]
    world.run_for(20.0)
    assert [world.rejected(request, error) for request in requests] == [True, True, True, False, False]
    assert world.ok(*requests[3:])
    assert len(world.done(m.RaiseBare)) == 2


def test_an_end_without_a_reason_is_still_an_answer(world: World) -> None:
    world.deploy("f")
    request = world.arrive("f", payload="hangs")
    world.run_for(2.0)
    (busy,) = world.ids("f")
    (reject,) = world.node.handle(m.Exited(busy), world.now)  # a driver owes an error here
    assert isinstance(reject, m.Reject)
    assert reject.request is request and type(reject.error) is InstanceDied


def test_an_idle_instance_dies(world: World) -> None:
    world.deploy("f")
    world.arrive("f")
    world.run_for(2.0)
    world.fake.kill(world.ids("f")[0])
    assert world.ids("f") == []
    request = world.arrive("f")
    world.run_for(2.0)
    assert world.ok(request)
    assert request.start is StartKind.LANG


def test_an_instance_that_gathers_dies(world: World) -> None:
    world.deploy("f", batching=dynamic(8, max_wait_s=5.0))
    request = world.arrive("f")
    world.run_for(2.0)
    assert world.states("f") == [State.READY]
    world.fake.kill(world.ids("f")[0])
    world.run_for(10.0)
    assert world.ok(request)


def test_one_of_two_dies_while_the_queue_gathers(world: World) -> None:
    world.deploy("f", batching=static(4), max_instances=2, timeout_s=600.0)
    world.burst("f", 4, payload="hangs", within_s=600.0)
    world.run_for(2.0)
    rest = world.burst("f", 3, within_s=600.0)
    world.run_for(2.0)
    assert sorted(state.value for state in world.states("f")) == ["busy", "ready"]
    world.fake.kill(world.ids("f")[0])
    rest.append(world.arrive("f", within_s=600.0))
    world.run_for(2.0)
    assert world.ok(*rest)


# ---------------------------------------------------------------- starts that fail


def test_a_failed_start_answers_all_who_waited_and_is_not_repeated_for_them(world: World) -> None:
    world.fake.starts = lambda revision: StartFailed("does not import")
    world.deploy("f", max_instances=4)
    requests = world.burst("f", 20)
    world.run_for(20.0)
    assert all(world.rejected(request, StartFailed) for request in requests)
    assert len(world.done(m.LoadUser)) == 1
    assert isinstance(world.fn("f").last_error, StartFailed)


def test_the_next_request_tries_once_more(world: World) -> None:
    world.fake.starts = lambda revision: StartFailed("does not import")
    world.deploy("f")
    world.arrive("f")
    world.run_for(5.0)
    again = world.arrive("f")
    world.run_for(5.0)
    assert world.rejected(again, StartFailed)
    assert len(world.done(m.LoadUser)) == 2
    world.fake.starts = lambda revision: None
    good = world.arrive("f")
    world.run_for(5.0)
    assert world.ok(good)
    assert world.fn("f").last_error is None


def test_a_request_right_after_a_failed_start_gets_one_of_its_own(world: World) -> None:
    world.fake.fail_at = 2  # RaiseBare, at once
    world.deploy("f")
    lost = world.arrive("f")
    assert world.rejected(lost, SandboxFailed)
    request = world.arrive("f")
    world.run_for(2.0)
    assert world.ok(request)


def test_a_failed_start_beside_a_living_instance_costs_nobody_an_answer() -> None:
    world = World(start_s=START_S, seconds=Seconds(run=2.0))
    world.deploy("f", max_instances=2)
    first = world.arrive("f")
    world.run_for(1.0)
    world.fake.starts = lambda revision: StartFailed("does not import")
    rest = world.burst("f", 4)
    world.run_for(60.0)
    assert world.ok(first, *rest)


def test_a_zygote_that_cannot_be_raised(world: World) -> None:
    world.fake.langs = lambda key: StartFailed("No module named 'nonsense'")
    world.deploy("f", preload=("nonsense",), max_instances=2)
    requests = world.burst("f", 3)
    world.run_for(5.0)
    assert all(world.rejected(request, StartFailed) for request in requests)
    assert not world.node.pool.sandboxes and not world.langs()
    world.fake.langs = lambda key: None
    good = world.arrive("f")
    world.run_for(5.0)
    assert world.ok(good)


def test_a_start_that_never_ends_is_stopped() -> None:
    world = World(start_s=START_S, seconds=Seconds(user=math.inf))
    world.deploy("f", timeout_s=1.0)
    request = world.arrive("f", within_s=math.inf)
    world.run_for(1000.0)
    assert world.rejected(request, StartFailed)
    assert [effect.reason for effect in world.done(m.Destroy)] == ["start timeout"]
    assert not world.node.pool.sandboxes


def test_a_zygote_that_never_comes_up_is_stopped_too() -> None:
    world = World(start_s=START_S, seconds=Seconds(zygote=math.inf))
    world.deploy("f")
    request = world.arrive("f", within_s=math.inf)
    world.run_for(1000.0)
    assert world.rejected(request, StartFailed)
    assert not world.langs()
    world.fake.seconds.zygote = 0.2
    good = world.arrive("f")
    world.run_for(5.0)
    assert world.ok(good)


def test_a_start_timeout_beside_a_living_instance_costs_nobody_an_answer() -> None:
    world = World(start_s=START_S, seconds=Seconds(run=2.0))
    world.deploy("f", max_instances=2)
    first = world.arrive("f")
    world.run_for(1.0)
    world.fake.seconds.user = math.inf
    rest = world.burst("f", 200, within_s=math.inf)
    world.run_for(1000.0)
    assert world.ok(first, *rest)


# ---------------------------------------------------------------- batching


def test_a_lone_caller_on_an_idle_instance_does_not_wait(world: World) -> None:
    world.deploy("f", batching=dynamic(16))
    world.arrive("f")
    world.run_for(5.0)
    before = len(world.done(m.Run))
    world.arrive("f")
    assert len(world.done(m.Run)) == before + 1


def test_the_policy_gathers(world: World) -> None:
    world.deploy("f", batching=dynamic(3, max_wait_s=1.0))
    world.arrive("f")
    world.run_for(5.0)
    requests = world.burst("f", 2)
    assert not any(request in world.answers for request in requests)
    world.run_for(0.5)
    assert not any(request in world.answers for request in requests)
    third = world.arrive("f")
    world.run_for(0.1)
    assert world.ok(*requests, third)
    lone = world.arrive("f")
    world.run_for(1.5)
    assert world.ok(lone)
    assert [len(run.requests) for run in world.done(m.Run)] == [1, 3, 1]


@pytest.mark.parametrize("name", ["slo", "aimd"])
def test_policies_that_learn_from_arrivals(world: World, name: str) -> None:
    world.deploy("f", batching=PolicySpec(name), slo_s=0.2)
    requests = []
    for _ in range(100):
        requests.append(world.arrive("f"))
        world.run_for(0.02)
    world.run_for(5.0)
    assert world.ok(*requests)


def test_static_keeps_a_remainder_until_it_is_flushed(world: World) -> None:
    world.deploy("f", batching=static(4))
    requests = world.burst("f", 6, within_s=1000.0)
    world.run_for(30.0)
    assert world.ok(*requests[:4])
    assert not any(request in world.answers for request in requests[4:])
    world.tell(m.Flush("f"))
    world.run_for(30.0)
    assert world.ok(*requests)


def test_a_flush_without_an_idle_instance(world: World) -> None:
    world.deploy("f", batching=static(4))
    requests = world.burst("f", 3, within_s=1000.0)
    world.tell(m.Flush("f"))
    world.run_for(30.0)
    assert world.ok(*requests)


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_flush_is_over_once_the_queue_was_empty(world: World, how: str) -> None:
    world.deploy("f", batching=static(2), max_instances=1)
    world.arrive("f", payload="hangs", within_s=100.0)
    world.arrive("f", within_s=100.0)
    world.run_for(2.0)
    request = world.arrive("f", within_s=5.0)
    world.tell(m.Flush("f"))
    if how == "cancelled":
        world.cancel(request)
    world.run_for(10.0)
    gathering = world.arrive("f", within_s=500.0)
    world.run_for(100.0)  # the hanging batch is over
    assert world.states("f") == [State.READY]
    assert gathering not in world.answers


def test_a_flush_of_nothing(world: World) -> None:
    world.deploy("f", batching=static(4))
    world.tell(m.Flush("f"))
    world.tell(m.Flush("nobody"))
    request = world.arrive("f")
    world.run_for(30.0)
    assert request not in world.answers


@pytest.mark.parametrize("batching", [dynamic(8, max_wait_s=3.0), static(8)])
def test_an_instance_that_the_queue_waits_for_is_not_idle(batching: PolicySpec) -> None:
    """Not kept alive by any policy, and not started over and over while its batch gathers."""
    world = World(keepalive=NoKeepalive(), start_s=START_S)
    world.deploy("f", batching=batching)
    request = world.arrive("f", within_s=20.0)
    world.run_for(10.0)
    assert len(world.done(m.RaiseBare)) == 1
    world.run_for(20.0)
    assert request in world.answers
    world.run_for(20.0)
    assert not world.node.pool.sandboxes


# ---------------------------------------------------------------- cancelling, draining


def test_a_cancelled_request_is_not_run(world: World) -> None:
    world.deploy("f", max_instances=1)
    running = world.arrive("f")
    world.run_for(0.2)
    queued = world.burst("f", 3)
    world.cancel(queued[1])
    world.run_for(5.0)
    assert world.ok(running, queued[0], queued[2])
    assert queued[1] not in world.fake.ran


def test_a_running_request_cannot_be_taken_back(world: World) -> None:
    world.deploy("f")
    world.arrive("f")
    world.run_for(5.0)
    running = world.arrive("f")
    world.cancel(running)
    world.run_for(5.0)
    assert world.ok(running)
    world.cancel(running)
    world.cancel(Request("nobody", 0.0, 1.0))


def test_draining(world: World) -> None:
    world.deploy("f", batching=static(4), max_instances=1)
    world.deploy("g")
    waiting = world.burst("f", 6, within_s=1000.0)
    world.tell(m.Draining())
    assert world.node.unfinished == 6
    refused = world.arrive("f")
    assert world.rejected(refused, Unavailable)
    assert world.rejected(world.arrive("nobody"), Unavailable)
    world.run_for(30.0)
    assert world.ok(*waiting)
    assert world.node.unfinished == 0
    world.tell(m.Load("g"))
    assert not world.ids("g")


# ---------------------------------------------------------------- deploys


def test_redeploy_drains_the_old_revision() -> None:
    world = World(start_s=START_S, seconds=Seconds(run=1.0))
    world.deploy("f", max_instances=1)
    old = world.arrive("f")
    world.run_for(0.5)
    assert world.states("f") == [State.BUSY]
    waiting = world.arrive("f")
    revision = world.deploy("f", max_instances=1)
    fresh = world.arrive("f")
    world.run_for(20.0)
    assert world.ok(old, waiting, fresh)
    assert [load.revision.version for load in world.done(m.LoadUser)] == [1, 2]
    assert [s.revision for s in world.fn("f").sandboxes.values()] == [revision]
    runs = [list(run.requests) for run in world.done(m.Run)]
    assert runs == [[old], [waiting], [fresh]]


def test_redeploy_replaces_what_is_idle_or_rising(world: World) -> None:
    world.deploy("f", max_instances=2)
    world.arrive("f")
    world.run_for(5.0)
    world.deploy("f", max_instances=2)
    world.run_for(5.0)
    assert world.ids("f") == []
    request = world.arrive("f")
    world.deploy("f", max_instances=2)
    world.run_for(5.0)
    assert world.ok(request)
    assert world.done(m.LoadUser)[-1].revision.version == 3


def test_the_same_revision_again_changes_nothing(world: World) -> None:
    revision = world.deploy("f")
    world.arrive("f")
    world.run_for(5.0)
    world.tell(m.Deployed(revision))
    assert world.states("f") == [State.READY]


def test_a_redeploy_with_another_runtime(world: World) -> None:
    world.deploy("f")
    world.arrive("f")
    world.run_for(5.0)
    world.deploy("f", preload=("numpy",))
    request = world.arrive("f")
    world.run_for(5.0)
    assert world.ok(request)
    assert {str(key) for key in world.langs()} == {"python", "python+numpy"}


def test_remove() -> None:
    world = World(start_s=START_S, seconds=Seconds(run=1.0))
    world.deploy("f", max_instances=1)
    running = world.arrive("f")
    world.run_for(0.5)
    queued = world.arrive("f")
    world.tell(m.Removed("f"))
    assert world.rejected(queued, NotFound)
    assert world.rejected(world.arrive("f"), NotFound)
    world.run_for(5.0)
    assert world.ok(running)
    assert not world.node.pool.sandboxes
    world.tell(m.Removed("f"))


def test_removed_while_it_rises_and_deployed_again(world: World) -> None:
    world.deploy("f")
    lost = world.arrive("f")
    world.tell(m.Removed("f"))
    assert world.rejected(lost, NotFound)
    world.deploy("f")
    request = world.arrive("f")
    world.run_for(100.0)
    assert world.ok(request)


def test_a_removed_function_whose_instance_hangs(world: World) -> None:
    world.deploy("f", timeout_s=5.0)
    hanging = world.arrive("f", payload="hangs")
    world.run_for(1.0)
    world.tell(m.Removed("f"))
    world.run_for(10.0)
    assert world.rejected(hanging, FunctionTimeout)
    assert not world.node.pool.sandboxes


def test_removed_while_it_ends(world: World) -> None:
    world.deploy("f")
    world.arrive("f")
    world.run_for(2.0)
    world.tell(m.Unload("f"))
    world.tell(m.Removed("f"))
    world.run_for(2.0)
    assert len(world.done(m.Destroy)) == 1
    assert not world.node.pool.sandboxes


# ---------------------------------------------------------------- load and unload


def test_load_makes_ready_and_once_only(world: World) -> None:
    world.deploy("f")
    world.tell(m.Load("f"))
    world.tell(m.Load("f"))
    world.run_for(5.0)
    world.tell(m.Load("f"))
    world.tell(m.Load("nobody"))
    assert world.states("f") == [State.READY]
    request = world.arrive("f")
    assert (request.start, request.init_s) == (StartKind.WARM, 0.0)


def test_unload(world: World) -> None:
    world.deploy("f")
    world.arrive("f")
    world.run_for(5.0)
    world.tell(m.Unload("nobody"))
    world.tell(m.Unload("f"))
    assert world.states("f") == [State.DYING]
    world.run_for(1.0)
    assert world.ids("f") == []
    assert world.langs()


# ---------------------------------------------------------------- messages that cross


def test_reports_about_the_unknown_are_ignored(world: World) -> None:
    world.deploy("f")
    key = world.fn("f").key
    for event in (
        m.RunDone(99, 0.1), m.Raised(99, State.READY, 0.1), m.Exited(99), m.Measured(99, 1), m.Measured(key, 1),
        m.LangRaised(key, 0.1), m.LangExited(key),
    ):  # fmt: skip
        assert world.node.handle(event, world.now) == []


def test_an_answer_that_comes_after_the_timeout_is_too_late(world: World) -> None:
    world.deploy("f", timeout_s=1.0, max_instances=1)
    request = world.arrive("f", payload="hangs")
    world.run_for(0.5)
    (sandbox_id,) = world.ids("f")
    world.fake.seconds.exit = 10.0
    world.run_for(1.0)
    assert world.rejected(request, FunctionTimeout)
    assert world.node.handle(m.RunDone(sandbox_id, 1.0), world.now) == []
    world.node.check()


def test_progress_of_one_that_was_told_to_end_is_ignored(world: World) -> None:
    world.deploy("f")
    world.tell(m.Load("f"))
    (sandbox_id,) = world.ids("f")
    world.fake.seconds.exit = 10.0
    world.deploy("f")
    assert world.states("f") == [State.DYING]
    assert world.node.handle(m.Raised(sandbox_id, State.LANG, 0.1), world.now) == []


def test_what_things_look_like(world: World) -> None:
    world.deploy("f")
    world.arrive("f", payload="hangs")
    world.run_for(2.0)
    world.arrive("f")
    (sandbox,) = world.fn("f").sandboxes.values()
    assert repr(world.fn("f")) == "<f v1: 1 queued, 1 sandboxes>"
    assert repr(sandbox) == "<sandbox 1 f busy, 1 requests>"
    assert [repr(lang) for lang in world.node.pool.langs.values()] == ["<lang python alive>"]


def test_a_driver_failure_is_named(world: World) -> None:
    world.fake.fail_at = 3  # the fork
    world.deploy("f")
    request = world.arrive("f")
    world.run_for(5.0)
    assert world.rejected(request, SandboxFailed)
