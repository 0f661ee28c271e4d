"""The node machine: `handle(event, now) -> effects`.

Requests queue per function. Whenever an instance of the function is idle, its batching policy is asked; its answer
becomes a Run, or a moment to ask again. When no instance is idle the node asks whether one more would serve the queue
sooner than the ones there are (`scale`); single-flight start-up falls out of counting those that are rising.

Invariants, checked by `check()` in tests after every event: a request is in exactly one place (a queue, one batch) or
answered; an instance is idle or busy, never both; the ledger is the sum of its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rewarm.core import eviction, invariants, lifecycle, refusals, scaling
from rewarm.core.ledger import Ledger
from rewarm.core.models import Models
from rewarm.core.pool import Pool, snapshot_of
from rewarm.core.state import INF, Bare, FunctionState, LangLayer, Sandbox, Snapshot
from rewarm.core.taking import take
from rewarm.core.timers import Timers
from rewarm.errors import InstanceDied, RewarmError, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.messages import Effect, Event
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.sandbox import StartKind
from rewarm.policy.batching.base import Dispatch, Wait
from rewarm.policy.keepalive.base import KeepalivePolicy

RETRY_S = 5.0  # after a failed start, while other instances of the function live
_UNLIMITED_BYTES = 1 << 62


class Node:
    """One machine's worth of functions, queues and sandboxes."""

    def __init__(self, budget_bytes: int, keepalive: KeepalivePolicy, disk_bytes: int | None = None) -> None:
        """`budget_bytes` of memory, and `disk_bytes` for what sleeps on disk (None: no limit)."""
        self.functions: dict[str, FunctionState] = {}
        self.timers = Timers()
        disk = Ledger(disk_bytes if disk_bytes is not None else _UNLIMITED_BYTES)
        self.pool = Pool(Ledger(budget_bytes), disk, self.timers, keepalive)
        self.draining = False
        self._starved = False  # some function waits for memory
        #: Told each event before the core is. For tests.
        self.hears: Callable[[Event, float], None] | None = None
        self._seldom: dict[type, Callable[..., None]] = {
            m.Cancelled: self._cancelled, m.LangFound: self._lang_found, m.Pinned: self.pool.models.pinned,
            m.Loaded: self.pool.models.loaded, m.Computed: self.pool.models.computed,
            m.Slept: self.pool.asleep.slept, m.SleepLost: self.pool.asleep.lost,
            **{kind: partial(handler, self) for kind, handler in lifecycle.HANDLERS.items()},
        }  # fmt: skip

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` (seconds, monotonic, never going back) and return what is to be done, in order."""
        if self.hears is not None:
            self.hears(event, now)
        out: list[Effect] = []
        if isinstance(event, m.Arrived):
            self.arrive(event.request, now, out)
            return out
        self._take(event, now, out)
        if self._starved:
            self._feed_starved(now, out)
        return out

    def _take(self, event: Event, now: float, out: list[Effect]) -> None:
        """By kind, the most frequent first: compiled, a comparison costs nothing, and looking up a method a lot."""
        if isinstance(event, m.RunDone):
            self._run_done(event, now, out)
        elif isinstance(event, m.Raised):
            self._raised(event, now, out)
        elif isinstance(event, m.Tick):
            self._tick(now, out)
        elif isinstance(event, m.Exited):
            self._exited(event, now, out)
        elif isinstance(event, m.LangRaised):
            self.pool.runtimes.raised(event.key, event.seconds, now, out)
        elif isinstance(event, m.LangExited):
            self._lang_exited(event, now, out)
        elif isinstance(event, m.Measured):
            self._measured(event, now, out)
        else:
            self._seldom[type(event)](event, now, out)

    def next_wakeup_s(self) -> float | None:
        """When the driver should send the next Tick; None: not before another event."""
        return self.timers.next_s()

    @property
    def unfinished(self) -> int:
        """Requests queued or running: at 0 a graceful shutdown may end."""
        queued = sum(len(fn.queue) for fn in self.functions.values())
        return queued + sum(len(sandbox.batch or ()) for sandbox in self.pool.sandboxes.values())

    # ------------------------------------------------------------ requests

    def arrive(self, request: Request, now: float, out: list[Effect]) -> None:
        """The hot half of `handle(Arrived(request), now)`, for drivers that count microseconds.

        While all instances are busy, which under load is the usual case, it is an append and some comparisons.
        """
        fn = self.functions.get(request.function)
        if fn is None or self.draining:
            error = refusals.draining() if self.draining else refusals.unknown(request.function)
            out.append(m.Reject(request, error))
            return
        queue = fn.queue
        if len(queue) >= fn.queue_max:
            out.append(m.Reject(request, refusals.full(fn)))
            return
        queue.append(request)
        if fn.batching_watches:
            fn.batching.on_arrival(now)
        if fn.watches:
            prewarm = fn.keepalive.on_arrival(fn.name, fn.key, now)
            if prewarm is not None:
                self.pool.prewarm(fn, now + prewarm.after_s, prewarm.instances)
        if request.deadline_s < fn.timer_at_s:
            self.timers.arm(fn, request.deadline_s)
        if fn.idle:
            self.pump(fn, now, out)
        elif now >= fn.scale_at_s or not fn.sandboxes:
            self.scale(fn, now, out)

    def _cancelled(self, event: m.Cancelled, now: float, out: list[Effect]) -> None:
        fn = self.functions.get(event.request.function)
        if fn is not None:
            try:
                fn.queue.remove(event.request)
            except ValueError:
                return  # it is running, or was answered: nothing to take back
            fn.flushing = fn.flushing and bool(fn.queue)

    def pump(self, fn: FunctionState, now: float, out: list[Effect]) -> None:
        """Match the queue with idle instances until one of them runs out or the policy says wait."""
        queue, idle = fn.queue, fn.idle
        while queue and idle:
            decision = Dispatch(fn.batching.max_size) if fn.flushing else fn.batching.decide(queue, now)
            if isinstance(decision, Wait):
                if decision.until_s is not None:
                    self.timers.arm(fn, decision.until_s)
                return
            batch = take(queue, decision, now, out)
            if batch:
                self._run(fn, idle.pop(), batch, now, out)
        if queue:
            self.scale(fn, now, out)
        else:
            fn.flushing = False

    def _run(self, fn: FunctionState, sandbox: Sandbox, batch: list[Request], now: float, out: list[Effect]) -> None:
        sandbox.state = State.BUSY  # READY → BUSY, by far the most frequent move: legal by construction
        sandbox.batch = batch
        if sandbox.rested:
            sandbox.rested = False
            sandbox.reuses += 1
        sandbox.run_deadline_s = now + fn.timeout_s
        if sandbox.run_deadline_s < sandbox.timer_at_s:
            self.timers.arm(sandbox, sandbox.run_deadline_s)
        ready_at_s = sandbox.ready_at_s
        batch[0].sandbox_id = sandbox.id
        for request in batch:
            request.started_s = now
            if request.arrived_s < ready_at_s:  # it had to wait for this start
                request.start = sandbox.found
                request.init_s = ready_at_s - max(sandbox.created_s, request.arrived_s)
        out.append(m.Run(sandbox.id, batch))

    def _run_done(self, event: m.RunDone, now: float, out: list[Effect]) -> None:
        sandbox = self.pool.sandboxes.get(event.sandbox_id)
        if sandbox is None or sandbox.state is not State.BUSY or sandbox.batch is None:
            return  # it was given up on (timeout) while the answer was on its way
        fn = sandbox.function
        size = len(sandbox.batch)
        sandbox.batch = None
        sandbox.uses += size
        sandbox.state = State.READY
        sandbox.run_deadline_s = INF
        fn.idle.append(sandbox)
        fn.batching.on_run(size, event.run_s, now)
        if fn.on_run is not None:
            fn.on_run(sandbox.revision.spec, size, event.run_s, now)
        if fn.removed or sandbox.revision is not fn.revision:
            self.pool.destroy(sandbox, "removed" if fn.removed else "outdated", out)
            return
        if fn.queue:
            self.pump(fn, now, out)
        if sandbox.state is State.READY:
            self.pool.became_idle(sandbox, now, out)

    # ------------------------------------------------------------ how many instances

    def scale(self, fn: FunctionState, now: float, out: list[Effect]) -> None:
        """Start instances while one more would serve the queue sooner than those that are there or rising.

        The rule is ski rental: a queue that the present instances will have served before a new one could be ready
        is not worth a start. Without a known run time, waiting as long as a start takes is the evidence.
        """
        while fn.queue and fn.own < fn.max_instances and scaling.wants_one(fn, self.timers, now):
            if not self._start(fn, now, out):
                return
        # The answer does not change from one arrival to the next; what ends or wakes asks again in any case.
        fn.scale_at_s = now + 0.05 * fn.start_s.value

    def _start(self, fn: FunctionState, now: float, out: list[Effect]) -> bool:
        if self.pool.start(fn, now, out) is not None:
            fn.starved = False
            return True
        need, budget = self.pool.need_bytes(fn, snapshot_of(fn)), self.pool.ledger.budget_bytes
        if need > budget or not (self.pool.sandboxes or self.pool.langs or self.pool.bares.layers):
            self.reject_all(fn, refusals.over_budget(fn, need, budget), out)
        elif fn.live == 0:
            fn.starved = self._starved = True
        return False

    def _feed_starved(self, now: float, out: list[Effect]) -> None:
        """Something changed: those who waited for memory try again."""
        waiting = [fn for fn in self.functions.values() if fn.starved]
        self._starved = False
        for fn in waiting:
            fn.starved = False
            if fn.queue:
                self.scale(fn, now, out)

    def reject_all(self, fn: FunctionState, error: RewarmError, out: list[Effect]) -> None:
        fn.flushing = False
        while fn.queue:
            out.append(m.Reject(fn.queue.popleft(), error))

    # ------------------------------------------------------------ sandboxes

    def _raised(self, event: m.Raised, now: float, out: list[Effect]) -> None:
        sandbox = self.pool.sandboxes.get(event.sandbox_id)
        if sandbox is None:
            bare = self.pool.bares.layers.get(event.sandbox_id)
            if bare is not None:
                self.pool.bares.raised(bare, event.seconds, now, out)
            return
        fn = sandbox.function
        if event.state is State.BARE:
            self.pool.bares.seconds.add(event.seconds)
        elif event.state is State.USER:
            fn.user_s.add(event.seconds)
        elif sandbox.found is StartKind.RESTORED:
            self.pool.asleep.restored(sandbox, event.seconds)
        if self.pool.raised(sandbox, event.state, now, out):
            fn.idle.append(sandbox)  # of the current revision: those that rose for an older one were told to end
            self.pump(fn, now, out)
            if sandbox.state is State.READY:
                self.pool.became_idle(sandbox, now, out)

    def _exited(self, event: m.Exited, now: float, out: list[Effect]) -> None:
        sandbox = self.pool.sandboxes.get(event.sandbox_id)
        if sandbox is None:
            bare = self.pool.bares.layers.get(event.sandbox_id)
            if bare is not None:
                self.pool.bares.exited(bare)
            return
        fn, batch = sandbox.function, sandbox.batch
        sandbox.batch = None
        rising = sandbox.rising
        self.pool.exited(sandbox, now, out)
        if batch:
            error = event.error or InstanceDied(f"an instance of {fn.name!r} ended while it held the request")
            out.extend(m.Reject(request, error) for request in batch)
        if rising and sandbox.found is StartKind.RESTORED:
            self._start_instead(sandbox, now, out)
        elif rising:
            self._start_failed(fn, event.error, now, out)
        if fn.queue and not fn.removed:
            if fn.idle:
                self.pump(fn, now, out)
            else:
                self.scale(fn, now, out)
        if fn.snapshot is not None and not fn.sandboxes:
            self.pool.asleep.rest(fn.snapshot, now, out)

    def _start_instead(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """It could not be restored. The snapshot may be at fault: before anyone is told, a start without it."""
        fn = sandbox.function
        self.pool.asleep.unwoken(sandbox, now, out)
        if fn.queue or not self.draining:
            self.pool.start(fn, now, out, ahead=not fn.queue, restore=False)

    def _start_failed(self, fn: FunctionState, error: RewarmError | None, now: float, out: list[Effect]) -> None:
        """One attempt for all who waited: they are answered, unless another instance can still serve them."""
        fn.last_error = error or StartFailed(f"an instance of {fn.name!r} ended before it was ready")
        if fn.live == 0:
            self.reject_all(fn, fn.last_error, out)
        else:
            fn.retry_at_s = now + RETRY_S

    def _lang_found(self, event: m.LangFound, now: float, out: list[Effect]) -> None:
        self.pool.runtimes.on_disk(event.key, event.disk_bytes, now, out)
        self.pool.asleep.make_room(now, out)

    def _lang_exited(self, event: m.LangExited, now: float, out: list[Effect]) -> None:
        for sandbox in self.pool.runtimes.exited(event.key, event.error, now, out):
            fn = sandbox.function
            self.pool.destroy(sandbox, "no runtime", out)
            self._start_failed(fn, event.error, now, out)

    def _measured(self, event: m.Measured, now: float, out: list[Effect]) -> None:
        self.pool.measured(event.node, event.resident_bytes)
        eviction.make_room(self.pool, 0, now, out)
        self.pool.asleep.make_room(now, out)

    # ------------------------------------------------------------ time

    def _tick(self, now: float, out: list[Effect]) -> None:
        due = []  # collected first: a policy that answers "ask again now" costs one tick a time, not for ever
        while (sleeper := self.timers.pop_due(now)) is not None:
            due.append(sleeper)
        for sleeper in due:
            if isinstance(sleeper, Sandbox):
                self._wake_sandbox(sleeper, now, out)
            elif isinstance(sleeper, FunctionState):
                self._wake_function(sleeper, now, out)
            elif isinstance(sleeper, LangLayer):
                self.pool.runtimes.wake(sleeper, now, out)
            elif isinstance(sleeper, Bare):
                self.pool.bares.wake(sleeper, now, out)
            elif isinstance(sleeper, Snapshot):
                self.pool.asleep.wake(sleeper, now, out)
            elif isinstance(sleeper, Models):
                sleeper.replan(now, out)

    def _wake_function(self, fn: FunctionState, now: float, out: list[Effect]) -> None:
        if fn.removed:
            return
        if fn.prewarm_at_s <= now:
            fn.prewarm_at_s = INF
            if not self.draining:
                self.pool.start_ahead(fn, now, out)
        for request in [request for request in fn.queue if request.deadline_s <= now]:
            fn.queue.remove(request)
            out.append(m.Reject(request, refusals.late(request, now, starting=0 < fn.rising == fn.live)))
        fn.flushing = fn.flushing and bool(fn.queue)
        if fn.queue:
            if fn.idle:
                self.pump(fn, now, out)
            else:
                self.scale(fn, now, out)
            self.timers.arm(fn, min((request.deadline_s for request in fn.queue), default=INF))
        self.timers.arm(fn, fn.prewarm_at_s)

    def _wake_sandbox(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        if sandbox.state is State.BUSY:
            if now < sandbox.run_deadline_s:
                self.timers.arm(sandbox, sandbox.run_deadline_s)
            else:
                self._timed_out(sandbox, now, out)
        elif sandbox.state is State.READY:
            if now < sandbox.expires_s:
                self.timers.arm(sandbox, sandbox.expires_s)
            else:
                self.pool.window_over(sandbox, now, out)
        elif sandbox.rising:
            fn = sandbox.function
            self.pool.destroy(sandbox, "start timeout", out)
            if sandbox.found is StartKind.RESTORED:
                self._start_instead(sandbox, now, out)
                return
            self.pool.runtimes.drop_stuck(sandbox.key, now, out)
            self._start_failed(fn, refusals.start_timeout(fn, now - sandbox.created_s), now, out)

    def _timed_out(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        fn = sandbox.function
        self.cut_short(sandbox, "timeout", refusals.timeout(fn, sandbox.revision.spec.timeout_s), out)
        if fn.queue and not fn.removed and not fn.idle:
            self.scale(fn, now, out)

    def cut_short(self, sandbox: Sandbox, reason: str, error: RewarmError, out: list[Effect]) -> None:
        """End an instance in the middle of its run, whose callers are told `error`."""
        batch, sandbox.batch = sandbox.batch or [], None
        self.pool.destroy(sandbox, reason, out)
        out.extend(m.Reject(request, error) for request in batch)

    def check(self) -> None:
        """Raises AssertionError unless every invariant of the module docstring holds."""
        invariants.check(self.functions, self.pool)
