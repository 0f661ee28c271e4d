"""When the first inference of a model that is still loading is over, and how many pinned bytes hide the load.

Layers 1..n run in order; layer i is loaded in l_i seconds (0 if it is there, pinned or read on demand) and computed in
c_i. One loader, one compute stream, and no layer runs before it is loaded: the flow shop of two machines (Johnson 1954)
with its order given, whose makespan is

    T = max( sum of c,  max over k of [ sum of l_i for i <= k  +  sum of c_i for i >= k ] )

If l_i = bytes_i / bandwidth, whatever B bytes are pinned, what is to be read of the first k layers is at least
max(0, bytes of them - B) for every k, and pinning the first B bytes reaches that for all k at once. So a prefix is the
best there is for every B, to the byte; each byte up to `zero_bubble_bytes` saves 1 / bandwidth seconds, and any further
one nothing. What a pass waits for by itself, the rows of a table that is read on demand, is to this formula compute of
its layer, unless the table is one of the `tables` that are pinned (`tables.py`). `setup_s`, everywhere here, is what
has to be done before the first layer can run while the load is already under way: a layer 0 of no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from rewarm.facts.pack import LayerFacts


def ttfi_s(load_s: Sequence[float], compute_s: Sequence[float], setup_s: float = 0.0) -> float:
    """Seconds from the start of the load to the end of the first inference. As many loads as computes (ValueError)."""
    ends_s = rest_s = 0.0  # of the layers from k on, if the loader begins with them; and their compute alone
    for load, compute in zip(reversed(load_s), reversed(compute_s), strict=True):
        rest_s += compute
        ends_s = max(ends_s, rest_s) + load
    return max(ends_s, rest_s + setup_s)


def bubble_s(load_s: Sequence[float], compute_s: Sequence[float], setup_s: float = 0.0) -> float:
    """The part of `ttfi_s` in which the compute stream waits for layers."""
    return max(0.0, ttfi_s(load_s, compute_s, setup_s) - setup_s - sum(compute_s))


def loads_s(layers: Sequence[LayerFacts], bandwidth_bytes_s: float, pin_bytes: int = 0) -> list[float]:
    """Seconds to read each layer if the first `pin_bytes` of those that are streamed are there. Bandwidth above 0."""
    loads = []
    for layer in layers:
        streamed = 0 if layer.on_demand else layer.size_bytes
        there = min(streamed, pin_bytes)
        pin_bytes -= there
        loads.append((streamed - there) / bandwidth_bytes_s)
    return loads


def computes_s(layers: Sequence[LayerFacts], tables: Collection[int] = ()) -> list[float]:
    """Seconds that a pass spends in each layer, waiting for rows among it."""
    return [layer.compute_s + (0.0 if no in tables else layer.rows_s) for no, layer in enumerate(layers)]


def ttfi_with_pin_s(
    layers: Sequence[LayerFacts], bandwidth_bytes_s: float, pin_bytes: int, setup_s: float = 0.0,
    tables: Collection[int] = (),
) -> float:  # fmt: skip
    """`ttfi_s` if `tables` and the first `pin_bytes` of what is streamed are there, the rest comes at a bandwidth."""
    return ttfi_s(loads_s(layers, bandwidth_bytes_s, pin_bytes), computes_s(layers, tables), setup_s)


def zero_bubble_bytes(
    layers: Sequence[LayerFacts], bandwidth_bytes_s: float, setup_s: float = 0.0, tables: Collection[int] = ()
) -> int:
    """The fewest bytes that, pinned at the front, leave no bubble: bandwidth * (T without pins - setup - sum of c).

    Written as the most, over k, by which the first k layers' bytes exceed what is read while the layers before k run.
    """
    missing, streamed, before_s = 0.0, 0, setup_s
    for no, (_, size_bytes, compute_s, on_demand, rows_s) in enumerate(layers):
        if not on_demand:
            streamed += size_bytes
            missing = max(missing, streamed - bandwidth_bytes_s * before_s)
        before_s += compute_s if rows_s == 0.0 or no in tables else compute_s + rows_s
    return math.ceil(missing)
