"""One budget for the pins of several models whose load time is bytes over bandwidth.

A pinned byte of model m saves 1 / bandwidth_m seconds at each of its cold starts, up to its zero-bubble bytes, and
nothing beyond (`timeline`). The expected seconds of waiting, the sum over m of cold_per_s_m * T_m(pins_m), are thus
convex and piecewise linear with one bend for each model, and to fill the models in decreasing cold_per_s / bandwidth is
exact, to the byte; the last one gets a part. What a person asked for by size comes before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rewarm.facts.function import Pin
from rewarm.facts.pack import LayerFacts
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

    @property
    def worth_per_byte(self) -> float:
        """Seconds saved per second and byte, for bytes up to the zero-bubble budget."""
        return self.cold_per_s / self.bandwidth_bytes_s


def plan(models: Sequence[ModelLoad], budget_bytes: int) -> dict[str, int]:
    """Bytes to pin at the front of each model, by key; together at most `budget_bytes`.

    Asked for by size first, each kind in decreasing worth. A model that nobody starts gets nothing unless asked for.
    """
    ranked = sorted(models, key=lambda model: (model.pin == "auto", -model.worth_per_byte, model.key))
    pins: dict[str, int] = {}
    left = max(0, budget_bytes)
    for model in ranked:
        pins[model.key] = size = min(left, wanted_bytes(model)) if left else 0
        left -= size
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
