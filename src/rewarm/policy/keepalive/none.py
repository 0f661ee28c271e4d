"""`none`: nothing idle is kept; every request after a pause starts cold."""

from __future__ import annotations

import math

from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import Drop, KeepaliveDecision, LayerView, Prewarm
from rewarm.policy.keepalive.fixed import worth_per_byte

_DROP = Drop()


class NoKeepalive:
    """Drops every layer at once."""

    __slots__ = ()
    name = "none"
    worth_holds = math.inf
    watches_arrivals = False

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return _DROP

    def priority(self, layer: LayerView, now: float) -> float:
        return worth_per_byte(layer)
