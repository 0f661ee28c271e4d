"""Anything may happen to a node, in any order: no request is lost, none is answered twice, nothing is left over.

`World` checks the invariants of the core after every event, and that each request is in exactly one place whenever it
comes to rest; the rules here only make things happen.
"""

from __future__ import annotations

import math

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rewarm.errors import SandboxFailed, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, PolicySpec
from rewarm.facts.request import Request
from rewarm.facts.sandbox import Layer
from rewarm.facts.sandbox import SandboxState as State
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, KeepalivePolicy, LayerView, Prewarm
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.testing import Outcome, Seconds, World

MB = 1 << 20
NAMES = ("f", "g", "h")
BATCHING = (
    PolicySpec("none"),
    PolicySpec("dynamic", {"max_size": 4, "max_wait_s": 0.0}),
    PolicySpec("dynamic", {"max_size": 3, "max_wait_s": 0.7}),
    PolicySpec("static", {"size": 3}),
    PolicySpec("aimd"),
    PolicySpec("slo"),
)
WORDS = [outcome.value for outcome in Outcome]
STEPS_S = (0.0, 0.001, 0.01, 0.1, 0.3, 1.0, 7.3, 61.0)


class Eager:
    """Prewarms on arrivals and after drops, to get in the way of everything else, and wants to hear of all there is."""

    name = "eager"
    watches_runs = True
    watches_ends = True

    def __init__(self) -> None:
        self.arrivals = 0

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        self.arrivals += 1
        return Prewarm(0.4, 1 + self.arrivals % 4)

    def on_run(self, spec: FunctionSpec, size: int, run_s: float, now: float) -> None:
        assert spec.name in NAMES and size > 0 and run_s >= 0.0

    def on_gone(self, layer: LayerView, evicted: bool, now: float) -> None:
        assert layer.idle_since_s <= now and (layer.function is None) == (layer.layer in (Layer.BARE, Layer.LANG))

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return Keep(0.9) if now - layer.idle_since_s < 1.5 else Drop(0.3 if layer.uses else None)

    def priority(self, layer: LayerView, now: float) -> float:
        return -float(layer.resident_bytes)


KEEPALIVES: tuple[type[KeepalivePolicy], ...] = (NoKeepalive, FixedKeepalive, Eager)


def step(*choices: float) -> st.SearchStrategy[float]:
    return st.sampled_from(choices)


