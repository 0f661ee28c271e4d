"""One budget for the pins of several models whose load time is bytes over bandwidth.

A pinned byte of model m saves 1 / bandwidth_m seconds at each of its cold starts, up to its zero-bubble bytes, and
nothing beyond (`timeline`). The expected seconds of waiting, the sum over m of cold_per_s_m * T_m(pins_m), are thus
convex and piecewise linear with one bend for each model, and to fill the models in decreasing cold_per_s / bandwidth is
exact, to the byte; the last one gets a part. What a person asked for by size comes before.

Models that have bytes in common (`sharing`) hold them once: what is pinned for one costs the next nothing, and is worth
what all of them are saved by it. The order stays the same, by worth per byte of the model; that is exact where models
have all in common or nothing, and otherwise a heuristic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rewarm.facts.function import Pin
from rewarm.facts.pack import LayerFacts
from rewarm.policy.pinning.sharing import Held, Spans
from rewarm.policy.pinning.timeline import zero_bubble_bytes


class ModelLoad(NamedTuple):
    """What the plan needs to know of one model."""

    key: str
    layers: Sequence[LayerFacts]
    bandwidth_bytes_s: float  # above 0
    cold_per_s: float  # expected cold starts
    pin: Pin = "auto"  # "none", "all" that is streamed, or so many bytes, whatever that is worth
    setup_s: float = 0.0
    limit_bytes: int | None = None  # no more of it can be held, e.g. where the kernel refused to lock more
    spans: Spans = ()  # of what is streamed, if others have some of it, too
    worth_to_others: float = 0.0  # what they are saved by a byte of it, on average

    @property
    def worth_per_byte(self) -> float:
        """Seconds saved per second and byte, for bytes up to the zero-bubble budget."""
        return self.cold_per_s / self.bandwidth_bytes_s + self.worth_to_others


def plan(models: Sequence[ModelLoad], budget_bytes: int) -> dict[str, int]:
    """Bytes to pin at the front of each model, by key; together, each byte counted once, at most `budget_bytes`.

    Asked for by size first, each kind in decreasing worth. A model that nobody starts gets nothing unless asked for.
    """
    ranked = sorted(models, key=lambda model: (model.pin == "auto", -model.worth_per_byte, model.key))
    pins: dict[str, int] = {}
    left = max(0, budget_bytes)
    held = Held()
    for model in ranked:
        if model.spans:
            size = held.reach_bytes(model.spans, wanted_bytes(model), left)
            left -= held.lacks_bytes(model.spans, size)
            held.add(model.spans, size)
        else:
            size = min(left, wanted_bytes(model)) if left else 0
            left -= size
        pins[model.key] = size
    return pins


def wanted_bytes(model: ModelLoad) -> int:
    """What it gets if the budget is large enough."""
    streamed = sum(layer.size_bytes for layer in model.layers if not layer.on_demand)
    if model.pin == "auto":
        used = model.cold_per_s > 0.0
        wanted = zero_bubble_bytes(model.layers, model.bandwidth_bytes_s, model.setup_s) if used else 0
    elif isinstance(model.pin, int):
        wanted = min(model.pin, streamed)
    else:
        wanted = streamed if model.pin == "all" else 0
    return wanted if model.limit_bytes is None else min(wanted, model.limit_bytes)
