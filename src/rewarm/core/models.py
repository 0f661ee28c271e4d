"""Models: the packs of the deployed functions, and what of each is pinned.

Functions with one pack share one model. How often each is started cold, how fast it is read and how long its layers
compute is learned here; `policy.pinning` shares out the memory that is free, seldom, and in steps worth making. A pin
displaces nothing. When memory is short it is freed like any idle layer (`eviction`), by as much as is short.

Pinned bytes are on the ledger from the order to pin them until the order to let go, which takes no time. Those that
several models have in common are there once, for the one that was adopted first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rewarm.core.model import HALF_LIFE_S, Model, Speeds
from rewarm.core.state import INF, Ground
from rewarm.facts import messages as m
from rewarm.facts.function import Revision
from rewarm.facts.messages import Effect
from rewarm.policy.pinning.greedy import ModelLoad, plan, tables_bytes, wanted
from rewarm.policy.pinning.sharing import Held
from rewarm.policy.pinning.tables import Share
from rewarm.units import MB

REPLAN_S: Final = 2.0  # from what changes a plan to the next: a start is over by then, and a burst is one change
RETRY_S: Final = 10.0  # while there is less memory than the plan could use, and to free some comes unannounced
REFUSED_S: Final = 60.0  # after less was held than asked for: no more than that until then
BARRED_S: Final = 600.0  # after a table made room: else it would come and go with every start that needs memory
_SECONDS_MAX: Final = 3600.0  # of a first pass or a part of it: more is not believed
_STEP_BYTES: Final = MB  # no pin changes by less,
_STEP_SHARE: Final = 0.05  # nor by less than this share of it, unless it ends, or is all that a person asked for
_READ_BYTES_MIN: Final = MB  # a load that read less says nothing about bandwidth


class Models:
    """Every model of one node. `timer_at_s`: when pins are planned next."""

    __slots__ = ("_ground", "_machine", "_remembered", "by_function", "by_key", "timer_at_s")

    def __init__(self, ground: Ground) -> None:
        self.by_key: dict[str, Model] = {}
        self.by_function: dict[str, Model] = {}
        self.timer_at_s = INF
        self._machine = Speeds()  # loads of any model
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
                self._order(model, Share(), out)
            del self.by_key[model.key]
            for other in model.sharers:
                del other.sharers[model]
        self._ask(now)

    def _introduce(self, model: Model) -> None:
        """To those that have some of its bytes, too."""
        files = {file for file, _, _ in model.every_span}
        for other in self.by_key.values():
            if files.isdisjoint(file for file, _, _ in other.every_span):
                continue
            held = Held()
            held.add(other.every_span, other.total_bytes)
            if held.lacks_bytes(model.every_span, model.total_bytes) == model.total_bytes:
                continue
            held = Held()
            held.add(other.spans, other.streamed_bytes)
            common_bytes = model.streamed_bytes - held.lacks_bytes(model.spans, model.streamed_bytes)
            model.sharers[other] = common_bytes / max(1, model.streamed_bytes)
            other.sharers[model] = common_bytes / max(1, other.streamed_bytes)

    # ------------------------------------------------------------ what is learned

    def cold_per_s(self, now: float) -> dict[str, float]:
        """Cold starts a second by key, of models that were started at all: to be kept while there is no node."""
        rates = {key: model.cold_per_s(now) for key, model in self.by_key.items()}
        return {key: rate for key, rate in rates.items() if rate > 0.0}

    def remember(self, cold_per_s: Mapping[str, float], seconds_ago: float) -> None:
        """What `cold_per_s` said so long ago, for the models that are adopted next; at the start of a node."""
        faded = 2.0 ** (-seconds_ago / HALF_LIFE_S)
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
        rows_s = dict(event.rows_s)
        if not all(
            0.0 <= seconds <= _SECONDS_MAX for seconds in (*event.compute_s, *rows_s.values(), event.setup_s or 0.0)
        ):
            return
        if model.computed(event.compute_s, rows_s, event.setup_s):
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
            share = model.whole(Share(event.size_bytes, model.tables))
            if share.size_bytes < event.size_bytes:  # a part of a table
                self._order(model, share, out)
            else:
                self._hold(model, share)
            self._ask(now)  # others can use what is left

    def replan(self, now: float, out: list[Effect]) -> None:
        """The timer rang: share out anew what is free and what is pinned. First less, then more."""
        if not self.by_key or self._ground.draining:
            return
        ledger = self._ground.ledger
        room = ledger.spare_bytes + sum(ledger.of(model.node) for model in self.by_key.values())
        loads = {model: model.load(now) for model in self.by_key.values()}
        planned = plan(list(loads.values()), room)
        for model, load in loads.items():
            share = planned[model.key]
            if share.size_bytes < model.pinned_bytes and _is_step(model, share, load):
                self._order(model, share, out)
        again_s = now + RETRY_S if any(planned[load.key] != wanted(load) for load in loads.values()) else INF
        for model, load in loads.items():
            for until_s in (model.limit_until_s, model.barred_until_s):
                if now < until_s:
                    again_s = min(again_s, until_s)
            share = self._reach(model, planned[model.key])
            if share.size_bytes < model.pinned_bytes or not _is_step(model, share, load):
                continue
            if model.waiting:  # what was asked for is still being read
                again_s = min(again_s, now + RETRY_S)
            else:
                self._order(model, share, out)
        self._ground.timers.arm(self, again_s)

    def release(self, model: Model, size_bytes: int, now: float, out: list[Effect]) -> None:
        """Memory is short: let go of what frees so much: tables that are worth less than the front, then, in whole
        steps, from the end of what is pinned.

        What others have pinned as well is not freed by that.
        """
        others = self._pinned_of(model.sharers)
        tables, pinned = model.tables, model.pinned_bytes
        for table in model.lesser_tables():
            if size_bytes <= 0:
                break
            tables = tuple(other for other in tables if other != table)
            table_bytes = model.layers[table].size_bytes
            pinned = max(0, pinned - table_bytes)
            size_bytes -= others.lacks_bytes(model.spans_of((table,)), table_bytes) if model.sharers else table_bytes
        stays = pinned - max(0, size_bytes)
        if model.sharers:
            stays = others.without_bytes(model.spans_of(tables), pinned, size_bytes)
        steps = -(-(pinned - stays) // _STEP_BYTES)
        share = model.whole(Share(max(0, pinned - steps * _STEP_BYTES), tables))
        if share.tables != model.tables:
            model.barred_until_s = now + BARRED_S
        self._order(model, share, out)
        self._ground.timers.arm(self, now + RETRY_S)

    def held_by(self, models: Sequence[Model]) -> int:
        """Bytes that come back if these are pinned no more."""
        size = sum(model.pinned_bytes for model in models if not model.sharers)
        going = [model for model in models if model.sharers]
        if going:
            held = self._pinned_of(model for model in self._sharing() if model not in going)
            for model in going:
                size += held.lacks_bytes(model.held_spans, model.pinned_bytes)
                held.add(model.held_spans, model.pinned_bytes)
        return size

    def _reach(self, model: Model, share: Share) -> Share:
        """As much of it as there is room for now; none of it if that is not all of its tables."""
        spare_bytes = max(0, self._ground.ledger.spare_bytes)
        if model.sharers:  # what it gives back by that is room, too
            held = self._pinned_of(model.sharers)
            room_bytes = spare_bytes + held.lacks_bytes(model.held_spans, model.pinned_bytes)
            size_bytes = held.reach_bytes(model.spans_of(share.tables), share.size_bytes, room_bytes)
        else:
            size_bytes = min(share.size_bytes, model.pinned_bytes + spare_bytes)
        if size_bytes < tables_bytes(model.layers, share.tables):
            return Share(model.pinned_bytes, model.tables)
        return Share(size_bytes, share.tables)

    def _sharing(self) -> list[Model]:
        return [model for model in self.by_key.values() if model.sharers]

    @staticmethod
    def _pinned_of(models: Iterable[Model]) -> Held:
        held = Held()
        for model in models:
            held.add(model.held_spans, model.pinned_bytes)
        return held

    def _order(self, model: Model, share: Share, out: list[Effect]) -> None:
        if not share.size_bytes:
            share = Share()
        self._hold(model, share)
        model.ordered_bytes = share.size_bytes
        model.waiting = True
        out.append(m.Pin(model.key, share.size_bytes, share.tables))

    def _hold(self, model: Model, share: Share) -> None:
        model.pinned_bytes, model.tables = share
        if not model.sharers:
            self._account(model, share.size_bytes)
            return
        held = Held()
        for one in self._sharing():
            self._account(one, held.lacks_bytes(one.held_spans, one.pinned_bytes))
            held.add(one.held_spans, one.pinned_bytes)

    def _account(self, model: Model, size_bytes: int) -> None:
        if size_bytes:
            self._ground.ledger.enter(model.node, size_bytes)
        else:
            self._ground.ledger.leave(model.node)

    def _ask(self, now: float) -> None:
        """Something changed: plan soon."""
        self._ground.timers.arm(self, now + REPLAN_S)


def _is_step(model: Model, share: Share, load: ModelLoad) -> bool:
    """Worth an order. An end always is, and so are other tables, and all that a person asked for."""
    pinned_bytes, size_bytes = model.pinned_bytes, share.size_bytes
    if share == (pinned_bytes, model.tables):
        return False
    if not size_bytes or share.tables != model.tables or (load.pin != "auto" and share == wanted(load)):
        return True
    return abs(size_bytes - pinned_bytes) >= max(_STEP_BYTES, _STEP_SHARE * pinned_bytes)
