"""A whole node in virtual time: the real core, a fake driver, and a clock that jumps from event to event.

    world = World()
    world.deploy("f", max_instances=2)
    request = world.arrive("f")
    world.run_for(1.0)
    assert world.ok(request)

After every event the core's invariants are checked, and whenever the world comes to rest, that no request is lost.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from rewarm.clock import ManualClock
from rewarm.core.meter import Meter
from rewarm.core.node import Node
from rewarm.core.pool import snapshot_of
from rewarm.core.state import FunctionState
from rewarm.errors import RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, PolicySpec, Revision
from rewarm.facts.pack import PackFacts
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.policy.keepalive.base import KeepalivePolicy
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.sandbox.port import SandboxDriver
from rewarm.testing.fake_driver import Behave, FakeDriver, Outcome, Seconds
from rewarm.wire import AnyAnswer

E = TypeVar("E")
PIN_S = 0.01  # from a Pin to its answer
_TICKS_MAX = 1000  # at one moment; more is a core that wakes itself for ever


class World:
    """One node with a FakeDriver. `start_s` is far from zero, as the clocks of real machines are.

    `pins` says how many bytes of what it is told to pin the machine then holds.
    """

    def __init__(
        self,
        budget_bytes: int = 1 << 40,
        keepalive: KeepalivePolicy | None = None,
        *,
        seconds: Seconds | None = None,
        behave: Behave = lambda request: Outcome.OK,
        pins: Callable[[m.Pin], int] = lambda order: order.size_bytes,
        fail_at: int | None = None,
        disk_bytes: int | None = None,
        wrap: Callable[[SandboxDriver], SandboxDriver] = lambda driver: driver,
        start_s: float = 0.0,
    ) -> None:
        self.pins = pins
        self.clock = ManualClock(start_s)
        self.node = Node(budget_bytes, keepalive if keepalive is not None else FixedKeepalive(), disk_bytes)
        self.fake = FakeDriver(self.schedule, seconds, behave, fail_at=fail_at)
        self.driver = wrap(self.fake)
        self._wrapped = self.driver is not self.fake
        self.driver.attach(self)
        self.meter = Meter()
        self.events: list[m.Event] = []
        self.effects: list[m.Effect] = []
        self.requests: list[Request] = []
        self.answers: dict[Request, AnyAnswer | RewarmError] = {}
        self.withdrawn: set[Request] = set()  # cancelled while they were queued: never to be answered
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._inbox: deque[m.Event] = deque()
        self._handling = False
        self._versions: Counter[str] = Counter()

    @property
    def now(self) -> float:
        return self.clock.now_s

    # ------------------------------------------------------------ what happens to a node

    def deploy(
        self, name: str, *, batching: PolicySpec | str = "none", pack: PackFacts | None = None, **fields: Any
    ) -> Revision:
        """A new revision of `name`; `fields` are those of FunctionSpec."""
        if isinstance(batching, str):
            batching = PolicySpec(batching)
        spec = FunctionSpec(name, fields.pop("kind", "handler"), "app:main", batching=batching, **fields)
        self._versions[name] += 1
        version = self._versions[name]
        revision = Revision(spec, f"{name}-{version}", version, "code", pack=pack)
        self.post(m.Deployed(revision))
        return revision

    def arrive(self, name: str, *, within_s: float = 60.0, payload: Any = None) -> Request:
        """One request for `name` comes, to be started within `within_s`."""
        request = Request(name, self.now, self.now + within_s, payload)
        self.requests.append(request)
        self.post(m.Arrived(request))
        self.check()
        return request

    def burst(self, name: str, count: int, **more: Any) -> list[Request]:
        """`count` requests at one moment."""
        return [self.arrive(name, **more) for _ in range(count)]

    def cancel(self, request: Request) -> None:
        """Its caller went away."""
        fn = self.node.functions.get(request.function)
        if fn is not None and request in fn.queue:
            self.withdrawn.add(request)
        self.post(m.Cancelled(request))
        self.check()

    def tell(self, event: m.Event) -> None:
        """Any other event."""
        self.post(event)
        self.check()

    # ------------------------------------------------------------ time

    def schedule(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` when the world has come that far."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, callback))

    def run_until(self, at_s: float) -> None:
        """Let everything happen that happens until `at_s`."""
        ticks, ticks_at_s = 0, -math.inf
        while True:
            callback_s = self._heap[0][0] if self._heap else math.inf
            wakeup_s = self.node.next_wakeup_s()
            wakeup_s = math.inf if wakeup_s is None else max(wakeup_s, self.now)
            if min(callback_s, wakeup_s) > at_s:
                break
            if callback_s <= wakeup_s:
                self.clock.now_s = callback_s
                heapq.heappop(self._heap)[2]()
            else:
                ticks = ticks + 1 if wakeup_s == ticks_at_s else 1
                ticks_at_s = wakeup_s
                assert ticks < _TICKS_MAX, f"the core asks for one moment ({wakeup_s!r}) for ever"
                self.clock.now_s = wakeup_s
                self.post(m.Tick())
            self.check()
        self.clock.now_s = max(self.now, at_s)

    def run_for(self, for_s: float) -> None:
        self.run_until(self.now + for_s)

    # ------------------------------------------------------------ the executor's part

    def post(self, event: m.Event) -> None:
        """One event for the core; what it decides is carried out. Events of an effect wait in line."""
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._handling = False

    def _handle(self, event: m.Event) -> None:
        self.events.append(event)
        self.meter.event(event, self.now)
        for effect in self.node.handle(event, self.now):
            self.effects.append(effect)
            self.meter.effect(effect, self.now)
            if isinstance(effect, m.Reject):
                self._record(effect.request, effect.error)
            elif isinstance(effect, m.Pin):
                self.schedule(PIN_S, partial(self.post, m.Pinned(effect.key, self.pins(effect))))
            elif not isinstance(effect, m.Prefetch):
                self.driver.carry_out(effect)
        self.node.check()

    def answer(self, requests: list[Request], answers: list[AnyAnswer], run_us: int) -> None:
        """The sink's part; to look at an answer: `answers`, `ok`, `rejected`."""
        for request, answer in zip(requests, answers, strict=True):
            self._record(request, answer)

    def log(self, function: str, sandbox_id: int, chunk: bytes) -> None:
        """The fake driver writes nothing."""

    def _record(self, request: Request, answer: AnyAnswer | RewarmError) -> None:
        assert request not in self.answers, f"{request} is answered twice: {self.answers[request]}, {answer}"
        assert request not in self.withdrawn, f"{request} is answered with {answer}, its caller has gone"
        self.answers[request] = answer

    # ------------------------------------------------------------ looking

    def ok(self, *requests: Request) -> bool:
        """True if each of them was answered with a status of 200."""
        got = [self.answers.get(request) for request in requests]
        return all(isinstance(answer, tuple) and answer[0] == 200 for answer in got)

    def rejected(self, request: Request, kind: type[RewarmError]) -> bool:
        """True if it was answered with exactly this error."""
        return type(self.answers.get(request)) is kind

    def fn(self, name: str) -> FunctionState:
        return self.node.functions[name]

    def states(self, name: str) -> list[SandboxState]:
        return [sandbox.state for sandbox in self.fn(name).sandboxes.values()]

    def ids(self, name: str) -> list[int]:
        return list(self.fn(name).sandboxes)

    def langs(self) -> set[LangKey]:
        return set(self.node.pool.langs)

    def asleep(self) -> set[str]:
        """Names of the functions that have a snapshot on disk, as the core knows it."""
        return {name for name, fn in self.node.functions.items() if snapshot_of(fn) is not None}

    def bares(self) -> set[int]:
        """Those that are nobody's yet."""
        return set(self.node.pool.bares.layers)

    def done(self, kind: type[E]) -> list[E]:
        """Every effect of this kind so far."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def held_bytes(self) -> int:
        return self.node.pool.ledger.held_bytes

    # ------------------------------------------------------------ invariants

    def check(self) -> None:
        """Raises AssertionError unless every request is in exactly one place, answered, or taken back."""
        pool = self.node.pool
        places: Counter[Request] = Counter()
        for fn in self.node.functions.values():
            places.update(fn.queue)
            own = [s for s in fn.sandboxes.values() if s.state is not SandboxState.DYING and s.revision is fn.revision]
            assert len(own) <= fn.revision.spec.max_instances, f"{fn} has {own}"
        for sandbox in pool.sandboxes.values():
            places.update(sandbox.batch or ())
        places.update(self.answers.keys())
        places.update(self.withdrawn)
        for request in self.requests:
            assert places[request] == 1, f"{request} is in {places[request]} places"
        if not self._wrapped:
            known = {*pool.sandboxes, *pool.bares.layers, *pool.langs}
            assert known == self.fake.living, "the core and its driver disagree on who lives"
            slept = {self.node.functions[name].revision.digest for name in self.asleep()}
            assert slept == set(self.fake.disk), "the core and its driver disagree on what is on disk"
