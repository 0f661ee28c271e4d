"""One budget for the pins of several models.

A pinned byte of the front of model m saves 1 / bandwidth_m seconds at each of its cold starts, up to its zero-bubble
bytes, and nothing beyond (`timeline`). The expected seconds of waiting, the sum over m of cold_per_s_m * T_m(pins_m),
are thus convex and piecewise linear with one bend for each model, and to fill the models in decreasing
cold_per_s / bandwidth is exact, to the byte; the last one gets a part. What a person asked for by size comes before.

With tables that are pinned whole (`tables`) a model has several bends, those of the lower convex hull of what its
choices reach, and the same filling in steps from bend to bend is as good as any where all steps fit. Of the step that
does not, the model gets what is best within the rest; so the loss is less than what that one step would have saved
(Sinha and Zoltners 1979).

Models that have bytes in common (`sharing`) hold them once: what is pinned for one costs the next nothing, and is worth
what all of them are saved by it. The order stays the same, by worth per byte of the model; that is exact where models
have all in common or nothing, and otherwise a heuristic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from rewarm.facts.function import Pin
from rewarm.facts.pack import LayerFacts
from rewarm.policy.pinning.sharing import Held, Spans
from rewarm.policy.pinning.tables import Choice, Share, choice_of, choices
from rewarm.policy.pinning.timeline import zero_bubble_bytes

_CLOSE: Final = 1.02  # what is pinned stays if nothing else is sooner done by more: to move it reads it again


class ModelLoad(NamedTuple):
    """What the plan needs to know of one model."""

    key: str
    layers: Sequence[LayerFacts]
    bandwidth_bytes_s: float  # above 0
    cold_per_s: float  # expected cold starts
    pin: Pin = "auto"  # "none", "all", or so many bytes, whatever that is worth
    setup_s: float = 0.0
    limit_bytes: int | None = None  # no more of it can be held, e.g. where the kernel refused to lock more
    spans: Spans = ()  # of what is streamed, if others have some of it, too
    worth_to_others: float = 0.0  # what they are saved by a byte of it, on average
    tables: tuple[int, ...] = ()  # that are pinned now
    table_spans: Mapping[int, Spans] = {}  # of each table, if others have some of the model

    def spans_of(self, tables: Sequence[int]) -> Spans:
        """Of which a Share's bytes are the first."""
        return [*(span for table in tables for span in self.table_spans.get(table, ())), *self.spans]

    @property
    def worth_per_byte(self) -> float:
        """Seconds saved per second and byte of the front, for bytes up to the zero-bubble budget."""
        return self.cold_per_s / self.bandwidth_bytes_s + self.worth_to_others

    @property
    def streamed_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers if not layer.on_demand)


class _Step(NamedTuple):
    """From one bend of a model to the next."""

    worth_per_byte: float
    key: str
    no: int  # of this model's steps, which come in this order
    share: Share


class _Plan:
    """What is given out so far."""

    def __init__(self, models: Sequence[ModelLoad], budget_bytes: int) -> None:
        self.shares = {model.key: Share() for model in models}
        self._left = max(0, budget_bytes)
        self._held = Held()

    def give(self, model: ModelLoad, share: Share) -> bool:
        """What is left of it, if not all of it. False if it is not all."""
        got = share if self._cost_bytes(model, share) <= self._left else self._part(model, share)
        self._left -= self._cost_bytes(model, got)
        if model.spans:
            self._held.add(model.spans_of(got.tables), got.size_bytes)
        self.shares[model.key] = got
        return got == share

    def _cost_bytes(self, model: ModelLoad, share: Share) -> int:
        if model.spans:
            return self._held.lacks_bytes(model.spans_of(share.tables), share.size_bytes)
        return share.size_bytes - self.shares[model.key].size_bytes

    def _part(self, model: ModelLoad, share: Share) -> Share:
        if not model.spans:
            return _within(model, self.shares[model.key].size_bytes + self._left)
        before = self.shares[model.key]
        for tables in (share.tables, before.tables):
            spans = model.spans_of(tables)
            size_bytes = self._held.reach_bytes(spans, share.size_bytes, self._left)
            if size_bytes >= tables_bytes(model.layers, tables):
                return Share(size_bytes, tables)
        return before


def plan(models: Sequence[ModelLoad], budget_bytes: int) -> dict[str, Share]:
    """What to pin of each model, by key; together, each byte counted once, at most `budget_bytes`.

    Asked for by size first, each kind in decreasing worth. A model that nobody starts gets nothing unless asked for.
    """
    given = _Plan(models, budget_bytes)
    asked = [model for model in models if model.pin != "auto"]
    for model in sorted(asked, key=lambda model: (-model.worth_per_byte, model.key)):
        given.give(model, wanted(model))
    by_key = {model.key: model for model in models}
    steps = sorted(
        (step for model in models if model.pin == "auto" for step in _steps(model)),
        key=lambda step: (-step.worth_per_byte, step.key, step.no),
    )
    full: set[str] = set()
    for step in steps:
        if step.key not in full and not given.give(by_key[step.key], step.share):
            full.add(step.key)
    return given.shares


