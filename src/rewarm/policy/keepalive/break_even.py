"""`break_even`: keep a layer until its memory has cost as much as raising it again would: ski rental, 2-competitive.

    beta_s = alpha * startup_s / ((1 - alpha) * size_MB),   MB = 2**20 bytes

alpha weighs a second of start-up against a MB·s of idle memory (RainbowCake, ASPLOS'24, whose published value is
0.996: 249 MB·s are worth one second). The classic bound: never more than twice the cost of who knows the future.
"""

from __future__ import annotations

import math

from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import ROUNDING_S, Drop, Keep, KeepaliveDecision, LayerView, Prewarm
from rewarm.policy.keepalive.checks import share
from rewarm.policy.keepalive.fixed import worth_per_byte
from rewarm.units import MB

UNMEASURED_S = 600.0  # for a layer whose start-up time or size nobody has measured (RainbowCake's published code)
_DROP = Drop()


def break_even_s(alpha: float, layer: LayerView) -> float:
    """beta of the layer, in seconds; 600 while it is not measured."""
    if layer.startup_s <= 0 or layer.resident_bytes <= 0:
        return UNMEASURED_S
    return alpha * layer.startup_s / ((1.0 - alpha) * (layer.resident_bytes / MB))


class BreakEven:
    """Each layer lives for its own break-even time. Raises BadDefinition unless 0 < `alpha` < 1."""

    __slots__ = ("_alpha",)
    name = "break_even"
    worth_holds = math.inf
    watches_arrivals = False

    def __init__(self, alpha: float = 0.996) -> None:
        self._alpha = share("alpha", alpha)

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        left_s = layer.idle_since_s + break_even_s(self._alpha, layer) - now
        return Keep(left_s) if left_s > ROUNDING_S else _DROP

    def priority(self, layer: LayerView, now: float) -> float:
        return worth_per_byte(layer)
