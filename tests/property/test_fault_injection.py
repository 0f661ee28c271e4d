"""The n-th thing that a driver is asked to do goes wrong, for every n: the same promises hold as on a good day.

`World` checks the invariants after every event. What is asked here: the scenario ends with every caller answered,
most of them well, the node serves on afterwards, and nothing is left over.
"""

from __future__ import annotations

import pytest

from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, PolicySpec
from rewarm.facts.request import Request
from rewarm.policy.keepalive.base import Prewarm
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.sandbox.guard import GuardedDriver
from rewarm.sandbox.port import Node, SandboxDriver, Sink
from rewarm.testing import Outcome, Seconds, World

MB = 1 << 20
CALLS = 150  # how many effects the scenario has at least, and so how many can go wrong


class Ahead(FixedKeepalive):
    """Has two instances of whatever was asked for, some seconds later."""

    watches_arrivals = True

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return Prewarm(2.5, 2)


def scenario(world: World) -> list[Request]:
    """Starts, batches, a crash, a hang, an eviction, a redeploy, a removal, idle layers dropped one by one or taken."""
    batching = PolicySpec("dynamic", {"max_size": 4, "max_wait_s": 0.0})
    world.deploy("f", max_instances=2, timeout_s=3.0, batching=batching)
    world.deploy("g", max_instances=2, timeout_s=3.0)
    world.deploy("h", preload=("numpy",))
    world.deploy("n", runtime="nodejs", max_instances=3)
    world.deploy("v", isolation="microvm", memory_bytes=256 * MB)
    requests = [*world.burst("f", 12), world.arrive("v")]
    world.run_for(0.3)
    requests += [*world.burst("g", 3), world.arrive("f", payload="dies"), world.arrive("h")]
    world.run_for(2.0)
    requests += [world.arrive("g", payload="hangs"), *world.burst("g", 4)]
    world.run_for(5.0)
    world.deploy("f", max_instances=2, batching=batching)
    requests += world.burst("f", 9)
    world.tell(m.Load("h"))
    world.run_for(0.1)
    requests += world.burst("h", 2)
    world.tell(m.Removed("g"))
    world.run_for(30.0)
    requests += [world.arrive("f"), world.arrive("h"), *world.burst("n", 3)]
    world.run_for(4.0)
    requests += world.burst("n", 9)
    world.run_for(15.0)
    requests += [world.arrive("n"), world.arrive("h")]
    world.run_for(10.0)
    for _ in range(2):
        requests += [world.arrive("v")]
        world.run_for(12.0)
    world.fake.damaged.update(world.fake.disk)
    requests += [world.arrive("v")]
    world.run_for(20.0)
    world.deploy("v", isolation="microvm", memory_bytes=256 * MB)
    world.run_for(5.0)
    return requests


def make(**more: object) -> World:
    return World(
        150 * MB, Ahead(user_s=8.0, lang_s=8.0, bare_s=20.0), seconds=Seconds(run=0.2), start_s=12_345.678,
        behave=lambda request: Outcome(request.payload or "ok"), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def judge(world: World, requests: list[Request]) -> None:
    world.run_for(100.0)
    lost = [request for request in requests if request not in world.answers]
    assert not lost, "callers without an answer"
    again = [world.arrive("f"), world.arrive("h"), world.arrive("n"), world.arrive("v")]
    world.run_for(10.0)
    assert world.ok(*again), "the node does not serve any more"
    world.run_for(300.0)
    assert world.fake.living == world.langs()
    assert not world.node.pool.sandboxes and not world.bares()
    assert all(key.vm_bytes for key in world.langs()), "only a runtime on disk stays"
    assert world.held_bytes == 0


def test_a_good_day() -> None:
    world = make()
    requests = scenario(world)
    assert world.fake.carried_out >= CALLS
    bad = [request for request in requests if not world.ok(request)]
    assert {request.payload for request in bad} >= {"dies", "hangs"}
    assert len(bad) <= 5  # the batch that crashed, and the one that hung
    judge(world, requests)


@pytest.mark.parametrize("n", range(1, CALLS + 1))
def test_the_nth_call_fails(n: int) -> None:
    world = make(fail_at=n)
    judge(world, scenario(world))


class Raising:
    """A driver whose n-th call raises instead of doing anything."""

    def __init__(self, inner: SandboxDriver, n: int, times: int) -> None:
        self.name = "raising"
        self._inner = inner
        self._bad = range(n, n + times)
        self._calls = 0

    def attach(self, sink: Sink) -> None:
        self._inner.attach(sink)

    def carry_out(self, effect: m.Effect) -> None:
        self._calls += 1
        if self._calls in self._bad:
            raise RuntimeError(f"call {self._calls} of a driver with a bug")
        self._inner.carry_out(effect)

    def pids(self) -> dict[Node, int]:
        return self._inner.pids()

    def drain_log(self, sandbox_id: int) -> None:
        self._inner.drain_log(sandbox_id)

    async def close(self) -> None:
        await self._inner.close()


@pytest.mark.parametrize("n", range(1, CALLS + 1))
def test_the_nth_call_raises(n: int) -> None:
    world = make(wrap=lambda driver: GuardedDriver(Raising(driver, n, 1)))
    judge(world, scenario(world))
