"""The process driver: one zygote per Lang key, an instance is a fork of it. No root, any Linux.

How a sandbox ends is told by two things, in either order: the end of its stream and the wait status of its process.
Only when both are known are its answers complete, and only then is Exited posted.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Final

from rewarm import wire
from rewarm.clock import Clock, system_clock
from rewarm.errors import RewarmError, SandboxFailed
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import SandboxState
from rewarm.pump import Pump
from rewarm.sandbox.box import Box, remove_scratch
from rewarm.sandbox.cgroup import Cgroups
from rewarm.sandbox.dialogue import Dialogue
from rewarm.sandbox.isolation import NONE, Isolation, begin_probe
from rewarm.sandbox.nodejs import Runtimes
from rewarm.sandbox.port import Models, Node, Sink
from rewarm.sandbox.reaper import Reaper
from rewarm.sandbox.zygotes import Zygotes

_SWEEP_AFTER_S = 0.5
_CLOSE_TIMEOUT_S = 10.0
_LATE_SWEEPS, _LATE_SWEEP_S = 5, 0.02
_ALL: Final = Isolation()


class ProcessDriver:
    """`pump` reads the sandboxes' sockets (None: one of its own); `isolation` is done as far as the machine allows.

    `models` knows the packs of weights (None: instances read their weights as their code says).
    """

    name = "process"

    def __init__(
        self, run_dir: Path, clock: Clock = system_clock, pump: Pump | None = None, isolation: Isolation = _ALL,
        models: Models | None = None,
    ) -> None:  # fmt: skip
        self._run_dir = run_dir
        self._isolation = isolation
        self._models = models
        self._clock = clock
        self._own_pump = pump is None
        self._pump = Pump() if pump is None else pump
        self._boxes: dict[int, Box] = {}
        self._closing: asyncio.Event | None = None
        self._handlers = {
            m.RaiseBare: self._raise_bare, m.RaiseLang: self._raise_lang, m.Fork: self._fork,
            m.LoadUser: self._load_user, m.Run: self._run, m.Destroy: self._destroy, m.DropLang: self._drop_lang,
        }  # fmt: skip

    def attach(self, sink: Sink) -> None:
        self._sink = sink
        self._dialogue = Dialogue(sink, self._greet)
        self._loop = asyncio.get_running_loop()
        if self._own_pump:
            self._pump.watched_by(self._loop)
        self._reaper = Reaper(self._loop)
        self._session = os.getsid(0)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._cgroups = Cgroups(self._run_dir, self._isolation.cgroups)
        self._namespaces = begin_probe() if self._isolation.namespaces else lambda: NONE
        self._zygotes = Zygotes(self._loop, self._reaper, sink, self._signal_closed)
        self._runtimes = Runtimes(
            self._loop, self._reaper, sink, self._clock, self._signal_closed, self._cgroups, self._namespaces
        )

    def carry_out(self, effect: m.Effect) -> None:
        self._handlers[type(effect)](effect)  # type: ignore[operator]

    def pids(self) -> dict[Node, int]:
        pids: dict[Node, int] = {box.id: box.pid for box in self._boxes.values() if box.pid is not None}
        pids.update(self._zygotes.pids())
        pids.update(self._runtimes.pids())
        return pids

    def drain_log(self, sandbox_id: int) -> None:
        box = self._boxes.get(sandbox_id)
        if box is not None and box.pid is not None:
            box.drain_log()

    # ------------------------------------------------------------ sandboxes

    def _raise_bare(self, effect: m.RaiseBare) -> None:
        since_s = self._clock()
        try:
            box = Box(effect.sandbox_id, self._run_dir / f"sandbox-{effect.sandbox_id}", self._loop, self._pump)
        except SandboxFailed as error:
            self._sink.post(m.Exited(effect.sandbox_id, error))
            return
        box.group = self._cgroups.make(box.scratch.name)
        self._boxes[box.id] = box
        self._sink.post(m.Raised(box.id, SandboxState.BARE, self._clock() - since_s))

    def _fork(self, effect: m.Fork) -> None:
        box = self._boxes[effect.sandbox_id]
        box.spec = effect.spec
        box.since_s = self._clock()
        if not effect.key.forks:
            self._adopt(box, effect.key)
            return
        order = {
            "op": "instance", "id": box.id, "scratch": str(box.scratch), "memory_bytes": box.spec.memory_bytes,
            "namespaces": self._namespaces(), "cgroup": None if box.group is None else str(box.group.folder),
        }  # fmt: skip
        if box.group is not None:
            box.group.limit(box.spec.memory_bytes)
        try:
            self._zygotes.fork(effect.key, order, [box.far_channel.fileno(), box.far_log_fd])
        except OSError as error:
            self._give_up(box, SandboxFailed(f"an instance could not be forked: {error}"))
            return
        self._hand_over(box)

    def _adopt(self, box: Box, key: LangKey) -> None:
        """The same for a runtime that cannot be forked: its process becomes the sandbox's."""
        try:
            runtime = self._runtimes.take(key, box.spec.memory_bytes)
        except OSError as error:
            self._give_up(box, SandboxFailed(f"an instance of {box.spec.name!r} could not be started: {error}"))
            return
        runtime.ended = box.ended
        box.adopt(runtime.channel, runtime.log_fd, runtime.pid, runtime.group)
        self._hand_over(box)
        self._sink.post(m.Raised(box.id, SandboxState.LANG, self._clock() - box.since_s))

    def _hand_over(self, box: Box) -> None:
        box.hand_over(self._dialogue.frames, self._maybe_gone, self._dialogue.log)

    def _load_user(self, effect: m.LoadUser) -> None:
        if self._models is None or effect.revision.pack is None:
            self._load_checked(effect, None)
        else:
            self._models.check(effect.revision, partial(self._load_checked, effect))

    def _load_checked(self, effect: m.LoadUser, damage: RewarmError | None) -> None:
        box = self._boxes.get(effect.sandbox_id)
        if box is None or box.destroyed:
            return  # it was ended while the files were read
        if damage is not None:
            box.failure = damage
            box.kill()
            return
        box.since_s = self._clock()
        revision = effect.revision
        order = {
            "spec": revision.spec.to_json(), "code_dir": revision.code_dir, "weights_path": revision.weights_path,
            "version": revision.version, "scratch": str(box.scratch),
            "pack": self._models.order(revision) if self._models is not None and revision.pack is not None else None,
        }  # fmt: skip
        self._dialogue.load(box, order)

    def _run(self, effect: m.Run) -> None:
        self._dialogue.run(self._boxes[effect.sandbox_id], effect.requests)

    def _destroy(self, effect: m.Destroy) -> None:
        box = self._boxes.get(effect.sandbox_id)
        if box is None or box.destroyed:
            return
        box.destroyed = True
        if box.far_log_fd >= 0:  # nobody was forked into it yet
            self._give_up(box, None)
        else:
            box.kill()  # before HELLO there is no pid to kill: _frames does it then

    def _give_up(self, box: Box, error: RewarmError | None) -> None:
        """End a sandbox that has no process."""
        del self._boxes[box.id]
        box.release()
        self._sink.post(m.Exited(box.id, error))
        self._signal_closed()

    def _greet(self, box: Box, frame_type: int, number: int) -> bool:
        """HELLO: it was forked, and this is its pid."""
        if frame_type != wire.HELLO or box.pid is not None:
            return False
        box.pid = number
        self._reaper.watch(number, box.ended)
        if box.destroyed:
            box.kill()
        else:
            self._sink.post(m.Raised(box.id, SandboxState.LANG, self._clock() - box.since_s))
        return True

    def _maybe_gone(self, box: Box) -> None:
        """Something about its end became known; act when everything is."""
        if box.id not in self._boxes or not box.eof or (box.pid is not None and box.status is None):
            return
        del self._boxes[box.id]
        box.release()
        self._sink.post(m.Exited(box.id, None if box.destroyed else box.why()))
        self._loop.call_later(_SWEEP_AFTER_S, self._sweep)
        self._signal_closed()

    def _sweep(self) -> None:
        """Kill what user code of gone sandboxes left behind, unless there may be one that nobody knows yet."""
        if self._forking():
            self._loop.call_later(_SWEEP_AFTER_S, self._sweep)
        elif self._closing is None:
            self._reaper.sweep(self._session)

    def _forking(self) -> bool:
        """A process is on its way whose pid nobody knows yet."""
        boxes = self._boxes.values()
        return any(b.pid is None and b.far_log_fd < 0 for b in boxes) or self._zygotes.rising

    def _raise_lang(self, effect: m.RaiseLang) -> None:
        if effect.key.forks:
            self._zygotes.start(effect.key, effect.parent)
        else:
            self._runtimes.start(effect.key)

    def _drop_lang(self, effect: m.DropLang) -> None:
        self._zygotes.drop(effect.key)
        self._runtimes.drop(effect.key)

    # ------------------------------------------------------------ the end

    async def close(self) -> None:
        """Kill everything and wait until nothing is left (bounded)."""
        self._closing = asyncio.Event()
        late_sweeps = _LATE_SWEEPS if self._forking() else 0
        for box in list(self._boxes.values()):
            self._destroy(m.Destroy(box.id, "shutdown"))
        self._zygotes.drop_all()
        self._runtimes.drop_all()
        self._signal_closed()
        try:
            await asyncio.wait_for(self._closing.wait(), _CLOSE_TIMEOUT_S)
        except TimeoutError:
            pass  # parent-death signals end the rest with us
        self._reaper.sweep(self._session)
        for _ in range(late_sweeps):  # what was being forked becomes our child only after its zygote is gone
            await asyncio.sleep(_LATE_SWEEP_S)
            self._reaper.sweep(self._session)
        self._reaper.close()
        self._namespaces()  # its process is over, too
        if self._own_pump:
            self._pump.close()
        await self._loop.run_in_executor(None, self._clear)

    def _clear(self) -> None:
        """What user code left behind, where the removal is still under way."""
        self._cgroups.close()
        for scratch in self._run_dir.glob("sandbox-*"):
            remove_scratch(scratch)

    def _signal_closed(self) -> None:
        if self._closing is not None and not (self._boxes or self._zygotes or self._runtimes):
            self._closing.set()