class NodeMachine(RuleBasedStateMachine):
    @initialize(
        keepalive=st.sampled_from(KEEPALIVES),
        mb=st.sampled_from([50, 64, 100, 160, 1000]),
        start_s=st.sampled_from([0.0, 0.1, 12_345.678, 1_234_567.891]),
        seconds=st.builds(
            Seconds, bare=step(0.0, 0.01), zygote=step(0.0, 0.2), zygote_fork=step(0.0, 0.1), fork=step(0.0, 0.005),
            user=step(0.0, 0.05, 2.0), ready=step(0.0, 0.01), run=step(0.0, 0.004, 1.3), row=step(0.0, 0.001),
            exit=step(0.0, 0.002, 3.0), restore=step(0.0, 0.02, 1.5), sleep=step(0.0, 1.0, 20.0),
        ),
        disk_mb=st.sampled_from([None, 50, 64, 150]),
    )  # fmt: skip
    def begin(
        self, keepalive: type[KeepalivePolicy], mb: int, start_s: float, seconds: Seconds, disk_mb: int | None
    ) -> None:
        self.usual = seconds
        self.world = World(
            mb * MB, keepalive(), seconds=seconds, start_s=start_s, disk_bytes=disk_mb and disk_mb * MB,
            behave=lambda request: Outcome(request.payload or "ok"),
        )  # fmt: skip

    # ------------------------------------------------------------ functions

    @rule(
        name=st.sampled_from(NAMES), batching=st.sampled_from(BATCHING), limit=st.integers(1, 3),
        queue_max=st.sampled_from([2, 1000]), timeout_s=st.sampled_from([0.5, 20.0]),
        preload=st.sampled_from([(), ("a",), ("a", "b"), None]), sleeps=st.booleans(),
        keepalive=st.sampled_from([None, PolicySpec("none"), PolicySpec("fixed", {"ttl_s": 2.0})]),
    )  # fmt: skip
    def deploy(
        self, name: str, batching: PolicySpec, limit: int, queue_max: int, timeout_s: float,
        preload: tuple[str, ...] | None, keepalive: PolicySpec | None, sleeps: bool,
    ) -> None:  # fmt: skip
        runtime: dict[str, object] = {"runtime": "nodejs"} if preload is None else {"preload": preload}
        if sleeps and preload is not None:
            runtime["isolation"] = "microvm"
        self.world.deploy(
            name, batching=batching, max_instances=limit, queue_max=queue_max, timeout_s=timeout_s, **runtime,
            keepalive=keepalive, slo_s=0.3,
        )  # fmt: skip
        self.world.check()

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        self.world.tell(m.Removed(name))

    @rule(name=st.sampled_from(NAMES), order=st.sampled_from([m.Flush, m.Load, m.Unload]))
    def order(self, name: str, order: type[m.Flush] | type[m.Load] | type[m.Unload]) -> None:
        self.world.tell(order(name))

    # ------------------------------------------------------------ requests

    @rule(
        name=st.sampled_from(NAMES),
        words=st.lists(st.sampled_from(["ok", "ok", "ok", *WORDS]), min_size=1, max_size=6),
        within_s=st.sampled_from([-1.0, 0.0, 0.2, 5.0, 60.0]),
    )
    def arrive(self, name: str, words: list[str], within_s: float) -> None:
        for word in words:
            self.world.arrive(name, payload=word, within_s=within_s)

    @precondition(lambda self: self.world.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        open_ones = [r for r in self.world.requests if r not in self.world.answers and r not in self.world.withdrawn]
        self.world.cancel(data.draw(st.sampled_from(open_ones or self.world.requests[-1:])))

    # ------------------------------------------------------------ time and trouble

    @rule(seconds=st.sampled_from(STEPS_S))
    def wait(self, seconds: float) -> None:
        self.world.run_for(seconds)

    @precondition(lambda self: self.world.fake.living)
    @rule(data=st.data())
    def death(self, data: st.DataObject) -> None:
        self.world.fake.kill(data.draw(st.sampled_from(sorted(self.world.fake.living, key=str))))
        self.world.check()

    @precondition(lambda self: self.world.fake.living)
    @rule(data=st.data(), mb=st.sampled_from([0, 1, 30, 90, 2000]))
    def measure(self, data: st.DataObject, mb: int) -> None:
        node = data.draw(st.sampled_from(sorted(self.world.fake.living, key=str)))
        self.world.tell(m.Measured(node, mb * MB))

    @precondition(lambda self: self.world.fake.disk)
    @rule(data=st.data(), noticed=st.booleans())
    def damage(self, data: st.DataObject, noticed: bool) -> None:
        fake = self.world.fake
        digest = data.draw(st.sampled_from(sorted(fake.disk)))
        if noticed:
            del fake.disk[digest]
            self.world.tell(m.SleepLost(digest, SandboxFailed("deleted by somebody")))
        else:
            fake.damaged.add(digest)

    @rule(mb=st.sampled_from([1, 64, 200]))
    def snapshots_change_size(self, mb: int) -> None:
        self.world.fake.disk_bytes = mb * MB

    @rule(what=st.sampled_from(["starts", "langs", "sleeps", "restores", "user", "zygote", "fork", "restore", "sleep"]))
    def starts_go_wrong(self, what: str) -> None:
        if what == "starts":
            self.world.fake.starts = lambda revision: StartFailed("does not import")
        elif what == "langs":
            self.world.fake.langs = lambda key: StartFailed("no such package")
        elif what == "sleeps":
            self.world.fake.sleeps = lambda revision: SandboxFailed("no space")
        elif what == "restores":
            self.world.fake.restores = lambda revision: SandboxFailed("no process")
        else:
            self.world.fake.seconds = Seconds(**{what: math.inf})

    @rule()
    def all_is_well_again(self) -> None:
        self.world.fake.starts = lambda revision: None
        self.world.fake.langs = lambda key: None
        self.world.fake.sleeps = self.world.fake.restores = lambda revision: None
        self.world.fake.seconds = self.usual

    @rule(soon=st.sampled_from([1, 2, 3]))
    def an_effect_fails(self, soon: int) -> None:
        self.world.fake.fail_at = self.world.fake.carried_out + soon

    @precondition(lambda self: self.rare())
    @rule()
    def drain(self) -> None:
        self.world.tell(m.Draining())

    def rare(self) -> bool:
        return len(self.world.requests) > 10

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        self.all_is_well_again()
        world.fake.fail_at = None
        world.run_for(1000.0)  # every deadline and timeout has passed
        open_ones: list[Request] = [
            r for r in world.requests if r not in world.answers and r not in world.withdrawn
        ]  # fmt: skip
        assert not open_ones, f"never answered: {open_ones}"
        assert world.node.unfinished == 0
        states = {sandbox.state for sandbox in world.node.pool.sandboxes.values()}
        assert states <= {State.READY}, f"neither idle nor gone: {states}"
        for name in list(world.node.functions):
            world.tell(m.Removed(name))
        world.run_for(3000.0)
        on_disk = {key for key in world.langs() if key.vm_bytes}
        assert world.fake.living == on_disk
        assert world.held_bytes == 0
        disk = world.node.pool.ground.disk
        assert not world.fake.disk and disk.held_bytes == sum(disk.of(key) for key in on_disk)
        assert not world.meter.living
        assert sum(world.meter.starts.values()) == sum(len(run.requests) for run in world.done(m.Run))
        assert all(sums >= 0.0 for sums in (*world.meter.used_byte_s.values(), *world.meter.wasted_byte_s.values()))
        assert world.meter.evictions == world.node.pool.evictions


NodeMachine.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestNodeMachine = NodeMachine.TestCase
