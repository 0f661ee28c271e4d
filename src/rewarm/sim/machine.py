"""The core in virtual time: arrivals of a trace go in, its effects are carried out by adding up seconds and bytes.

At one moment, arrivals come first, then what was under way (runs that end, layers that are up), then timers. So a
call that comes the moment a window ends still finds the layer.

An instance holds the bytes of its User layer and of its Bare. A zygote is held once, for all that were forked from it;
a runtime that does not fork goes into its instance with its bytes. What wakes from a snapshot shares nothing and holds
the bytes of all its layers. What is idle, used and wasted is for `core.meter` to say.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

from rewarm.core.meter import Meter
from rewarm.core.node import Node
from rewarm.errors import BadDefinition, SystemFault
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.sandbox import StartKind
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.policy.keepalive.base import KeepalivePolicy
from rewarm.sim.costs import Costs, LangCosts
from rewarm.sim.tally import FunctionTally, Tally
from rewarm.sim.traces.base import Chunk, Trace
from rewarm.units import MB

_WARM = StartKind.WARM
INF = float("inf")
_TICKS_MAX = 10_000  # at one moment; more is a policy that never lets time pass
_DRAIN_S = 86_400.0  # how long after the trace's end calls may still wait


class _Box:
    """One sandbox: what it holds, and whose it is once its code is loaded."""

    __slots__ = ("function", "held_bytes")

    def __init__(self, held_bytes: int) -> None:
        self.held_bytes = held_bytes
        self.function: FunctionTally | None = None


class Machine:
    """One run of one policy over one trace. `observe` is told every effect, in order, with its moment."""

    def __init__(
        self,
        keepalive: KeepalivePolicy,
        trace: Trace,
        costs: Costs,
        *,
        budget_bytes: int,
        max_instances: int,
        seed: int,
        whole_minutes: bool = False,
        observe: Callable[[m.Effect, float], None] | None = None,
    ) -> None:
        self.node = Node(budget_bytes, keepalive)
        self.meter = Meter()
        self.tally = Tally()
        self._trace = trace
        self._costs = costs
        self._budget_bytes = budget_bytes
        self._max_instances = max_instances
        self._seed = seed
        self._whole_minutes = whole_minutes
        self._observe = observe
        self._names: list[str] = []  # by index of the trace
        self._functions: dict[str, FunctionTally] = {}
        self._boxes: dict[int, _Box] = {}
        self._lang_costs: dict[LangKey, LangCosts] = {}
        self._langs: dict[LangKey, int] = {}  # those that live or rise; sequence of the event that they are up
        self._making: dict[str, int] = {}  # snapshots, by digest; sequence of the event that they are there
        self._slept_s: dict[str, float] = {}  # those that are there, and since when
        self._heap: list[tuple[float, int, m.Event]] = []
        self._sequence = 0
        self._ticked_s = -INF
        self._ticks = 0
        self._seldom: dict[type, Callable[[Any, float, list[m.Effect]], None]] = {
            m.Reject: self._reject, m.Restore: self._restore, m.Sleep: self._sleep, m.Forget: self._forget,
            m.Pin: self._pin, m.Prefetch: self._prefetch,
        }  # fmt: skip

    def run(self, progress: Callable[[int], None]) -> Tally:
        """From the first call to the last. `progress` is told of calls that came, some at a time.

        Raises BadDefinition if the budget is less than one instance of some function holds.
        """
        now = 0.0
        for chunk in self._trace.chunks():
            if chunk.times_s:
                now = chunk.times_s[0]
                self.advance(now)
            self.deploy(now)
            self.feed(chunk)
            progress(len(chunk.times_s))
        self._finish(self._trace.end_s)
        return self.tally

    # ------------------------------------------------------------ step by step: what `run` does, and tests one by one

    @property
    def living(self) -> set[int | LangKey]:
        """Every sandbox and Lang layer that is there or on its way up."""
        return {*self._boxes, *self._langs}

    def deploy(self, now: float) -> None:
        """The functions that the trace has come to know. Raises BadDefinition as `run` does."""
        for traced in self._trace.functions[len(self._names) :]:
            costs = self._costs.of(traced.name, traced.memory_bytes, self._seed)
            need_bytes = self._costs.whole_bytes(costs)
            if need_bytes > self._budget_bytes:
                raise BadDefinition(
                    f"an instance of {traced.name!r} holds {need_bytes / MB:.0f} MB with its layers, and the memory "
                    f"budget is {self._budget_bytes / MB:.0f} MB; give more with --memory, or leave the function out"
                )
            spec = self._costs.spec(traced.name, costs.runtime, self._max_instances)
            self._names.append(traced.name)
            tally = self._functions[traced.name] = FunctionTally(traced.name, costs)
            self.tally.functions.append(tally)
            self.tell(m.Deployed(Revision(spec, traced.name, 1, "")), now)
            if self._costs.asleep is not None:
                self.carry(self._slept(traced.name, now), now)

    def tell(self, event: m.Event, now: float) -> None:
        """Give the core one event and carry out what it decides."""
        self.carry(self.node.handle(event, now), now)

    def feed(self, chunk: Chunk) -> None:
        """Everything up to the last call of the chunk. The hot loop."""
        heap, timers, names, arrive = self._heap, self.node.timers.heap, self._names, self.node.arrive
        for at_s, function, run_s in zip(*chunk, strict=True):
            if (heap and heap[0][0] < at_s) or (timers and timers[0][0] < at_s):
                self.advance(at_s)
            out: list[m.Effect] = []
            arrive(Request(names[function], at_s, INF, run_s), at_s, out)
            if out:
                self.carry(out, at_s)
        self.tally.arrived += len(chunk.times_s)

    def next_s(self) -> float:
        """When something happens next of itself; inf: never."""
        heap, timers = self._heap, self.node.timers.heap
        return min(heap[0][0] if heap else INF, timers[0][0] if timers else INF)

    def advance(self, until_s: float) -> None:
        """Everything that happens before `until_s`."""
        heap, timers = self._heap, self.node.timers.heap
        while True:
            next_s = heap[0][0] if heap else INF
            timer_s = timers[0][0] if timers else INF
            if min(next_s, timer_s) >= until_s:
                return
            if next_s <= timer_s:
                _, sequence, event = heapq.heappop(heap)
                self.carry(self._happen(event, next_s, sequence), next_s)
            else:
                self._tick(timer_s)

    def _tick(self, at_s: float) -> None:
        if at_s > self._ticked_s:
            self._ticked_s, self._ticks = at_s, 0
        self._ticks += 1
        if self._ticks > _TICKS_MAX:
            raise SystemFault(f"the policy asks to be woken again and again at {at_s:g} s; it must let time pass")
        # Timers may be set for a moment that has passed; the clock does not go back.
        self.carry(self.node.handle(m.Tick(), self._ticked_s), self._ticked_s)

    def _finish(self, end_s: float) -> None:
        """Time goes on to `end_s`, where the meter is read. Then calls that still wait are served."""
        self.advance(end_s)
        self.meter.close(end_s)
        self.tally.read(self.meter)
        for name in list(self._slept_s):
            self._woken(name, end_s)
        while self.tally.waiting:
            next_s = self.next_s()
            if next_s > end_s + _DRAIN_S:
                return
            self.advance(math.nextafter(next_s, INF))

    # ------------------------------------------------------------ events

    def _later(self, delay_s: float, event: m.Event, now: float, out: list[m.Effect]) -> None:
        """`event` happens after `delay_s`; without delay it does at once, and what follows is appended to `out`."""
        self._sequence += 1
        if delay_s <= 0:
            out += self._happen(event, now, self._sequence)
        else:
            heapq.heappush(self._heap, (now + delay_s, self._sequence, event))

    def _happen(self, event: m.Event, now: float, sequence: int) -> list[m.Effect]:
        """The meter and the core take note of `event`, unless it is about something that was told to end since."""
        if isinstance(event, m.RunDone):
            return self._note(event, now) if event.sandbox_id in self._boxes else []
        if isinstance(event, m.Raised):
            return self._raised(event, now)
        if isinstance(event, m.Slept):
            digest = event.digest
            if self._making.get(digest) != sequence:
                return []
            del self._making[digest]
            return self._slept(digest, now)
        assert isinstance(event, m.LangRaised)
        key = event.key
        if self._langs.get(key) != sequence:
            return []
        out = self._note(event, now)
        self._measure(key, self._lang(key).resident_bytes, now, out)
        return out

    def _raised(self, event: m.Raised, now: float) -> list[m.Effect]:
        """A layer is up. What a Bare holds is told if it is nobody's yet, else with the User layer."""
        sandbox_id, state = event.sandbox_id, event.state
        box = self._boxes.get(sandbox_id)
        if box is None:
            return []
        if state is State.BARE:
            out = self._note(event, now)
            if sandbox_id in self.node.pool.bares.layers:
                self._measure(sandbox_id, box.held_bytes, now, out)
            return out
        if state is State.READY:
            out = self._note(event, now)
            self._measure(sandbox_id, box.held_bytes, now, out)
            return out
        out = self.node.handle(event, now)
        if state is State.USER:
            out += self._note(m.Raised(sandbox_id, State.READY, 0.0), now)
            self._measure(sandbox_id, box.held_bytes, now, out)
        return out

    def _measure(self, node: int | LangKey, resident_bytes: int, now: float, out: list[m.Effect]) -> None:
        """The core is told what it does not know already: sizes are the same each time."""
        if self.node.pool.ledger.of(node) != resident_bytes:
            out += self.node.handle(m.Measured(node, resident_bytes), now)
        self.meter.resident(node, resident_bytes, now)

    def _note(self, event: m.Event, now: float) -> list[m.Effect]:
        self.meter.event(event, now)
        return self.node.handle(event, now)

    # ------------------------------------------------------------ effects

    def carry(self, effects: list[m.Effect], now: float) -> None:
        """Carry out `effects`, which grow by what follows from them at this very moment."""
        boxes, tally, observe = self._boxes, self.tally, self._observe
        for effect in effects:
            if observe is not None:
                observe(effect, now)
            if not isinstance(effect, m.Run):
                self._change(effect, now, effects)
                continue
            self.meter.effect(effect, now)
            sandbox_id = effect.sandbox_id
            (request,) = effect.requests  # nobody batches here
            box = boxes.get(sandbox_id)
            if box is None:
                continue  # the two crossed on the way
            function = box.function
            assert function is not None
            function.calls += 1
            tally.started += 1
            if now != request.arrived_s or request.start is not _WARM:
                tally.waited(function, request, now)
            run_s = request.payload
            ends_s = now + run_s
            if self._whole_minutes:  # the run ends with its minute, however late it began
                ends_s = max(now, request.arrived_s + run_s)
            self._sequence += 1
            heapq.heappush(self._heap, (ends_s, self._sequence, m.RunDone(sandbox_id, run_s)))

    def _change(self, effect: m.Effect, now: float, out: list[m.Effect]) -> None:
        """Whatever is no run."""
        if isinstance(effect, m.RaiseBare):
            self._raise_bare(effect, now, out)
        elif isinstance(effect, m.Fork):
            self._fork(effect, now, out)
        elif isinstance(effect, m.LoadUser):
            self._load_user(effect, now, out)
        elif isinstance(effect, m.Destroy):
            self._destroy(effect, now, out)
        elif isinstance(effect, m.RaiseLang):
            self._raise_lang(effect, now, out)
        elif isinstance(effect, m.DropLang):
            self._drop_lang(effect, now, out)
        else:
            self._seldom[type(effect)](effect, now, out)

    def _reject(self, effect: m.Reject, now: float, out: list[m.Effect]) -> None:
        self.tally.rejected[effect.error.code] += 1

    def _raise_bare(self, effect: m.RaiseBare, now: float, out: list[m.Effect]) -> None:
        self._boxes[effect.sandbox_id] = _Box(self._costs.bare_bytes)
        self._later(self._costs.bare_s, m.Raised(effect.sandbox_id, State.BARE, self._costs.bare_s), now, out)

    def _lang(self, key: LangKey) -> LangCosts:
        found = self._lang_costs.get(key)
        if found is None:
            found = self._lang_costs[key] = self._costs.lang(key)
        return found

    def _raise_lang(self, effect: m.RaiseLang, now: float, out: list[m.Effect]) -> None:
        startup_s = self._lang(effect.key).startup_s
        self._langs[effect.key] = self._sequence + 1
        self._later(startup_s, m.LangRaised(effect.key, startup_s), now, out)

    def _fork(self, effect: m.Fork, now: float, out: list[m.Effect]) -> None:
        self.meter.effect(effect, now)
        lang = self._lang(effect.key)
        box = self._boxes.get(effect.sandbox_id)
        if not effect.key.forks:
            self._langs.pop(effect.key, None)  # used up, whatever became of the sandbox
            if box is not None:
                box.held_bytes += lang.resident_bytes
        self._later(lang.fork_s, m.Raised(effect.sandbox_id, State.LANG, lang.fork_s), now, out)

    def _load_user(self, effect: m.LoadUser, now: float, out: list[m.Effect]) -> None:
        box, function = self._boxes.get(effect.sandbox_id), self._functions[effect.revision.name]
        if box is None:
            return
        box.function = function
        box.held_bytes += function.costs.user_bytes
        user_s = function.costs.user_s
        self._later(user_s, m.Raised(effect.sandbox_id, State.USER, user_s), now, out)

    def _restore(self, effect: m.Restore, now: float, out: list[m.Effect]) -> None:
        self.meter.effect(effect, now)
        assert self._costs.asleep is not None
        restore_s, function = self._costs.asleep.restore_s, self._functions[effect.revision.name]
        box = self._boxes[effect.sandbox_id] = _Box(self._costs.whole_bytes(function.costs))
        box.function = function
        self._later(restore_s, m.Raised(effect.sandbox_id, State.READY, restore_s), now, out)

    def _sleep(self, effect: m.Sleep, now: float, out: list[m.Effect]) -> None:
        digest = effect.revision.digest
        self._making[digest] = self._sequence + 1
        making_s = self._costs.making_s(self._functions[digest].costs)
        self._later(making_s, m.Slept(digest, self._facts(digest)), now, out)

    def _forget(self, effect: m.Forget, now: float, out: list[m.Effect]) -> None:
        self._making.pop(effect.revision.digest, None)
        self._woken(effect.revision.digest, now)

    def _facts(self, digest: str) -> SnapshotFacts:
        """A function's snapshot goes by the function's name."""
        asleep = self._costs.asleep
        assert asleep is not None
        cold_s = self._costs.cold_s(self._functions[digest].costs)
        return SnapshotFacts(digest, asleep.disk_bytes, asleep.restore_s, cold_s)

    def _slept(self, digest: str, now: float) -> list[m.Effect]:
        self._slept_s[digest] = now
        return self.node.handle(m.Slept(digest, self._facts(digest)), now)

    def _woken(self, digest: str, now: float) -> None:
        """It is not on disk any more, or nobody looks any longer."""
        since_s = self._slept_s.pop(digest, None)
        if since_s is not None and self._costs.asleep is not None:
            self.tally.disk_byte_s += self._costs.asleep.disk_bytes * (now - since_s)

    def _destroy(self, effect: m.Destroy, now: float, out: list[m.Effect]) -> None:
        self.meter.effect(effect, now)
        if self._boxes.pop(effect.sandbox_id, None) is not None:
            out += self._note(m.Exited(effect.sandbox_id), now)

    def _drop_lang(self, effect: m.DropLang, now: float, out: list[m.Effect]) -> None:
        self.meter.effect(effect, now)
        if self._langs.pop(effect.key, None) is not None:
            out += self._note(m.LangExited(effect.key), now)

    def _prefetch(self, effect: m.Prefetch, now: float, out: list[m.Effect]) -> None:
        """Traces say nothing of weights: what reading them takes is within the costs of the User layer."""

    def _pin(self, effect: m.Pin, now: float, out: list[m.Effect]) -> None:
        """Held at once, and never refused."""
        out += self.node.handle(m.Pinned(effect.key, effect.size_bytes), now)
