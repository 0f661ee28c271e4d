"""Between the core and the world: events in, effects out, one timer.

Everything runs on the event loop's thread. `post` may be called from inside an effect (a driver that reports at
once); such events wait in line, so the core sees one event at a time, in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol

from rewarm.clock import Clock, system_clock
from rewarm.control.models import ModelDesk
from rewarm.core.meter import Meter
from rewarm.core.node import Node
from rewarm.core.state import Sandbox
from rewarm.errors import RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.facts.request import Loading, Request
from rewarm.facts.sandbox import SandboxState
from rewarm.obs.logs import LogStore
from rewarm.obs.metrics import LayerTimes
from rewarm.obs.stats import FunctionStats
from rewarm.sandbox.port import SandboxDriver
from rewarm.wire import AnyAnswer

log = logging.getLogger("rewarm.control")

#: The core's reasons to end an instance, as the log says them.
_ENDINGS = {
    "keepalive": "it was idle for long enough", "memory": "idle, and memory was short", "unload": "unloaded",
    "outdated": "replaced by a newer revision", "removed": "its function was removed",
    "timeout": "its run took longer than the function's timeout", "start timeout": "it was not ready in time",
    "no runtime": "its runtime could not be started", "shutdown": "the server shuts down",
}  # fmt: skip
_TROUBLE = frozenset({"timeout", "start timeout", "no runtime"})


class Callers(Protocol):
    """Those who wait for answers (the front door)."""

    def answer(self, requests: list[Request], answers: list[AnyAnswer], run_us: int) -> None: ...

    def reject(self, request: Request, error: RewarmError) -> None: ...


class Executor:
    """The live driver of one Node; the sink of its sandbox driver."""

    def __init__(
        self, node: Node, driver: SandboxDriver, logs: LogStore, clock: Clock = system_clock,
        models: ModelDesk | None = None,
    ) -> None:  # fmt: skip
        self.node = node
        self.driver = driver
        self.logs = logs
        self.layers = LayerTimes()
        self.meter = Meter()
        self.stats: dict[str, FunctionStats] = {}
        self._clock = clock
        self._models = models
        self._callers: Callers | None = None
        self._inbox: deque[m.Event] = deque()
        self._handling = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_heap = node.timers.heap
        self._timer_at_s = float("inf")
        self._quiet_waiters: list[asyncio.Event] = []

    def start(self, callers: Callers) -> None:
        """Begin, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._callers = callers
        self.driver.attach(self)
        if self._models is not None:
            self._models.start(self.post, self.node.pool.models)

    # ------------------------------------------------------------ events in, effects out

    def submit(self, request: Request) -> None:
        """`post(Arrived(request))` at the moment it arrived, without what only rare events need."""
        if self._handling:
            self._inbox.append(m.Arrived(request))
            return
        effects: list[m.Effect] = []
        self.node.arrive(request, request.arrived_s, effects)
        if effects:
            self._work(effects, request.arrived_s)
        self._arm_next()

    def post(self, event: m.Event) -> None:
        """Give the core one event and carry out what it decides."""
        self._inbox.append(event)
        if self._handling:
            return
        self._work([], 0.0)
        self._arm_next()
        if self._quiet_waiters and not self.node.unfinished:
            for waiter in self._quiet_waiters:
                waiter.set()

    def _work(self, effects: list[m.Effect], now: float) -> None:
        """Carry out `effects`, decided at `now`, then everything that came in meanwhile, one event at a time."""
        self._handling = True
        try:
            self._carry_out(effects, now)
            while self._inbox:
                self._handle(self._inbox.popleft())
        finally:
            self._handling = False

    def _arm_next(self) -> None:
        heap = self._timer_heap
        if heap and heap[0][0] < self._timer_at_s:
            self._arm(heap[0][0])

    def _handle(self, event: m.Event) -> None:
        now = self._clock()
        if not isinstance(event, m.Arrived):
            self.meter.event(event, now)
            if not isinstance(event, m.RunDone):
                self._note(event, now)
        self._carry_out(self.node.handle(event, now), now)

    def _carry_out(self, effects: list[m.Effect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, m.Reject):
                self._reject(effect.request, effect.error)
            elif isinstance(effect, m.Pin):
                self._desk().pin(effect)
            elif isinstance(effect, m.Prefetch):
                self._desk().prefetch(effect.key)
            else:
                self.meter.effect(effect, now)
                self.driver.carry_out(effect)

    def _desk(self) -> ModelDesk:
        assert self._models is not None, "only revisions with a pack have models, and the desk gave it to them"
        return self._models

    def _reject(self, request: Request, error: RewarmError) -> None:
        stats = self.stats.get(request.function)
        if stats is not None:
            stats.refused(error.status)
        assert self._callers is not None
        self._callers.reject(request, error)

    def _arm(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = at_s
        self._timer = self._loop.call_at(at_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_at_s = float("inf")
        self.post(m.Tick())

    # ------------------------------------------------------------ what the driver reports

    def answer(self, requests: list[Request], answers: list[AnyAnswer], run_us: int) -> None:
        assert self._callers is not None
        if requests[0].loaded is not None:
            self._loaded(requests, requests[0].loaded)
        self._callers.answer(requests, answers, run_us)

    def _loaded(self, requests: list[Request], loaded: Loading) -> None:
        """The first batch of an instance told how its weights came. What the keeper read before is said beside it."""
        function = requests[0].function
        model = self.node.pool.models.by_function.get(function)
        ahead_bytes = self._desk().read_ahead(model.key) if model is not None else None
        if ahead_bytes is not None:
            loaded = loaded._replace(figures={**loaded.figures, "ahead_bytes": ahead_bytes})
            for request in requests:
                request.loaded = loaded
        stats = self.stats.get(function)
        if stats is not None:
            stats.loaded(loaded.figures)
        if model is not None and loaded.compute_s:
            setup_ms = loaded.figures.get("setup_ms")
            setup_s = setup_ms / 1e3 if setup_ms is not None else None
            self.post(m.Computed(model.key, loaded.compute_s, loaded.rows_s, setup_s))

    def log(self, function: str, sandbox_id: int, chunk: bytes) -> None:
        if function in self.node.functions:  # else it was removed, and its log with it
            self.logs.write(function, sandbox_id, chunk)

    def _note(self, event: m.Event, now: float) -> None:
        """Figures and the structured log: each rare event once, in one place."""
        if isinstance(event, m.Raised):
            self.layers.observe(self._layer_of(event), event.seconds)
            if event.state is SandboxState.READY:
                self._note_ready(event.sandbox_id, now)
        elif isinstance(event, m.LangRaised):
            self.layers.observe("zygote", event.seconds)
            self._expect(event.key, now)
            log.info("runtime %s ready in %.0f ms", event.key, event.seconds * 1e3)
        elif isinstance(event, m.Slept):
            log.info("%s can sleep: %d MB on disk", event.digest[:12], event.facts.disk_bytes >> 20)
        elif isinstance(event, m.SleepLost):
            log.warning("%s cannot be woken from its snapshot%s", event.digest[:12], _why(event.error))
        elif isinstance(event, m.LangExited):
            log.log(
                logging.WARNING if event.error else logging.INFO, "runtime %s ended%s", event.key, _why(event.error)
            )
        elif isinstance(event, m.Exited):
            sandbox = self.node.pool.sandboxes.get(event.sandbox_id)
            if sandbox is not None:
                self._note_end(sandbox, event.error)

    def _layer_of(self, event: m.Raised) -> str:
        """What took the time: to restore an instance is another thing than to open its weights."""
        sandbox = self.node.pool.sandboxes.get(event.sandbox_id)
        restored = sandbox is not None and sandbox.state is SandboxState.ABSENT
        return "restored" if restored and event.state is SandboxState.READY else event.state.value

    def _expect(self, node: int | LangKey, now: float) -> None:
        """Until it is measured, which is within a second or so, a layer holds what the ledger expects of it."""
        self.meter.resident(node, self.node.pool.ledger.of(node), now)

    def _note_ready(self, sandbox_id: int, now: float) -> None:
        sandbox = self.node.pool.sandboxes.get(sandbox_id)
        if sandbox is not None:
            self._expect(sandbox_id, now)
            init_s = now - sandbox.created_s
            stats = self.stats.get(sandbox.function.name)
            if stats is not None:
                stats.started(init_s)
            found = sandbox.found.value
            log.info(
                "instance %d of %s ready in %.0f ms (%s start)", sandbox_id, sandbox.function.name, init_s * 1e3, found
            )

    def _note_end(self, sandbox: Sandbox, error: RewarmError | None) -> None:
        """In the server's log always; in the function's if it is for its code to see to."""
        name = sandbox.function.name
        why = error.message if error is not None else _ENDINGS[sandbox.ending or "shutdown"]
        troubled = error is not None or sandbox.ending in _TROUBLE
        self.logs.end(name, sandbox.id, why if troubled and name in self.node.functions else None)
        log.log(logging.WARNING if troubled else logging.INFO, "instance %d of %s ended: %s", sandbox.id, name, why)

    # ------------------------------------------------------------ the end

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait until the queued and running ones are done. False if time ran out."""
        self.post(m.Draining())
        if not self.node.unfinished:
            return True
        waiter = asyncio.Event()
        self._quiet_waiters.append(waiter)
        try:
            await asyncio.wait_for(waiter.wait(), timeout_s)
            return True
        except TimeoutError:
            return False
        finally:
            self._quiet_waiters.remove(waiter)

    async def close(self) -> None:
        """Refuse what is still queued, end every sandbox and zygote."""
        self.post(m.Draining(final=True))
        if self._timer is not None:
            self._timer.cancel()
        await self.driver.close()
        if self._models is not None:
            await self._models.close()


def _why(error: RewarmError | None) -> str:
    return f": {error.message}" if error is not None else ""
