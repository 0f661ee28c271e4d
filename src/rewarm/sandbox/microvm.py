"""The micro-VM driver: an instance is a guest restored from a snapshot, in a machine of its own.

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
from rewarm.errors import RewarmError, SandboxFailed
from rewarm.facts import messages as m
from rewarm.facts.sandbox import SandboxState
from rewarm.pump import Pump
from rewarm.sandbox.box import Box, remove_scratch
from rewarm.sandbox.dialogue import Dialogue
from rewarm.sandbox.disklangs import DiskLangs
from rewarm.sandbox.library import Asset, Library, Recipe
from rewarm.sandbox.port import Node, Sink
from rewarm.sandbox.waking import USELESS, Start, told, worker_status
from rewarm.snapshot.restore import plan
from rewarm.vmm.monitor import Monitor
from rewarm.vmm.publishing import RESTORE_DEADLINE_S, load_order
from rewarm.vmm.talk import resume_frame

log = logging.getLogger("rewarm.sandbox")

_ATTEMPTS: Final = 2
_CLOSE_TIMEOUT_S: Final = 15.0
_NAME_CHARS_MAX: Final = 48  # of the function's, in the guest's host name


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
        self._starts: dict[int, Start] = {}
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
        self._langs = DiskLangs(self._library, self._clock, sink, self._forget_it)

    def carry_out(self, effect: m.Effect) -> None:
        self._handlers[type(effect)](effect)  # type: ignore[operator]

    def pids(self) -> dict[Node, int]:
        return {box.id: box.pid for box in self._boxes.values() if box.pid is not None}

    def drain_log(self, sandbox_id: int) -> None:
        box = self._boxes.get(sandbox_id)
        if box is not None and box.pid is not None:
            box.drain_log()

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------ Lang layers

    def _raise_lang(self, effect: m.RaiseLang) -> None:
        self._do(self._langs.raise_(effect.key))

    def _drop_lang(self, effect: m.DropLang) -> None:
        self._langs.drop(effect.key)

    # ------------------------------------------------------------ snapshots of functions

    def _sleep(self, effect: m.Sleep) -> None:
        order = self._sleeping[effect.revision.digest] = object()
        self._do(self._slept(Recipe.of(effect.revision), order))

    async def _slept(self, recipe: Recipe, order: object) -> None:
        event: m.Slept | m.SleepLost
        try:
            event = m.Slept(recipe.digest, await self._library.publish(recipe))
        except Exception as failure:
            error = told(failure, f"no snapshot of {recipe.spec.name} could be made")
            log.warning("%s cannot sleep: %s", recipe.spec.name, error.message)
            event = m.SleepLost(recipe.digest, error)
        if self._sleeping.get(recipe.digest) is order:  # else it was forgotten: nobody waits for an answer
            del self._sleeping[recipe.digest]
            self._sink.post(event)

    def _forget(self, effect: m.Forget) -> None:
        self._sleeping.pop(effect.revision.digest, None)
        self._forget_it(effect.revision.digest, drive=True)

    def _forget_it(self, name: str, *, drive: bool = False) -> None:
        try:
            self._library.forget(name, drive=drive)
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
        except SandboxFailed as error:
            self._sink.post(m.Exited(sandbox_id, error))
            return None
        return box

    def _fork(self, effect: m.Fork) -> None:
        box = self._boxes[effect.sandbox_id]
        box.spec = effect.spec
        if effect.key in self._langs:
            self._loop.call_soon(self._forked, box)
        else:
            self._give_up(box, SandboxFailed(f"an instance could not be made: the runtime {effect.key} has just ended"))

    def _forked(self, box: Box) -> None:
        if not box.released:
            self._sink.post(m.Raised(box.id, SandboxState.LANG, 0.0))

    def _load_user(self, effect: m.LoadUser) -> None:
        box = self._boxes.get(effect.sandbox_id)
        if box is not None and not box.destroyed:
            self._begin(box, Start(Recipe.of(effect.revision), asleep=False))

    def _restore(self, effect: m.Restore) -> None:
        box = self._box(effect.sandbox_id)
        if box is not None:
            box.spec = effect.revision.spec
            self._begin(box, Start(Recipe.of(effect.revision), asleep=True))

    def _begin(self, box: Box, start: Start) -> None:
        box.since_s = self._clock()
        self._starts[box.id] = start
        self._do(self._climb(box, start))

    async def _climb(self, box: Box, start: Start) -> None:
        """Find what it is restored from, and spawn its machine."""
        library, recipe = self._library, start.recipe
        start.asset = None
        try:
            asset = await (library.user(recipe) if start.asleep else library.lang_for(recipe))
            if self._boxes.get(box.id) is box:  # else it was destroyed meanwhile
                self._spawn(box, start, asset)
        except Exception as failure:
            error = told(failure, f"a micro-VM of {recipe.spec.name} could not be started")
            if self._boxes.get(box.id) is not box:
                return
            if isinstance(error, USELESS):
                self._lost(start, error)
                if not start.asleep and 0 < start.attempts < _ATTEMPTS:
                    return await self._climb(box, start)
            self._give_up(box, error)

    def _lost(self, start: Start, error: RewarmError) -> None:
        """A snapshot is of no use: it goes, and whoever starts the function next does without, or has it made anew."""
        if not start.asleep:
            if start.asset is not None:
                self._library.refuse(start.recipe.spec.lang_key, start.asset.snapshot, error)
            return
        if start.asset is not None:  # else the library found out, and has counted it
            self._library.counts.lost += 1
        log.warning("%s is started without its snapshot: %s", start.recipe.spec.name, error.message)
        self._forget_it(start.recipe.digest)
        self._sink.post(m.SleepLost(start.recipe.digest, error))

    def _spawn(self, box: Box, start: Start, asset: Asset) -> None:
        site, counts = asset.site, asset.site.counts
        start.attempts += 1
        start.asset = asset
        how = plan(asset.snapshot, site.policy if start.asleep else "lazy", site.means, site.pager)
        how.begin()
        try:
            machine = site.restore(asset.images, asset.snapshot, how)
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
        start.deadline = self._loop.call_later(self._restore_deadline_s, self._late, box, start)
        start.watch = self._do(self._watch(box, start, machine))

    async def _watch(self, box: Box, start: Start, machine: Monitor) -> None:
        """Its monitor says it if it cannot load the snapshot, and when the guest goes on: then it is told the time."""
        try:
            await machine.running(2 * self._restore_deadline_s)
            if not box.released:
                box.send(resume_frame(f"{box.spec.name[:_NAME_CHARS_MAX]}-{box.id}"))
        except RewarmError as error:
            if not start.resumed:
                start.error = start.error or error
            box.kill()

    def _late(self, box: Box, start: Start) -> None:
        start.deadline = None
        self._library.counts.hung += 1
        start.error = SandboxFailed(
            f"a micro-VM of {box.spec.name!r} did not wake within {self._restore_deadline_s:.0f} s"
        )
        log.warning("%s; it is killed", start.error.message)
        box.kill()

    def _greet(self, box: Box, frame_type: int, number: int) -> bool:
        """RESUMED: it runs, and is one of its own. Before it comes, nothing else may, but FAILED."""
        start = self._starts.get(box.id)
        if start is None or start.resumed or (frame_type == wire.FAILED and box.loading):
            return False
        if frame_type != wire.RESUMED or not box.loading:
            box.loading = False  # so that nothing is taken from it any more
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
        start.given_up = box.destroyed
        del self._boxes[box.id]
        self._do(self._gone(box, start))

    async def _gone(self, box: Box, start: Start) -> None:
        """Release what is left of it; then its end is told, or another machine takes its place."""
        machine, start.machine = start.machine, None
        if machine is not None:
            await machine.close()
            if box.status is not None:
                box.status = worker_status(box.status, machine.console)
        if start.watch is not None:
            await asyncio.wait({start.watch})  # it may know why
        box.release()
        again = not start.resumed and box.failure is None and start.attempts < _ATTEMPTS and not start.given_up
        if isinstance(start.error, USELESS) and not start.given_up:
            again = again and not start.asleep
            self._lost(start, start.error)
        if again:
            self._library.counts.retries += 1
            start.error = None
            fresh = self._box(box.id, start.attempts + 1)
            if fresh is None:
                del self._starts[box.id]
            else:
                fresh.spec, fresh.since_s = box.spec, box.since_s
                await self._climb(fresh, start)
            return
        del self._starts[box.id]
        self._sink.post(m.Exited(box.id, None if start.given_up else box.failure or start.error or box.why()))
        self._signal_closed()

    async def close(self) -> None:
        """Kill everything and wait until nothing is left (bounded)."""
        self._closing = asyncio.Event()
        self._sleeping.clear()
        self._langs.leave()
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
