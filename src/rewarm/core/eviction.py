"""Who goes first when memory is short: idle layers of every kind and pins, least worth per byte first.

A layer goes as a whole, of a pin only what is still short. Never a busy instance, one on its way up, or a zygote that
one of its instances is forked from.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rewarm.core.model import Model
from rewarm.core.state import INF, Bare, FunctionState, LangLayer, LayerState, Sandbox
from rewarm.facts.function import LangKey
from rewarm.facts.messages import Effect
from rewarm.facts.sandbox import SandboxState
from rewarm.policy.keepalive.base import USER, LayerView

if TYPE_CHECKING:
    from rewarm.core.pool import Pool

Victim = Sandbox | LangLayer | Bare


def make_room(
    pool: Pool, need_bytes: int, now: float, out: list[Effect], sparing: FunctionState | None = None,
    worth_below: float = INF,
) -> bool:  # fmt: skip
    """Free idle layers worth less than `worth_below`, least worth per byte first, until `need_bytes` fit.

    If all that is idle is not enough: False, and nothing is freed, unless what lies below it would be (the caller asks
    again when the ends are reported), or nobody is waiting for room (`sparing` is None), when the account is brought
    as close to its budget as can be.
    """
    short = pool.ledger.short_bytes(need_bytes)
    if short == 0:
        return True
    key = sparing.key if sparing is not None else None
    freed = freed_pins = 0
    chosen: list[Victim] = []
    pins: list[Model] = []
    for worth, layer in _ranked(pool, now, key):
        if worth >= worth_below:
            break
        if isinstance(layer, Model):
            pins.append(layer)
            freed_pins = pool.models.held_by(pins)
        else:
            chosen.append(layer)
            freed += pool.ledger.of(_node(layer))
        if freed + freed_pins >= short:
            break
    enough = freed + freed_pins >= short
    if not enough and sparing is not None:
        patient = worth_below == INF and not sparing.live
        if not patient or freed + freed_pins + _below(pool, chosen, key) < short:
            return False
    _release(pool, pins, min(freed_pins, short - freed), now, out)
    pool.ground.evictions += len(chosen)
    for layer in chosen:
        pool.peel(layer, "memory", now, out)
    return enough


def _release(pool: Pool, pins: list[Model], size_bytes: int, now: float, out: list[Effect]) -> None:
    """Free so much of `pins`, which come in the order in which they are to go."""
    until_bytes = pool.ledger.held_bytes - size_bytes
    for model in pins:
        left_bytes = pool.ledger.held_bytes - until_bytes
        if left_bytes <= 0:
            return
        pool.models.release(model, left_bytes, now, out)


def worth_of_next(pool: Pool, fn: FunctionState, now: float) -> float:
    """Worth per byte of an instance of `fn` that is not there yet, by the function's own policy."""
    return fn.keepalive.priority(view_of_next(fn, now), now)


def view_of_next(fn: FunctionState, now: float) -> LayerView:
    """An instance of `fn` that is not there yet, as it is expected to be."""
    size = int(fn.resident.value)
    return LayerView(USER, fn.name, fn.key, fn.up_s.value, size, now, now, 0, fn.live)


def _node(layer: Victim) -> int | LangKey:
    return layer.key if isinstance(layer, LangLayer) else layer.id


def _below(pool: Pool, chosen: list[Victim], spare_key: LangKey | None) -> int:
    """Bytes of the Lang layers that become idle, and can be freed next, once `chosen` and the dying are gone."""
    going = Counter(s.key for s in pool.sandboxes.values() if s.state is SandboxState.DYING and s.holds_lang)
    going.update(layer.key for layer in chosen if isinstance(layer, Sandbox) and layer.holds_lang)
    return sum(
        pool.ledger.of(key)
        for key, lang in pool.langs.items()
        if lang.state is LayerState.ALIVE and key != spare_key and 0 < pool.runtimes.of(key).holders == going[key]
    )


def _ranked(pool: Pool, now: float, spare_key: LangKey | None) -> Iterator[tuple[float, Victim | Model]]:
    """Every idle layer and pin with its worth per byte, cheapest first; between equals the longest unused.

    A heap, because one or two are wanted of some hundred.
    """
    heap: list[tuple[float, float, int, Victim | Model]] = []
    for sandbox in pool.sandboxes.values():
        if sandbox.state is SandboxState.READY and not sandbox.function.queue:
            heap.append((_worth(pool, sandbox, now), sandbox.last_used_s, len(heap), sandbox))
    rule = pool.ground.keepalive
    for lang in pool.langs.values():
        if pool.runtimes.idle(lang) and lang.key != spare_key and not lang.key.vm_bytes:
            worth = rule.priority(pool.runtimes.view(lang), now)
            heap.append((worth, lang.last_used_s, len(heap), lang))
    for bare in pool.bares.idle:
        if pool.ledger.of(bare.id):  # one that holds nothing makes no room
            heap.append((rule.priority(pool.bares.view(bare), now), bare.last_used_s, len(heap), bare))
    for model in pool.models.by_key.values():
        if model.pinned_bytes:
            heap.append((model.worth_per_byte(now), model.last_cold_s, len(heap), model))
    heapq.heapify(heap)
    while heap:
        worth, _, _, layer = heapq.heappop(heap)
        yield worth, layer


def _worth(pool: Pool, sandbox: Sandbox, now: float) -> float:
    """What the policy says, or said of this idle time so recently that it holds (`worth_holds`)."""
    if now < sandbox.worth_until_s:
        return sandbox.worth
    fn = sandbox.function
    sandbox.worth = fn.keepalive.priority(pool.user_view(sandbox), now)
    idle_s = now - sandbox.idle_since_s
    sandbox.worth_until_s = INF if fn.worth_holds == INF else now + fn.worth_holds * idle_s
    return sandbox.worth
