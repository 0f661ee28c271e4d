"""What leaves a queue, and in which order the rest stays. In the node: policies that pick, profiles that come later."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest

from rewarm.core.taking import take
from rewarm.errors import BadDefinition, DeadlineExceeded
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, PolicySpec, Revision
from rewarm.facts.messages import Effect
from rewarm.facts.profile import Profile
from rewarm.facts.request import Request
from rewarm.policy.batching.base import Decision, Dispatch, Pick, Wait
from rewarm.policy.batching.none import NoBatching
from rewarm.testing import World

NOW = 50.0


def requests(*deadlines_s: float) -> list[Request]:
    return [Request("f", 0.0, deadline_s) for deadline_s in deadlines_s]


def late(out: list[Effect]) -> list[Request]:
    assert all(isinstance(effect, m.Reject) and isinstance(effect.error, DeadlineExceeded) for effect in out)
    return [effect.request for effect in out if isinstance(effect, m.Reject)]


def test_the_oldest_leave() -> None:
    given = requests(60, 60, 60)
    queue, out = deque(given), list[Effect]()
    assert take(queue, Dispatch(2), NOW, out) == given[:2]
    assert list(queue) == given[2:]
    assert take(queue, Dispatch(9), NOW, out) == given[2:]
    assert not queue and not out


def test_the_late_are_answered_and_replaced_by_the_next() -> None:
    given = requests(60, 50, 60, 60)
    queue, out = deque(given), list[Effect]()
    assert take(queue, Dispatch(2), NOW, out) == [given[0], given[2]]
    assert list(queue) == given[3:]
    assert late(out) == [given[1]]


def test_picked_ones_leave_in_their_order_and_the_rest_keeps_its_own() -> None:
    given = requests(60, 60, 60, 60, 60)
    queue, out = deque(given), list[Effect]()
    assert take(queue, Pick((1, 2, 4)), NOW, out) == [given[1], given[2], given[4]]
    assert list(queue) == [given[0], given[3]]
    assert not out


def test_nobody_is_taken_instead_of_a_picked_one_that_is_late() -> None:
    given = requests(60, 50, 60)
    queue, out = deque(given), list[Effect]()
    assert take(queue, Pick((1, 2)), NOW, out) == [given[2]]
    assert list(queue) == given[:1]
    assert late(out) == [given[1]]


class EveryOther(NoBatching):
    """Picks the second and the fourth of four."""

    def decide(self, queue: Sequence[Request], now: float) -> Decision:
        return Pick((1, 3)) if len(queue) == 4 else Wait(None)


def test_the_node_runs_what_was_picked() -> None:
    world = World()
    world.deploy("f")
    world.fn("f").batching = EveryOther(world.fn("f").revision.spec)
    sent = [world.arrive("f") for _ in range(4)]
    world.run_for(5.0)
    assert [effect.requests for effect in world.done(m.Run)] == [[sent[1], sent[3]]]
    assert list(world.fn("f").queue) == [sent[0], sent[2]]


PROFILE = Profile((1, 2, 4), (10,), ((0.01, 0.012, 0.02),))
NEW_PROFILE = Profile((1, 2), (10,), ((0.01, 0.012),))


def test_a_new_profile_is_planned_with_from_then_on() -> None:
    world = World()
    spec = FunctionSpec("f", "predict", "app:F", slo_s=0.2, batching=PolicySpec("batch"))
    revision = Revision(spec, "abc", 1, "code")
    with pytest.raises(BadDefinition, match="rewarm profile f"):
        world.node.handle(m.Deployed(revision), world.now)
    assert not world.node.functions
    world.post(m.Deployed(revision, PROFILE))
    assert world.fn("f").batching.max_size == 4
    world.post(m.Deployed(revision, NEW_PROFILE))
    assert world.fn("f").batching.max_size == 2
    request = world.arrive("f")
    world.run_for(5.0)
    assert world.ok(request)


def test_a_deploy_that_changes_nothing_forgets_nothing() -> None:
    world = World()
    revision = world.deploy("f", slo_s=0.2, batching="slo", kind="predict")
    learnt = world.fn("f").batching
    world.post(m.Deployed(revision))
    assert world.fn("f").batching is learnt