def wanted(model: ModelLoad) -> Share:
    """What it gets if the budget is large enough."""
    if model.pin == "auto":
        steps = _steps(model)
        return steps[-1].share if steps else Share()
    if model.pin == "none":
        return Share()
    total_bytes = sum(layer.size_bytes for layer in model.layers)
    size_bytes = total_bytes if model.pin == "all" else min(model.pin, total_bytes)
    return _within(model, size_bytes if model.limit_bytes is None else min(size_bytes, model.limit_bytes))


def tables_bytes(layers: Sequence[LayerFacts], tables: Sequence[int]) -> int:
    """Of the tables alone."""
    return sum(layers[table].size_bytes for table in tables)


def _steps(model: ModelLoad) -> list[_Step]:
    """The bends of what its pins save, from none to where no byte saves any more."""
    if not model.cold_per_s:
        return []
    bandwidth = model.bandwidth_bytes_s
    bends: list[tuple[int, float, Share]] = []
    found = choices(model.layers, bandwidth, model.setup_s)
    for choice in found:
        front_bytes = zero_bubble_bytes(model.layers, bandwidth, model.setup_s, choice.tables)
        bends.append((choice.size_bytes, choice.ends_s, Share(choice.size_bytes, choice.tables)))
        size_bytes = choice.size_bytes + front_bytes
        bends.append((size_bytes, choice.alone_s, Share(size_bytes, choice.tables)))
    hull = _hull(bends)
    steps: list[_Step] = []
    for no, (before, after) in enumerate(pairwise(hull)):
        # A step of the front alone is worth what the formula says, and not what rounding up to a byte makes of it.
        whole = before[2].tables == after[2].tables
        saved_s = 1.0 / bandwidth if whole else (before[1] - after[1]) / (after[0] - before[0])
        worth = model.cold_per_s * saved_s + model.worth_to_others
        if model.limit_bytes is not None and after[0] > model.limit_bytes:
            share = _within(model, model.limit_bytes)
            return [*steps, _Step(worth, model.key, no, share)] if share.size_bytes else steps
        steps.append(_Step(worth, model.key, no, after[2]))
    return steps


def _hull(bends: list[tuple[int, float, Share]]) -> list[tuple[int, float, Share]]:
    """The lower convex hull, as far as it falls: bytes, seconds, and what is pinned for that."""
    hull: list[tuple[int, float, Share]] = []
    for bend in sorted(bends):
        if hull and bend[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], bend):
            hull.pop()
        if hull and bend[0] == hull[-1][0]:
            hull[-1] = bend
        else:
            hull.append(bend)
    return hull


def _above(first: tuple[int, float, Share], middle: tuple[int, float, Share], last: tuple[int, float, Share]) -> bool:
    """The middle is not below the line between the others."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])


def _within(model: ModelLoad, budget_bytes: int) -> Share:
    """What is best with so many bytes: with "auto" no more than saves something; else all, as far as it can be."""
    bandwidth, streamed_bytes = model.bandwidth_bytes_s, model.streamed_bytes

    def front_bytes(choice: Choice) -> int:
        useful_bytes = streamed_bytes
        if model.pin == "auto":
            useful_bytes = zero_bubble_bytes(model.layers, bandwidth, model.setup_s, choice.tables)
        return min(useful_bytes, budget_bytes - choice.size_bytes)

    def ttfi_s(choice: Choice) -> float:
        return choice.ttfi_s(front_bytes(choice), bandwidth)

    fitting = [one for one in choices(model.layers, bandwidth, model.setup_s) if one.size_bytes <= budget_bytes]
    best = min(fitting, key=lambda choice: (ttfi_s(choice), choice.size_bytes + front_bytes(choice)))
    pinned = choice_of(model.tables, model.layers, bandwidth, model.setup_s)
    if model.tables and pinned.size_bytes <= budget_bytes and ttfi_s(pinned) <= _CLOSE * ttfi_s(best):
        best = pinned
    tables, size_bytes = best.tables, best.size_bytes + front_bytes(best)
    if model.pin != "auto":  # the rest, too, whatever it is worth
        for no, layer in enumerate(model.layers):
            if layer.on_demand and no not in tables and 0 < layer.size_bytes <= budget_bytes - size_bytes:
                tables, size_bytes = (*tables, no), size_bytes + layer.size_bytes
    return Share(size_bytes, tables)
