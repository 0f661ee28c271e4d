"""One model: the pack that some functions use, what was learned of its loads, and what is pinned of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from rewarm.core.state import INF
from rewarm.facts.function import Pin
from rewarm.facts.pack import LayerFacts, PackFacts
from rewarm.policy.pinning.greedy import ModelLoad, tables_bytes
from rewarm.policy.pinning.sharing import Spans, spans_of
from rewarm.policy.pinning.tables import Choice, Share, choices
from rewarm.policy.pinning.timeline import ttfi_with_pin_s

HALF_LIFE_S: Final = 3600.0  # of a cold start's weight
BANDWIDTH_PRIOR_BYTES_S: Final = 1e9  # until a load was measured
_DECAY_PER_S: Final = math.log(2.0) / HALF_LIFE_S
_HORIZON_S: Final = 600.0  # what a byte saves in ten minutes, as `hazard` counts the worth of an idle layer
_ASKED_FOR: Final = 1e300  # worth per byte of a pin asked for by size: the last to go, before a start has to wait
_MOVED_SHARE: Final = 0.05  # a measurement that changes by less changes no plan
_STICKS: Final = 1.25  # what is pinned stays until another is worth so many times as much: moving it reads it again
_LOADS: Final = 16  # the bandwidth is the lower quartile of so many loads
_PASSES: Final = 16  # compute seconds are a mean over so many passes


class Speeds:
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
        "_cold_at_s", "_cold_per_s", "_found", "_found_for", "_machine", "_rows_passes", "_speeds", "_table_spans",
        "barred_until_s", "key", "layers", "limit_bytes", "limit_until_s", "ordered_bytes", "passes", "pinned_bytes",
        "setup_s", "sharers", "spans", "streamed_bytes", "tables", "total_bytes", "waiting", "wishes",
    )  # fmt: skip

    def __init__(self, facts: PackFacts, machine: Speeds) -> None:
        self.key = facts.key
        self.setup_s = facts.setup_s
        self.layers = facts.layers  # with their compute, and waits for rows, as measured since
        self.passes = 1  # that measurement; the one at packing is the first
        self._rows_passes: dict[int, int] = {}  # by table: how often it was measured
        self.wishes: dict[str, Pin] = {}  # what each function that uses it said of its pin
        self.spans: Spans = facts.spans
        self._table_spans: dict[int, list[tuple[str, int, int]]] = {}
        for no, file, begin, end in facts.table_spans:
            self._table_spans.setdefault(no, []).append((file, begin, end))
        self.streamed_bytes = facts.streamed_bytes
        self.total_bytes = facts.total_bytes
        self.sharers: dict[Model, float] = {}  # models that have the same bytes, and how much of this one they have
        self.tables: tuple[int, ...] = ()  # pinned: the first of `pinned_bytes`
        self.barred_until_s = -INF  # no other tables are pinned until then
        self._found: list[Choice] = []
        self._found_for: tuple[tuple[LayerFacts, ...], float, float] = ((), 0.0, 0.0)
        self.pinned_bytes = 0
        self.ordered_bytes = 0  # by the last Pin
        self.waiting = False  # for its answer
        self.limit_bytes = 0  # until `limit_until_s` no more than this can be had
        self.limit_until_s = -INF
        self._speeds = Speeds()
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
        front_bytes = max(0, self.pinned_bytes - tables_bytes(self.layers, self.tables))
        return ttfi_with_pin_s(self.layers, self.bandwidth_bytes_s, front_bytes, self.setup_s, self.tables)

    @property
    def rows_s(self) -> list[float]:
        """By layer, what the next pass is expected to wait for rows of it."""
        return [0.0 if no in self.tables else layer.rows_s for no, layer in enumerate(self.layers)]

    @property
    def held_spans(self) -> Spans:
        """Where its bytes are, those first that are pinned first."""
        return self.spans_of(self.tables)

    @property
    def every_span(self) -> Spans:
        return self.spans_of(tuple(self._table_spans))

    def spans_of(self, tables: Sequence[int]) -> Spans:
        """`tables`, then what is streamed."""
        return spans_of(tables, self._table_spans, self.spans)

    def lesser_tables(self) -> list[int]:
        """The pinned ones that are worth less per byte than the front, the least first."""
        lesser = [table for table in self.tables if self._worth_s(table) * self.bandwidth_bytes_s < 1.0]
        return sorted(lesser, key=self._worth_s)

    def _worth_s(self, table: int) -> float:
        """Seconds that a byte of it saves a cold start."""
        return self.layers[table].rows_s / max(1, self.layers[table].size_bytes)

    def whole(self, share: Share) -> Share:
        """Without the tables of which it has a part only: that would save nothing."""
        tables = share.tables
        while tables and tables_bytes(self.layers, tables) > share.size_bytes:
            tables = tables[:-1]
        return share if tables == share.tables else Share(tables_bytes(self.layers, tables), tables)

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
        """Seconds that the pinned bytes which go first save in ten minutes, each, to be compared with idle layers."""
        if self.pin not in ("auto", "none"):
            return _ASKED_FOR
        cold_per_s = self.cold_per_s(now)
        worth = cold_per_s / self.bandwidth_bytes_s + self.worth_to_others(now)
        lesser = self.lesser_tables()
        return _HORIZON_S * (cold_per_s * self._worth_s(lesser[0]) if lesser else worth)

    def worth_to_others(self, now: float) -> float:
        """Seconds that its sharers are saved per second by one of its bytes, on average."""
        return sum(share * other.cold_per_s(now) / other.bandwidth_bytes_s for other, share in self.sharers.items())

    def read(self, bytes_s: float) -> bool:
        """A load was measured. True if what can be counted on is another now."""
        before = self.bandwidth_bytes_s
        self._speeds.add(bytes_s)
        self._machine.add(bytes_s)
        return _moved(before, self.bandwidth_bytes_s)

    def computed(self, compute_s: tuple[float, ...], rows_s: Mapping[int, float], setup_s: float | None) -> bool:
        """A first pass was measured. True if the whole takes another time now.

        `rows_s`: what it waited for rows of tables. Of one that is pinned that says nothing of how it would be.
        """
        self.passes += 1
        share = 1.0 / min(self.passes, _PASSES)
        before = self._pass_s()
        if setup_s is not None:
            self.setup_s += share * (setup_s - self.setup_s)
        self.layers = tuple(
            layer._replace(compute_s=layer.compute_s + share * (seconds - layer.compute_s))
            for layer, seconds in zip(self.layers, compute_s, strict=True)
        )
        if rows_s:
            self.layers = tuple(self._waited(no, layer, rows_s) for no, layer in enumerate(self.layers))
        return _moved(before, self._pass_s())

    def _waited(self, no: int, layer: LayerFacts, rows_s: Mapping[int, float]) -> LayerFacts:
        if no not in rows_s or not layer.on_demand or no in self.tables:
            return layer
        passes = self._rows_passes[no] = min(self._rows_passes.get(no, 0) + 1, _PASSES)
        return layer._replace(rows_s=layer.rows_s + (rows_s[no] - layer.rows_s) / passes)

    def _pass_s(self) -> float:
        return self.setup_s + sum(layer.compute_s + layer.rows_s for layer in self.layers)

    def load(self, now: float) -> ModelLoad:
        """What the planner is told."""
        cold_per_s = self.cold_per_s(now) * (_STICKS if self.pinned_bytes else 1.0)
        limit_bytes = self.limit_bytes if now < self.limit_until_s else None
        return ModelLoad(
            self.key, self.layers, self.bandwidth_bytes_s, cold_per_s, self.pin, self.setup_s, limit_bytes,
            self.spans if self.sharers else (), self.worth_to_others(now), self.tables,
            self._table_spans if self.sharers else {}, now < self.barred_until_s, self._choices(),
        )  # fmt: skip

    def _choices(self) -> list[Choice]:
        known_for = (self.layers, self.bandwidth_bytes_s, self.setup_s)
        if self._found_for != known_for:
            self._found = choices(*known_for)
            self._found_for = known_for
        return self._found

    def __repr__(self) -> str:
        return f"<model {self.key} of {', '.join(self.wishes)}: {self.pinned_bytes} bytes pinned>"


def _moved(before: float, after: float) -> bool:
    return abs(after - before) > _MOVED_SHARE * before
