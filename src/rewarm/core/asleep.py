"""Asleep: the layer below all others. A function's initialised instance as a snapshot on disk, which holds no memory.

A snapshot is wanted (`Sleep`) when a function that can sleep is deployed, and again whenever its last instance has gone
and there is none. It is made beside everything else; starts go the long way until it is there (`Slept`). While no
instance lives it is idle, and the function's policy is asked about it as about any layer: it saves what a start without
it takes longer, and its bytes cost what disk costs (`facts.prices`). What is not worth keeping is deleted (`Forget`).

Disk has an account and a budget of its own, which the Lang layers of micro-VMs share: they are snapshots as well.
When it is exceeded what is worth least per byte goes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rewarm.core.langs import Langs
from rewarm.core.state import FunctionState, Ground, LangLayer, Mean, Sandbox, Snapshot, SnapshotState
from rewarm.facts.messages import Effect, Forget, Sleep, SleepLost, Slept
from rewarm.facts.prices import as_memory_bytes
from rewarm.facts.sandbox import SandboxState, StartKind
from rewarm.policy.keepalive.base import ASLEEP, Keep, KeepaliveDecision, LayerView

FAILURES_MAX: Final = 3  # in a row, of making or of waking: then the function does without until it is deployed again
_MAKINGS: Final = 10.0  # making one takes a whole VM for a while: not for less than so many times as long of sleep

Victim = Snapshot | LangLayer


class Asleep:
    """Every snapshot of one node."""

    def __init__(self, ground: Ground, langs: Langs) -> None:
        self._ground = ground
        self._langs = langs
        self._functions: dict[str, FunctionState] = {}  # by the digest of their revision

    # ------------------------------------------------------------ functions come and go

    def adopt(self, fn: FunctionState, now: float, out: list[Effect]) -> None:
        """The function answers with its revision from now on. What may lie on disk of it is used, or deleted."""
        self._functions[fn.revision.digest] = fn
        if fn.revision.spec.isolation != "microvm" or self._ground.draining:
            return
        snapshot = fn.snapshot = Snapshot(fn, now)
        if self._wants_one(snapshot, now):
            self._order(snapshot, now, out)
        else:
            out.append(Forget(fn.revision))

    def leave(self, fn: FunctionState, out: list[Effect]) -> None:
        """The function does not answer with this revision any more."""
        self._functions.pop(fn.revision.digest, None)
        if fn.snapshot is not None:
            self._forget(fn.snapshot, out)
            fn.snapshot = None

    # ------------------------------------------------------------ snapshots come and go

    def consider(self, snapshot: Snapshot, now: float, out: list[Effect]) -> None:
        """There is none: have one made if the policy thinks it worth its disk, and if there is room to make it."""
        ground = self._ground
        if ground.draining or ground.ledger.short_bytes(int(snapshot.function.resident.value)):
            return
        if self._wants_one(snapshot, now) and self._fits(snapshot, now):
            self._order(snapshot, now, out)

    def _wants_one(self, snapshot: Snapshot, now: float) -> bool:
        if snapshot.failures >= FAILURES_MAX or snapshot.useless:
            return False
        decision = snapshot.function.keepalive.on_idle(self.view(snapshot, now), now)
        if not isinstance(decision, Keep):
            return False
        return decision.for_s is None or decision.for_s >= _MAKINGS * snapshot.make_s

    def _order(self, snapshot: Snapshot, now: float, out: list[Effect]) -> None:
        snapshot.state = SnapshotState.MAKING
        snapshot.ordered_s = now
        out.append(Sleep(snapshot.revision))

    def slept(self, event: Slept, now: float, out: list[Effect]) -> None:
        fn = self._functions.get(event.digest)
        if fn is None:
            return
        snapshot = fn.snapshot
        if snapshot is None:  # it was there before anybody asked
            snapshot = fn.snapshot = Snapshot(fn, now)
        if snapshot.state is SnapshotState.MAKING:
            snapshot.make_s = now - snapshot.ordered_s
        snapshot.state = SnapshotState.THERE
        snapshot.facts = event.facts
        snapshot.restore_s = fn.up_s = Mean(event.facts.restore_s)
        fn.start_s = Mean(event.facts.restore_s)
        snapshot.idle_since_s = snapshot.last_used_s = now
        self._ground.disk.enter(event.digest, event.facts.disk_bytes)
        self.make_room(now, out)
        if snapshot.idle:
            self._ask(snapshot, now, out)

    def lost(self, event: SleepLost, now: float, out: list[Effect]) -> None:
        """Not made, damaged, or deleted. One that was there is made anew once no instance of the function lives."""
        fn = self._functions.get(event.digest)
        snapshot = fn.snapshot if fn is not None else None
        if fn is None or snapshot is None or snapshot.state is SnapshotState.NONE:
            return
        was_there = snapshot.state is SnapshotState.THERE
        snapshot.failures += 1
        self._gone(snapshot)
        if was_there and not fn.sandboxes:
            self.consider(snapshot, now, out)

    def unwoken(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """An instance did not wake, and nobody said (`lost`) that the snapshot is at fault. Perhaps it is."""
        snapshot = sandbox.function.snapshot
        if snapshot is None or snapshot.revision is not sandbox.revision or snapshot.state is not SnapshotState.THERE:
            return
        snapshot.failures += 1
        if snapshot.failures >= FAILURES_MAX and not self._ground.draining:
            self._drop(snapshot, now, out)

    def restored(self, sandbox: Sandbox, seconds: float) -> None:
        """An instance woke up. The snapshot may have gone meanwhile, or be another revision's."""
        snapshot = sandbox.function.snapshot
        if snapshot is not None and snapshot.revision is sandbox.revision:
            snapshot.restore_s.add(seconds)
            snapshot.uses += 1
            snapshot.failures = 0

    def _forget(self, snapshot: Snapshot, out: list[Effect]) -> None:
        if snapshot.state is not SnapshotState.NONE:
            self._gone(snapshot)
            out.append(Forget(snapshot.revision))

    def _gone(self, snapshot: Snapshot) -> None:
        fn = snapshot.function
        if snapshot.state is SnapshotState.THERE and snapshot.facts is not None:
            fn.up_s, fn.start_s = fn.user_s, Mean(snapshot.facts.cold_s)
        snapshot.state = SnapshotState.NONE
        self._ground.disk.leave(snapshot.revision.digest)

    # ------------------------------------------------------------ idling

    def rest(self, snapshot: Snapshot, now: float, out: list[Effect]) -> None:
        """The last instance of the function has gone."""
        if snapshot.state is SnapshotState.THERE:
            snapshot.idle_since_s = now
            self._ask(snapshot, now, out)
        elif snapshot.state is SnapshotState.NONE:
            self.consider(snapshot, now, out)

    def wake(self, snapshot: Snapshot, now: float, out: list[Effect]) -> None:
        """A timer of this snapshot rang."""
        if snapshot.function.snapshot is not snapshot or not snapshot.idle:
            return
        if now < snapshot.expires_s:
            self._ground.timers.arm(snapshot, snapshot.expires_s)
        else:
            self._ask(snapshot, now, out)

    def _ask(self, snapshot: Snapshot, now: float, out: list[Effect]) -> None:
        if self._ground.draining:
            return  # nothing is decided any more: what sleeps now sleeps until the next server
        fn, view = snapshot.function, self.view(snapshot, now)
        decision: KeepaliveDecision | None = None if snapshot.useless else fn.keepalive.on_idle(view, now)
        if isinstance(decision, Keep):
            self._ground.keep(snapshot, decision.for_s, now)
        else:
            self._drop(snapshot, now, out)

    def _drop(self, snapshot: Snapshot, now: float, out: list[Effect]) -> None:
        fn = snapshot.function
        if fn.on_gone is not None:
            fn.on_gone(self.view(snapshot, now), False, now)  # whatever the reason, it is not want of memory
        self._forget(snapshot, out)

    # ------------------------------------------------------------ room on disk

    def make_room(self, now: float, out: list[Effect]) -> None:
        """Free what is worth least per byte until the disk budget holds, or nothing is left that may go."""
        disk = self._ground.disk
        if not disk.short_bytes():
            return
        for _, _, victim in sorted(self._ranked(now), key=lambda entry: entry[:2]):
            if isinstance(victim, Snapshot):
                self._drop(victim, now, out)
            else:
                self._langs.drop(victim, "disk", now, out)
            if not disk.short_bytes():
                return

    def _fits(self, snapshot: Snapshot, now: float) -> bool:
        """There is room for it as large as it was, or enough that is worth less. Unknown ones have to show."""
        disk_bytes = snapshot.facts.disk_bytes if snapshot.facts is not None else 0
        short = self._ground.disk.short_bytes(disk_bytes)
        if not short:
            return True
        worth = snapshot.function.keepalive.priority(self.view(snapshot, now), now)
        less = [victim for other, _, victim in self._ranked(now) if other < worth]
        return sum(self._ground.disk.of(victim.node) for victim in less) >= short

    def _ranked(self, now: float) -> Iterator[tuple[float, float, Victim]]:
        """All that may go: by worth per byte, then last use. Not what is being restored from."""
        for fn in self._functions.values():
            snapshot = fn.snapshot
            if snapshot is not None and snapshot.state is SnapshotState.THERE and not _is_waking(fn):
                worth = fn.keepalive.priority(self.view(snapshot, now), now)
                yield worth, snapshot.last_used_s, snapshot
        for key, lang in self._langs.layers.items():
            if key.vm_bytes and self._langs.idle(lang):
                yield self._ground.keepalive.priority(self._langs.view(lang), now), lang.last_used_s, lang

    # ------------------------------------------------------------ figures

    def view(self, snapshot: Snapshot, now: float) -> LayerView:
        """As policies see it: what it takes on disk, as bytes of memory that would cost as much."""
        fn, facts = snapshot.function, snapshot.facts
        there = snapshot.state is SnapshotState.THERE
        return LayerView(
            ASLEEP, fn.name, fn.key, max(0.0, snapshot.saved_s),
            as_memory_bytes(facts.disk_bytes) if facts is not None else 0,
            snapshot.idle_since_s if snapshot.idle else now, snapshot.last_used_s if there else now,
            snapshot.uses if there else 0,
        )  # fmt: skip


def _is_waking(fn: FunctionState) -> bool:
    return any(s.found is StartKind.RESTORED and s.state is SandboxState.ABSENT for s in fn.sandboxes.values())
