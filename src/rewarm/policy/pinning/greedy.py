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
what all of them are saved by it (a table is worth what its own model is saved). The order stays the same, by worth per
byte of the model; that is exact where models have all in common or nothing, and otherwise a heuristic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from rewarm.facts.function import Pin
from rewarm.facts.pack import LayerFacts
from rewarm.policy.pinning.sharing import Held, Spans, spans_of
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
    worth_to_others: float = 0.0  # what they are saved by a byte of what is streamed, on average
    tables: tuple[int, ...] = ()  # that are pinned now
    table_spans: Mapping[int, Spans] = {}  # of each table, if others have some of the model
    barred: bool = False  # no other tables: they would have to go again soon
    found: Sequence[Choice] | None = None  # `tables.choices` of the layers, if they are known

    def choices(self) -> Sequence[Choice]:
        found = self.found
        if found is None:
            found = choices(self.layers, self.bandwidth_bytes_s, self.setup_s)
        return [one for one in found if set(one.tables) <= set(self.tables)] if self.barred else found

    def spans_of(self, tables: Sequence[int]) -> Spans:
        """Of which a Share's bytes are the first."""
        return spans_of(tables, self.table_spans, self.spans)

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
            first_bytes = tables_bytes(model.layers, tables)
            most_bytes = min(share.size_bytes, first_bytes + model.streamed_bytes)
            size_bytes = self._held.reach_bytes(model.spans_of(tables), most_bytes, self._left)
            if size_bytes >= first_bytes:
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
    bends: list[_Bend] = []
    for choice in model.choices():
        bends.append(_Bend(choice.size_bytes, choice.ends_s, choice))
        bends.append(_Bend(choice.size_bytes + (choice.ends_s - choice.alone_s) * bandwidth, choice.alone_s, choice))
    steps: list[_Step] = []
    worth = math.inf
    for no, (before, after) in enumerate(pairwise(_hull(bends))):
        if before.choice is after.choice:
            saved_s, of_front = 1.0 / bandwidth, 1.0
        else:
            saved_s = (before.ttfi_s - after.ttfi_s) / (after.size_bytes - before.size_bytes)
            fronts = [bend.size_bytes - bend.choice.size_bytes for bend in (before, after)]
            of_front = max(0.0, (fronts[1] - fronts[0]) / (after.size_bytes - before.size_bytes))
        # Sums of floats differ in the last digit; the steps of a hull do not get steeper.
        worth = min(worth, model.cold_per_s * saved_s + of_front * model.worth_to_others)
        size_bytes = after.choice.size_bytes
        if after.ttfi_s == after.choice.alone_s:
            size_bytes += zero_bubble_bytes(model.layers, bandwidth, model.setup_s, after.choice.tables)
        share = Share(size_bytes, after.choice.tables)
        if model.limit_bytes is not None and size_bytes > model.limit_bytes:
            share = _within(model, model.limit_bytes)
            return [*steps, _Step(worth, model.key, no, share)] if share.size_bytes else steps
        steps.append(_Step(worth, model.key, no, share))
    return steps


class _Bend(NamedTuple):
    """A choice with none of the front pinned, or with so much that no more saves anything."""

    size_bytes: float
    ttfi_s: float
    choice: Choice


def _hull(bends: list[_Bend]) -> list[_Bend]:
    """The lower convex hull, as far as it falls."""
    hull: list[_Bend] = []
    for bend in sorted(bends):
        if hull and bend.ttfi_s >= hull[-1].ttfi_s:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], bend):
            hull.pop()
        if hull and bend.size_bytes == hull[-1].size_bytes:
            hull[-1] = bend
        else:
            hull.append(bend)
    return hull


def _above(first: _Bend, middle: _Bend, last: _Bend) -> bool:
    """The middle is not below the line between the others."""
    rise_s, run_bytes = last.ttfi_s - first.ttfi_s, last.size_bytes - first.size_bytes
    return (middle.ttfi_s - first.ttfi_s) * run_bytes >= rise_s * (middle.size_bytes - first.size_bytes)


def _within(model: ModelLoad, budget_bytes: int) -> Share:
    """What is best with so many bytes: with "auto" no more than saves something; else all, as far as it can be."""
    bandwidth = model.bandwidth_bytes_s

    def ttfi_s(choice: Choice) -> float:
        return choice.ttfi_s(budget_bytes - choice.size_bytes, bandwidth)

    fitting = [choice for choice in model.choices() if choice.size_bytes <= budget_bytes]
    best = min(fitting, key=lambda choice: (ttfi_s(choice), choice.size_bytes))
    if model.tables and best.tables != model.tables:
        pinned = choice_of(model.tables, model.layers, bandwidth, model.setup_s)
        if pinned.size_bytes <= budget_bytes and ttfi_s(pinned) <= _CLOSE * ttfi_s(best):
            best = pinned
    front_bytes = budget_bytes - best.size_bytes
    if model.pin == "auto":
        front_bytes = min(front_bytes, zero_bubble_bytes(model.layers, bandwidth, model.setup_s, best.tables))
    tables, size_bytes = best.tables, best.size_bytes + min(front_bytes, model.streamed_bytes)
    if model.pin != "auto" and not model.barred:  # the rest, too, whatever it is worth
        for no, layer in enumerate(model.layers):
            if layer.on_demand and no not in tables and 0 < layer.size_bytes <= budget_bytes - size_bytes:
                tables, size_bytes = (*tables, no), size_bytes + layer.size_bytes
    return Share(size_bytes, tables)
