"""The micro-VM driver: an instance is a guest restored from a snapshot, in a QEMU process of its own.

A Lang layer is a snapshot on disk (see `library`), so RaiseLang only makes sure that it is there, and no process stands
for it. Fork claims it for a function; the machine is spawned by LoadUser, which says what its third drive holds. So
what it takes to restore the Lang layer belongs to the User layer. Restore brings an initialised instance at once.

Whatever is restored is told RESUME first, and nothing else before it answered: see `wire`. One that does not answer in
time is killed and tried once more, as is one whose machine dies on the way up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from rewarm import wire
from rewarm.clock import Clock, system_clock
from rewarm.errors import RewarmError, SandboxFailed, SnapshotCorrupt, SnapshotMismatch
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import SandboxState
from rewarm.pump import Pump
from rewarm.sandbox.box import Box, remove_scratch
from rewarm.sandbox.dialogue import Dialogue
from rewarm.sandbox.library import Asset, Library, Recipe, lang_name
from rewarm.sandbox.port import Node, Sink
from rewarm.snapshot.restore import plan
from rewarm.vmm.machine import Machine
from rewarm.vmm.publishing import RESTORE_DEADLINE_S, load_order
from rewarm.vmm.talk import resume_frame

log = logging.getLogger("rewarm.sandbox")

_ATTEMPTS: Final = 2
_CLOSE_TIMEOUT_S: Final = 15.0
_NAME_CHARS_MAX: Final = 48  # of the function's, in the guest's host name


class _Start:
    """One sandbox on its way up, and the machine it lives in from then on."""

    def __init__(self, recipe: Recipe, asleep: bool) -> None:
        self.recipe = recipe
        self.asleep = asleep  # from the function's own snapshot, not by way of Lang
        self.attempts = 0
        self.policy = ""  # by which it was restored
        self.resumed = False
        self.given_up = False  # Destroy came between two machines
        self.error: RewarmError | None = None  # why the machine never ran
        self.machine: Machine | None = None
        self.deadline: asyncio.TimerHandle | None = None

    def settle(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class MicrovmDriver:
    """`library` has the snapshots; `pump` reads the sandboxes' sockets (None: one of its own)."""

    name = "microvm"

    def __init__(
        self, run_dir: Path, library: Library, clock: Clock = system_clock, pump: Pump | None = None,
        restore_deadline_s: float = RESTORE_DEADLINE_S,
    ) -> None:  # fmt: skip
        self._restore_deadline_s = restore_deadline_s
        self._run_dir = run_dir
        self._library = library
        self._clock = clock
        self._own_pump = pump is None
        self._pump = Pump() if pump is None else pump
        self._boxes: dict[int, Box] = {}
        self._starts: dict[int, _Start] = {}
        self._langs: dict[LangKey, bool] = {}  # → it is there; False: being made
        self._sleeping: dict[str, object] = {}  # by digest: which order it is that is carried out
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Event | None = None
        self._handlers = {
            m.RaiseBare: self._raise_bare, m.RaiseLang: self._raise_lang, m.Fork: self._fork,
            m.LoadUser: self._load_user, m.Restore: self._restore, m.Run: self._run, m.Destroy: self._destroy,
            m.DropLang: self._drop_lang, m.Sleep: self._sleep, m.Forget: self._forget,
        }  # fmt: skip

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._dialogue = Dialogue(sink, self._greet)
        self._loop = asyncio.get_running_loop()
        if self._own_pump:
            self._pump.watched_by(self._loop)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._library.pager_died = self._pager_died

    def carry_out(self, effect: m.Effect) -> None:
        self._handlers[type(effect)](effect)  # type: ignore[operator]

    def pids(self) -> dict[Node, int]:
        return {box.id: box.pid for box in self._boxes.values() if box.pid is not None}

    def drain_log(self, sandbox_id: int) -> None:
        box = self._boxes.get(sandbox_id)
        if box is not None and box.pid is not None:
            box.drain_log()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ Lang layers

    def _raise_lang(self, effect: m.RaiseLang) -> None:
        self._langs[effect.key] = False
        self._do(self._raised_lang(effect.key, self._clock()))

    async def _raised_lang(self, key: LangKey, since_s: float) -> None:
        error: RewarmError | None = None
        try:
            if not key.vm_bytes:
                raise SandboxFailed(f"runtime {key} is not one of a micro-VM")
            disk_bytes = (await self._library.lang(key)).snapshot.disk_bytes
        except RewarmError as failure:
            error = failure
        if self._langs.get(key) is not False:
            return  # it was dropped meanwhile
        if error is None:
            self._langs[key] = True
            self._sink.post(m.LangRaised(key, self._clock() - since_s))
            self._sink.post(m.Measured(key, disk_bytes))
        else:
            del self._langs[key]
            self._sink.post(m.LangExited(key, error))

    def _drop_lang(self, effect: m.DropLang) -> None:
        """There is no process to end. What is on disk stays for the next time, unless it is disk that is short."""
        if self._langs.pop(effect.key, None) is not None:
            if effect.reason == "disk":
                self._forget_it(lang_name(effect.key))
            self._loop.call_soon(self._sink.post, m.LangExited(effect.key))

    # ------------------------------------------------------------ snapshots of functions

    def _sleep(self, effect: m.Sleep) -> None:
        order = self._sleeping[effect.revision.digest] = object()
        self._do(self._slept(Recipe.of(effect.revision), order))

    async def _slept(self, recipe: Recipe, order: object) -> None:
        event: m.Slept | m.SleepLost
        try:
            event = m.Slept(recipe.digest, await self._library.publish(recipe))
        except RewarmError as error:
            log.warning("%s cannot sleep: %s", recipe.spec.name, error.message)
            event = m.SleepLost(recipe.digest, error)
        if self._sleeping.get(recipe.digest) is order:  # else it was forgotten: nobody waits for an answer
            del self._sleeping[recipe.digest]
            self._sink.post(event)

    def _forget(self, effect: m.Forget) -> None:
        self._sleeping.pop(effect.revision.digest, None)
        self._forget_it(effect.revision.digest)

    def _forget_it(self, name: str) -> None:
        try:
            self._library.forget(name)
        except RewarmError as error:
            log.warning("%s", error.message)

    # ------------------------------------------------------------ the way up

    def _raise_bare(self, effect: m.RaiseBare) -> None:
        since_s = self._clock()
        box = self._box(effect.sandbox_id)
        if box is not None:
            self._sink.post(m.Raised(box.id, SandboxState.BARE, self._clock() - since_s))

    def _box(self, sandbox_id: int, attempt: int = 1) -> Box | None:
        """None if there can be none; its end was reported then."""
        name = f"sandbox-{sandbox_id}" if attempt == 1 else f"sandbox-{sandbox_id}-{attempt}"
        try:
            box = self._boxes[sandbox_id] = Box(sandbox_id, self._run_dir / name, self._loop, self._pump)
        except OSError as error:
            text = f"no directory or socket for a sandbox: {error}; is the disk full, or the limit of open files low?"
            self._sink.post(m.Exited(sandbox_id, SandboxFailed(text)))
            return None
        return box

    def _fork(self, effect: m.Fork) -> None:
        box = self._boxes[effect.sandbox_id]
        box.spec = effect.spec
        if self._langs.get(effect.key):
            self._loop.call_soon(self._forked, box)
        else:
            self._give_up(box, SandboxFailed(f"an instance could not be made: the runtime {effect.key} has just ended"))

    def _forked(self, box: Box) -> None:
        if not box.released:
            self._sink.post(m.Raised(box.id, SandboxState.LANG, 0.0))

    def _load_user(self, effect: m.LoadUser) -> None:
        box = self._boxes.get(effect.sandbox_id)
        if box is not None and not box.destroyed:
            self._begin(box, _Start(Recipe.of(effect.revision), asleep=False))

    def _restore(self, effect: m.Restore) -> None:
        box = self._box(effect.sandbox_id)
        if box is not None:
            box.spec = effect.revision.spec
            self._begin(box, _Start(Recipe.of(effect.revision), asleep=True))

    def _begin(self, box: Box, start: _Start) -> None:
        box.since_s = self._clock()
        self._starts[box.id] = start
        self._do(self._climb(box, start))

    async def _climb(self, box: Box, start: _Start) -> None:
        """Find what it is restored from, and spawn its machine."""
        library, recipe = self._library, start.recipe
        try:
            asset = await (library.user(recipe) if start.asleep else library.lang_for(recipe))
            if self._boxes.get(box.id) is box:  # else it was destroyed meanwhile
                self._spawn(box, start, asset)
        except Exception as failure:
            if not isinstance(failure, RewarmError):
                log.exception("a micro-VM of %s could not be started", recipe.spec.name)
            error = failure if isinstance(failure, RewarmError) else SandboxFailed(f"no micro-VM: {failure}")
            if self._boxes.get(box.id) is box:
                self._not_spawned(box, start, error)

    def _not_spawned(self, box: Box, start: _Start, error: RewarmError) -> None:
        if start.asleep and isinstance(error, SnapshotCorrupt | SnapshotMismatch):
            self._lost(start, error)
        self._give_up(box, error)

    def _lost(self, start: _Start, error: RewarmError) -> None:
        """The function's snapshot is of no use: it goes, and whoever starts it next does without."""
        log.warning("%s is started without its snapshot: %s", start.recipe.spec.name, error.message)
        self._forget_it(start.recipe.digest)
        self._sink.post(m.SleepLost(start.recipe.digest, error))

    def _spawn(self, box: Box, start: _Start, asset: Asset) -> None:
        site, counts = asset.site, asset.site.counts
        start.attempts += 1
        how = plan(asset.snapshot, site.policy if start.asleep else "lazy", site.means, site.pager)
        how.begin()
        try:
            machine = Machine.restore(site.hardware(asset.images), asset.snapshot.state, how)
        finally:
            how.end()
        counts.restores += 1
        counts.policies[how.policy] += 1
        start.policy, start.machine = how.policy, machine
        channel, log_fd = machine.detach()
        box.adopt(channel, log_fd, machine.pid, None)
        box.hand_over(self._dialogue.frames, self._maybe_gone, self._dialogue.log)
        machine.when_ended(box.ended)
        box.loading = True  # it may say FAILED
        box.send(resume_frame(f"{box.spec.name[:_NAME_CHARS_MAX]}-{box.id}"))
        start.deadline = self._loop.call_later(self._restore_deadline_s, self._late, box, start)
        self._do(self._watch(box, start, machine))

    async def _watch(self, box: Box, start: _Start, machine: Machine) -> None:
        """QEMU says it if it cannot load the snapshot."""
        try:
            await machine.running(2 * self._restore_deadline_s)
        except RewarmError as error:
            if not start.resumed:
                start.error = start.error or error
            box.kill()

    def _late(self, box: Box, start: _Start) -> None:
        start.deadline = None
        self._library.counts.hung += 1
        start.error = SandboxFailed(
            f"a micro-VM of {box.spec.name!r} did not wake within {self._restore_deadline_s:.0f} s"
        )
        log.warning("%s; it is killed", start.error.message)
        box.kill()

    def _greet(self, box: Box, frame_type: int, number: int) -> bool:
        """RESUMED: it runs, and is one of its own."""
        start = self._starts.get(box.id)
        if frame_type != wire.RESUMED or start is None or start.resumed:
            return False
        start.resumed = True
        start.settle()
        box.loading = False
        recipe, seconds = start.recipe, self._clock() - box.since_s
        if box.destroyed:
            return True
        if start.asleep:
            self._sink.post(m.Raised(box.id, SandboxState.READY, seconds))
        else:
            box.lead_s = seconds
            weights = recipe.weights.name if recipe.weights is not None else None
            self._dialogue.load(box, load_order(recipe.spec, recipe.version, weights))
        return True

    def _run(self, effect: m.Run) -> None:
        self._dialogue.run(self._boxes[effect.sandbox_id], effect.requests)

    # ------------------------------------------------------------ the way down

    def _destroy(self, effect: m.Destroy) -> None:
        box = self._boxes.get(effect.sandbox_id)
        if box is None:
            start = self._starts.get(effect.sandbox_id)
            if start is not None:
                start.given_up = True
            return
        if box.destroyed:
            return
        box.destroyed = True
        if box.pid is None:  # no machine was spawned for it yet
            self._give_up(box, None)
        else:
            box.kill()

    def _give_up(self, box: Box, error: RewarmError | None) -> None:
        """End a sandbox that has no machine."""
        del self._boxes[box.id]
        self._starts.pop(box.id, None)
        box.release()
        self._sink.post(m.Exited(box.id, error))
        self._signal_closed()

    def _pager_died(self) -> None:
        """Whoever touches a page that it has not brought stands still for ever."""
        for box in self._boxes.values():
            start = self._starts.get(box.id)
            if start is not None and start.policy == "uffd":
                box.stop("the process that fills its memory has died")

    def _maybe_gone(self, box: Box) -> None:
        """Something about its end became known; act when everything is."""
        if self._boxes.get(box.id) is not box or not box.eof or box.status is None:
            return
        start = self._starts[box.id]
        start.settle()
        again = not start.resumed and box.failure is None and start.attempts < _ATTEMPTS
        again = again and not isinstance(start.error, SnapshotCorrupt | SnapshotMismatch)
        start.given_up = box.destroyed
        del self._boxes[box.id]
        self._do(self._gone(box, start, again))

    async def _gone(self, box: Box, start: _Start, again: bool) -> None:
        """Release what is left of it; then its end is told, or another machine takes its place."""
        machine, start.machine = start.machine, None
        if machine is not None:
            await machine.close()
        box.release()
        if again and not start.given_up:
            self._library.counts.retries += 1
            start.error = None
            fresh = self._box(box.id, start.attempts + 1)
            if fresh is None:
                del self._starts[box.id]
            else:
                fresh.spec, fresh.since_s = box.spec, box.since_s
                await self._climb(fresh, start)
            return
        if start.asleep and isinstance(start.error, SnapshotCorrupt | SnapshotMismatch) and not start.given_up:
            self._library.counts.lost += 1
            self._lost(start, start.error)
        del self._starts[box.id]
        self._sink.post(m.Exited(box.id, None if start.given_up else box.failure or start.error or box.why()))
        self._signal_closed()

    async def close(self) -> None:
        """Kill everything and wait until nothing is left (bounded)."""
        self._closing = asyncio.Event()
        self._sleeping.clear()
        for key in list(self._langs):
            self._drop_lang(m.DropLang(key, "shutdown"))
        for sandbox_id in {*self._boxes, *self._starts}:
            self._destroy(m.Destroy(sandbox_id, "shutdown"))
        await self._library.close()
        self._signal_closed()
        try:
            await asyncio.wait_for(self._closing.wait(), _CLOSE_TIMEOUT_S)
        except TimeoutError:
            pass  # parent-death signals end the rest with us
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._own_pump:
            self._pump.close()
        await self._loop.run_in_executor(None, self._clear)

    def _signal_closed(self) -> None:
        if self._closing is not None and not (self._boxes or self._starts):
            self._closing.set()

    def _clear(self) -> None:
        for scratch in self._run_dir.glob("sandbox-*"):
            remove_scratch(scratch)
