"""Models: the packs of the deployed functions, and how many bytes at the front of each are pinned.

Functions with one pack share one model. How often each is started cold, how fast it is read and how long its layers
compute is learned here; `policy.pinning` shares out the memory that is free, seldom, and in steps worth making. A pin
displaces nothing. When memory is short it is freed like any idle layer (`eviction`), by as much as is short.

Pinned bytes are on the ledger from the order to pin them until the order to let go, which takes no time. Those that
several models have in common are there once, for the one that was adopted first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rewarm.core.state import INF, Ground
from rewarm.facts import messages as m
from rewarm.facts.function import Pin, Revision
from rewarm.facts.messages import Effect
from rewarm.facts.pack import PackFacts
from rewarm.policy.pinning.greedy import ModelLoad, plan, wanted_bytes
from rewarm.policy.pinning.sharing import Held, Spans
from rewarm.policy.pinning.timeline import ttfi_with_pin_s
from rewarm.units import MB

REPLAN_S: Final = 2.0  # from what changes a plan to the next: a start is over by then, and a burst is one change
RETRY_S: Final = 10.0  # while there is less memory than the plan could use, and to free some comes unannounced
REFUSED_S: Final = 60.0  # after less was held than asked for: no more than that until then
HALF_LIFE_S: Final = 3600.0  # of a cold start's weight
BANDWIDTH_PRIOR_BYTES_S: Final = 1e9  # until a load was measured
_DECAY_PER_S: Final = math.log(2.0) / HALF_LIFE_S
_HORIZON_S: Final = 600.0  # what a byte saves in ten minutes, as `hazard` counts the worth of an idle layer
_ASKED_FOR: Final = 1e300  # worth per byte of a pin asked for by size: the last to go, before a start has to wait
_STEP_BYTES: Final = MB  # no pin changes by less,
_STEP_SHARE: Final = 0.05  # nor by less than this share of it, unless it ends, or is all that a person asked for
_MOVED_SHARE: Final = 0.05  # a measurement that changes by less changes no plan
_STICKS: Final = 1.25  # what is pinned stays until another is worth so many times as much: moving it reads it again
_LOADS: Final = 16  # the bandwidth is the lower quartile of so many loads
_READ_BYTES_MIN: Final = MB  # a load that read less says nothing about bandwidth
_PASSES: Final = 16  # compute seconds are a mean over so many passes


class _Speeds:
    """The last loads' bytes per second."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: list[float] = []

    def add(self, bytes_s: float) -> None:
        self._last.append(bytes_s)
        del self._last[:-_LOADS]

    def low(self, prior: float) -> float:
        """The lower quartile: a plan that counts on the median is too slow half of the time."""
        return sorted(self._last)[len(self._last) // 4] if self._last else prior


class Model:
    """One pack that deployed functions use."""

    __slots__ = (
        "_cold_at_s", "_cold_per_s", "_machine", "_speeds", "key", "layers", "limit_bytes", "limit_until_s",
        "ordered_bytes", "passes", "pinned_bytes", "setup_s", "sharers", "spans", "streamed_bytes", "waiting", "wishes",
    )  # fmt: skip

    def __init__(self, facts: PackFacts, machine: _Speeds) -> None:
        self.key = facts.key
        self.setup_s = facts.setup_s
        self.layers = facts.layers  # with their compute as measured since
        self.passes = 1  # that measurement; the one at packing is the first
        self.wishes: dict[str, Pin] = {}  # what each function that uses it said of its pin
        self.spans: Spans = facts.spans
        self.streamed_bytes = facts.streamed_bytes
        self.sharers: dict[Model, float] = {}  # models that have the same bytes, and how much of this one they have
        self.pinned_bytes = 0
        self.ordered_bytes = 0  # by the last Pin
        self.waiting = False  # for its answer
        self.limit_bytes = 0  # until `limit_until_s` no more than this can be had
        self.limit_until_s = -INF
        self._speeds = _Speeds()
        self._machine = machine
        self._cold_per_s = 0.0
        self._cold_at_s = 0.0

    @property
    def node(self) -> tuple[str, str]:
        """Its name on the ledger."""
        return ("pins", self.key)

    @property
    def pin(self) -> Pin:
        """What its functions say together: "all" before the largest number, that before "auto", that before "none"."""
        wishes = self.wishes.values()
        sizes = [wish for wish in wishes if isinstance(wish, int)]
        if "all" in wishes:
            return "all"
        return max(sizes) if sizes else "auto" if "auto" in wishes else "none"

    @property
    def bandwidth_bytes_s(self) -> float:
        """What a load of it can count on: from its own loads, else from those of all models here."""
        return self._speeds.low(self._machine.low(BANDWIDTH_PRIOR_BYTES_S))

    @property
    def last_cold_s(self) -> float:
        """When it was last started cold."""
        return self._cold_at_s

    @property
    def ttfi_s(self) -> float:
        """Expected from the start of a load to the end of the first inference, with what is pinned now."""
        return ttfi_with_pin_s(self.layers, self.bandwidth_bytes_s, self.pinned_bytes, self.setup_s)

    def cold_per_s(self, now: float) -> float:
        """Cold starts a second: each counts half as much an hour later."""
        return self._cold_per_s * math.exp((self._cold_at_s - now) * _DECAY_PER_S)

    def started_cold(self, now: float) -> None:
        self._cold_per_s = self.cold_per_s(now) + _DECAY_PER_S
        self._cold_at_s = now

    def remember(self, cold_per_s: float, now: float) -> None:
        """So many cold starts a second, of an earlier life of this node."""
        self._cold_per_s, self._cold_at_s = cold_per_s, now

    def worth_per_byte(self, now: float) -> float:
        """Seconds that a pinned byte saves in ten minutes, to be compared with the worth of idle layers."""
        if self.pin not in ("auto", "none"):
            return _ASKED_FOR
        return _HORIZON_S * (self.cold_per_s(now) / self.bandwidth_bytes_s + self.worth_to_others(now))

    def worth_to_others(self, now: float) -> float:
        """Seconds that its sharers are saved per second by one of its bytes, on average."""
        return sum(share * other.cold_per_s(now) / other.bandwidth_bytes_s for other, share in self.sharers.items())

    def read(self, bytes_s: float) -> bool:
        """A load was measured. True if what can be counted on is another now."""
        before = self.bandwidth_bytes_s
        self._speeds.add(bytes_s)
        self._machine.add(bytes_s)
        return _moved(before, self.bandwidth_bytes_s)

    def computed(self, compute_s: tuple[float, ...]) -> bool:
        """A first pass was measured. True if the whole takes another time now."""
        self.passes += 1
        share = 1.0 / min(self.passes, _PASSES)
        before = sum(layer.compute_s for layer in self.layers)
        self.layers = tuple(
            layer._replace(compute_s=layer.compute_s + share * (seconds - layer.compute_s))
            for layer, seconds in zip(self.layers, compute_s, strict=True)
        )
        return _moved(before, sum(layer.compute_s for layer in self.layers))

    def load(self, now: float) -> ModelLoad:
        """What the planner is told."""
        cold_per_s = self.cold_per_s(now) * (_STICKS if self.pinned_bytes else 1.0)
        limit_bytes = self.limit_bytes if now < self.limit_until_s else None
        return ModelLoad(
            self.key, self.layers, self.bandwidth_bytes_s, cold_per_s, self.pin, self.setup_s, limit_bytes,
            self.spans if self.sharers else (), self.worth_to_others(now),
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<model {self.key} of {', '.join(self.wishes)}: {self.pinned_bytes} bytes pinned>"


class Models:
    """Every model of one node. `timer_at_s`: when pins are planned next."""

    __slots__ = ("_ground", "_machine", "_remembered", "by_function", "by_key", "timer_at_s")

    def __init__(self, ground: Ground) -> None:
        self.by_key: dict[str, Model] = {}
        self.by_function: dict[str, Model] = {}
        self.timer_at_s = INF
        self._machine = _Speeds()  # loads of any model
        self._remembered: dict[str, float] = {}  # cold starts a second of models that are not here yet
        self._ground = ground

    # ------------------------------------------------------------ functions come and go

    def adopt(self, revision: Revision, now: float, out: list[Effect]) -> None:
        """The function answers with `revision` from now on, whose weights may be packed or not."""
        pack = revision.pack
        former = self.by_function.get(revision.name)
        if former is not None and (pack is None or pack.key != former.key):
            self.forget(revision.name, now, out)
        if pack is None:
            return
        model = self.by_key.get(pack.key)
        if model is None:
            model = Model(pack, self._machine)
            self._introduce(model)
            self.by_key[pack.key] = model
            if pack.key in self._remembered:
                model.remember(self._remembered.pop(pack.key), now)
        self.by_function[revision.name] = model
        model.wishes[revision.name] = revision.spec.pin
        self._ask(now)

    def forget(self, function: str, now: float, out: list[Effect]) -> None:
        """The function uses no model any more. With its last one a model's pins go."""
        model = self.by_function.pop(function, None)
        if model is None:
            return
        del model.wishes[function]
        if not model.wishes:
            if model.ordered_bytes:
                self._order(model, 0, out)
            del self.by_key[model.key]
            for other in model.sharers:
                del other.sharers[model]
        self._ask(now)

    def _introduce(self, model: Model) -> None:
        """To those that have some of its bytes, too."""
        files = {file for file, _, _ in model.spans}
        for other in self.by_key.values():
            if files.isdisjoint(file for file, _, _ in other.spans):
                continue
            held = Held()
            held.add(other.spans, other.streamed_bytes)
            common_bytes = model.streamed_bytes - held.lacks_bytes(model.spans, model.streamed_bytes)
            if common_bytes:
                model.sharers[other] = common_bytes / model.streamed_bytes
                other.sharers[model] = common_bytes / other.streamed_bytes

    # ------------------------------------------------------------ what is learned

    def cold_per_s(self, now: float) -> dict[str, float]:
        """Cold starts a second by key, of models that were started at all: to be kept while there is no node."""
        rates = {key: model.cold_per_s(now) for key, model in self.by_key.items()}
        return {key: rate for key, rate in rates.items() if rate > 0.0}

    def remember(self, cold_per_s: Mapping[str, float], seconds_ago: float) -> None:
        """What `cold_per_s` said so long ago, for the models that are adopted next; at the start of a node."""
        faded = math.exp(-_DECAY_PER_S * seconds_ago)
        self._remembered = {key: rate * faded for key, rate in cold_per_s.items()}

    def started_cold(self, function: str, now: float, out: list[Effect]) -> None:
        """An instance is started and no other of the function lives: its weights are wanted before it is there."""
        model = self.by_function.get(function)
        if model is not None:
            model.started_cold(now)
            out.append(m.Prefetch(model.key))
            self._ask(now)

    def loaded(self, event: m.Loaded, now: float, out: list[Effect]) -> None:
        model = self.by_key.get(event.key)
        if model is None or event.read_bytes < _READ_BYTES_MIN or not 0.0 < event.seconds < INF:
            return
        if model.read(event.read_bytes / event.seconds):
            self._ask(now)

    def computed(self, event: m.Computed, now: float, out: list[Effect]) -> None:
        """What is not of this pack, or can not be, is not believed: it comes from where the user's code runs."""
        model = self.by_key.get(event.key)
        if model is None or len(event.compute_s) != len(model.layers):
            return
        if all(0.0 <= seconds < INF for seconds in event.compute_s) and model.computed(event.compute_s):
            self._ask(now)

    # ------------------------------------------------------------ pins

    def pinned(self, event: m.Pinned, now: float, out: list[Effect]) -> None:
        """An answer to a Pin, or less is held than before. More than was asked for last: an order overtaken since."""
        model = self.by_key.get(event.key)
        if model is None or event.size_bytes > model.pinned_bytes:
            return
        model.waiting = False
        if event.size_bytes < model.pinned_bytes:
            model.limit_bytes, model.limit_until_s = event.size_bytes, now + REFUSED_S
            self._hold(model, event.size_bytes)
            self._ask(now)  # others can use what is left

    def replan(self, now: float, out: list[Effect]) -> None:
        """The timer rang: share out anew what is free and what is pinned. First less, then more."""
        if not self.by_key or self._ground.draining:
            return
        ledger = self._ground.ledger
        room = ledger.spare_bytes + sum(ledger.of(model.node) for model in self.by_key.values())
        loads = {model: model.load(now) for model in self.by_key.values()}
        wanted = plan(list(loads.values()), room)
        for model, load in loads.items():
            if wanted[model.key] < model.pinned_bytes and _is_step(model.pinned_bytes, wanted[model.key], load):
                self._order(model, wanted[model.key], out)
        again_s = now + RETRY_S if any(wanted[load.key] < wanted_bytes(load) for load in loads.values()) else INF
        for model, load in loads.items():
            if now < model.limit_until_s:
                again_s = min(again_s, model.limit_until_s)
            size = self._reach(model, wanted[model.key])
            if size <= model.pinned_bytes or not _is_step(model.pinned_bytes, size, load):
                continue
            if model.waiting:  # what was asked for is still being read
                again_s = min(again_s, now + RETRY_S)
            else:
                self._order(model, size, out)
        self._ground.timers.arm(self, again_s)

    def release(self, model: Model, size_bytes: int, now: float, out: list[Effect]) -> None:
        """Memory is short: let go of what frees so much, in whole steps, from the end of what is pinned.

        What others have pinned as well is not freed by that.
        """
        pinned = model.pinned_bytes
        stays = pinned - size_bytes
        if model.sharers:
            stays = self._pinned_of(model.sharers).without_bytes(model.spans, pinned, size_bytes)
        steps = -(-(pinned - stays) // _STEP_BYTES)
        self._order(model, max(0, pinned - steps * _STEP_BYTES), out)
        self._ground.timers.arm(self, now + RETRY_S)

    def held_by(self, models: Sequence[Model]) -> int:
        """Bytes that come back if these are pinned no more."""
        size = sum(model.pinned_bytes for model in models if not model.sharers)
        going = [model for model in models if model.sharers]
        if going:
            held = self._pinned_of(model for model in self._sharing() if model not in going)
            for model in going:
                size += held.lacks_bytes(model.spans, model.pinned_bytes)
                held.add(model.spans, model.pinned_bytes)
        return size

    def _reach(self, model: Model, size_bytes: int) -> int:
        """As much of `size_bytes` as there is room for now."""
        spare_bytes = max(0, self._ground.ledger.spare_bytes)
        if model.sharers:
            return self._pinned_of([*model.sharers, model]).reach_bytes(model.spans, size_bytes, spare_bytes)
        return min(size_bytes, model.pinned_bytes + spare_bytes)

    def _sharing(self) -> list[Model]:
        return [model for model in self.by_key.values() if model.sharers]

    @staticmethod
    def _pinned_of(models: Iterable[Model]) -> Held:
        held = Held()
        for model in models:
            held.add(model.spans, model.pinned_bytes)
        return held

    def _order(self, model: Model, size_bytes: int, out: list[Effect]) -> None:
        self._hold(model, size_bytes)
        model.ordered_bytes = size_bytes
        model.waiting = True
        out.append(m.Pin(model.key, size_bytes))

    def _hold(self, model: Model, size_bytes: int) -> None:
        model.pinned_bytes = size_bytes
        if not model.sharers:
            self._account(model, size_bytes)
            return
        held = Held()
        for one in self._sharing():
            self._account(one, held.lacks_bytes(one.spans, one.pinned_bytes))
            held.add(one.spans, one.pinned_bytes)

    def _account(self, model: Model, size_bytes: int) -> None:
        if size_bytes:
            self._ground.ledger.enter(model.node, size_bytes)
        else:
            self._ground.ledger.leave(model.node)

    def _ask(self, now: float) -> None:
        """Something changed: plan soon."""
        self._ground.timers.arm(self, now + REPLAN_S)


def _is_step(pinned_bytes: int, size_bytes: int, load: ModelLoad) -> bool:
    """Worth an order. An end always is, and so is all that a person asked for."""
    if not size_bytes or (load.pin != "auto" and size_bytes == wanted_bytes(load)):
        return True
    return abs(size_bytes - pinned_bytes) >= max(_STEP_BYTES, _STEP_SHARE * pinned_bytes)


def _moved(before: float, after: float) -> bool:
    return abs(after - before) > _MOVED_SHARE * before
