"""Sandboxes: how they rise, idle, are peeled and end, on one ledger with the layers below them (`langs`, `bares`).

The pool changes records and appends effects; it never touches a queue. What a queue should know (a sandbox became
ready, one died) is returned to the node that called.
"""

from __future__ import annotations

from rewarm.core import eviction
from rewarm.core.asleep import Asleep
from rewarm.core.bares import Bares
from rewarm.core.langs import Langs
from rewarm.core.ledger import Ledger
from rewarm.core.models import Models
from rewarm.core.state import (
    INF,
    RISING,
    Bare,
    FunctionState,
    Ground,
    LangLayer,
    Sandbox,
    Snapshot,
    SnapshotState,
    start_timeout_s,
)  # fmt: skip
from rewarm.core.timers import Timers
from rewarm.facts.function import LangKey
from rewarm.facts.messages import Destroy, Effect, LoadUser, RaiseBare, Restore
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.sandbox import StartKind
from rewarm.policy.keepalive.base import USER, Keep, KeepaliveDecision, KeepalivePolicy, LayerView

_HOLD_S = 1.0  # how soon to ask again about an instance for which a batch gathers


class Pool:
    """Every sandbox, runtime and Bare of one node."""

    def __init__(self, ledger: Ledger, disk: Ledger, timers: Timers, keepalive: KeepalivePolicy) -> None:
        self.ledger = ledger
        self.timers = timers
        self.keepalive = keepalive  # rules the layers that functions share
        self.ground = Ground(ledger, disk, timers, keepalive)
        self.runtimes = Langs(self.ground)
        self.asleep = Asleep(self.ground, self.runtimes)
        self.bares = Bares(self.ground)
        self.models = Models(self.ground)
        self.sandboxes: dict[int, Sandbox] = {}
        self.langs = self.runtimes.layers

    @property
    def evictions(self) -> int:
        """Layers freed because memory was short."""
        return self.ground.evictions

    # ------------------------------------------------------------ rising

    def need_bytes(self, fn: FunctionState, snapshot: Snapshot | None = None) -> int:
        """What one more instance of `fn`, restored from `snapshot` if that is one, is expected to put on the ledger."""
        size = int(fn.resident.value)
        return size if snapshot is not None else size + self.runtimes.need_bytes(fn.key)

    def start(
        self, fn: FunctionState, now: float, out: list[Effect], *, ahead: bool = False, restore: bool = True
    ) -> Sandbox | None:
        """Begin one instance, or None if even evicting everything idle leaves no room for it.

        It is restored from the function's snapshot if there is one, unless not to `restore`. One that is started
        `ahead` of its use takes nothing away that is worth as much as itself.
        """
        snapshot = snapshot_of(fn) if restore else None
        worth_below = eviction.worth_of_next(self, fn, now) if ahead else INF
        need_bytes = self.need_bytes(fn, snapshot)
        if not eviction.make_room(self, need_bytes, now, out, sparing=fn, worth_below=worth_below):
            return None
        if self.models.by_function and not ahead and fn.live == 0:
            self.models.started_cold(fn.name, now, out)
        if snapshot is not None:
            snapshot.last_used_s = now
            sandbox = self._enter(self.ground.new_id(), fn, StartKind.RESTORED, now)
            out.append(Restore(sandbox.id, sandbox.revision))
            return sandbox
        in_vm = fn.key.vm_bytes > 0
        found = self._found(fn.key)
        bare = self.bares.take() if not in_vm else None
        sandbox = self._enter(bare.id if bare is not None else self.ground.new_id(), fn, found, now)
        self.runtimes.hold(sandbox, now, out)
        if bare is None:
            out.append(RaiseBare(sandbox.id, in_vm))
        else:
            self.raised(sandbox, State.BARE, now, out)
            self.bares.consider(now, out)
        return sandbox

    def _enter(self, sandbox_id: int, fn: FunctionState, found: StartKind, now: float) -> Sandbox:
        sandbox = Sandbox(sandbox_id, fn, found, now)
        self.sandboxes[sandbox_id] = sandbox
        fn.sandboxes[sandbox_id] = sandbox
        fn.rising += 1
        self.ledger.enter(sandbox_id, int(fn.resident.value))
        self.timers.arm(sandbox, now + max(start_timeout_s(fn.key), fn.revision.spec.timeout_s))
        return sandbox

    def _found(self, key: LangKey) -> StartKind:
        any_bare = self.bares.idle and not key.vm_bytes
        return self.runtimes.found(key) or (StartKind.BARE if any_bare else StartKind.COLD)

    def raised(self, sandbox: Sandbox, state: State, now: float, out: list[Effect]) -> bool:
        """It has come so far. True once the sandbox is READY."""
        if sandbox.state is State.DYING:
            return False
        sandbox.move(state)
        fn = sandbox.function
        if state is State.BARE:
            self.runtimes.fork(sandbox, now, out)
        elif state is State.LANG:
            out.append(LoadUser(sandbox.id, sandbox.revision))
        elif state is State.READY:
            sandbox.ready_at_s = now
            fn.rising -= 1
            fn.start_s.add(now - sandbox.created_s)
            fn.last_error = None
            return True
        return False

    # ------------------------------------------------------------ ending

    def destroy(self, sandbox: Sandbox, reason: str, out: list[Effect]) -> None:
        """Tell the driver to end it. Its bytes stay on the ledger until it is gone."""
        if sandbox.state in (State.DYING, State.GONE):
            return
        self._serves_no_more(sandbox)
        sandbox.move(State.DYING)
        sandbox.ending = reason
        self.ledger.told_to_end(sandbox.id)
        out.append(Destroy(sandbox.id, reason))

    def _serves_no_more(self, sandbox: Sandbox) -> None:
        fn = sandbox.function
        if sandbox.state in RISING:
            fn.rising -= 1
        elif sandbox.state is State.READY and sandbox in fn.idle:
            fn.idle.remove(sandbox)

    def exited(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """The driver reports the end."""
        self._serves_no_more(sandbox)
        sandbox.move(State.GONE)
        del self.sandboxes[sandbox.id]
        del sandbox.function.sandboxes[sandbox.id]
        self.ledger.leave(sandbox.id)
        sandbox.timer_at_s = INF  # what it has in the heap is outgrown, and need not stay there till its time
        self.runtimes.let_go(sandbox, now, out)

    def peel(self, layer: Sandbox | LangLayer | Bare, reason: str, now: float, out: list[Effect]) -> None:
        """End an idle layer, because its window is over ("keepalive") or memory is short ("memory")."""
        if isinstance(layer, LangLayer):
            self.runtimes.drop(layer, reason, now, out)
        elif isinstance(layer, Bare):
            self.bares.drop(layer, reason, now, out)
        else:
            if layer.function.on_gone is not None:
                layer.function.on_gone(self.user_view(layer), reason == "memory", now)
            self.destroy(layer, reason, out)

    def close(self, out: list[Effect]) -> None:
        """Nothing is raised any more, and what is nobody's yet ends."""
        self.ground.closing = True
        self.bares.end_all(out)

    # ------------------------------------------------------------ idling

    def became_idle(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """Ask the function's policy how long this instance is worth its memory."""
        sandbox.idle_since_s = sandbox.last_used_s = now
        sandbox.rested = True
        sandbox.worth_until_s = -INF
        self._apply(sandbox, sandbox.function.keepalive.on_idle(self.user_view(sandbox), now), now, out)

    def window_over(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """Its time is up: the policy may give more, or it is peeled."""
        self._apply(sandbox, sandbox.function.keepalive.on_idle(self.user_view(sandbox), now), now, out)

    def _apply(self, sandbox: Sandbox, decision: KeepaliveDecision, now: float, out: list[Effect]) -> None:
        if isinstance(decision, Keep):
            self.ground.keep(sandbox, decision.for_s, now)
            return
        if sandbox.function.queue and len(sandbox.function.idle) == 1:
            self.ground.keep(sandbox, _HOLD_S, now)  # a batch gathers for it: not idle, whatever the policy thinks
            return
        if decision.prewarm_after_s is not None:
            self.prewarm(sandbox.function, now + decision.prewarm_after_s)
        self.peel(sandbox, "keepalive", now, out)
        self.runtimes.consider(sandbox.key, now, out)  # what is left of it, made afresh
        if not sandbox.key.vm_bytes:
            self.bares.consider(now, out)

    def deployed(self, fn: FunctionState, now: float) -> None:
        """The function is new: a policy that wants to know may have an instance raised ahead of the first call."""
        if getattr(fn.keepalive, "watches_deploys", False):
            prewarm = fn.keepalive.on_deployed(eviction.view_of_next(fn, now), now)  # type: ignore[attr-defined]
            if prewarm is not None:
                self.prewarm(fn, now + prewarm.after_s, prewarm.instances)

    def prewarm(self, fn: FunctionState, at_s: float, instances: int = 1) -> None:
        """At `at_s` there shall be that many instances, one of them idle. Takes the place of what was asked before."""
        fn.prewarm_at_s = at_s
        fn.prewarm_instances = instances
        self.timers.arm(fn, at_s)

    def start_ahead(self, fn: FunctionState, now: float, out: list[Effect]) -> None:
        """The moment of a prewarm has come."""
        lacking = fn.prewarm_instances - fn.live
        if lacking < 1 and not fn.idle and not fn.rising:
            lacking = 1
        for _ in range(min(lacking, fn.revision.spec.max_instances - len(fn.sandboxes))):
            if self.start(fn, now, out, ahead=True) is None:
                return

    # ------------------------------------------------------------ figures

    def measured(self, node: int | LangKey, resident_bytes: int) -> None:
        """Correct the ledger by what was measured; unknown nodes (just gone) are ignored."""
        if isinstance(node, LangKey):
            self.runtimes.measured(node, resident_bytes)
        elif node in self.bares.layers:
            self.bares.measured(self.bares.layers[node], resident_bytes)
        elif node in self.sandboxes:
            self.ledger.enter(node, resident_bytes)
            sandbox = self.sandboxes[node]
            if sandbox.state in (State.READY, State.BUSY):
                sandbox.function.resident.add(resident_bytes)

    def user_view(self, sandbox: Sandbox) -> LayerView:
        fn = sandbox.function
        return LayerView(
            USER, fn.name, sandbox.key, fn.up_s.value, self.ledger.of(sandbox.id),
            sandbox.idle_since_s, sandbox.last_used_s, sandbox.uses, fn.live - 1 if len(fn.sandboxes) > 1 else 0,
        )  # fmt: skip


def snapshot_of(fn: FunctionState) -> Snapshot | None:
    """The one that an instance of the function can be restored from now."""
    snapshot = fn.snapshot
    return snapshot if snapshot is not None and snapshot.state is SnapshotState.THERE else None
