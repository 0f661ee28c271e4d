"""`lru`: nothing ends by itself; when memory is short the layer that was used least recently goes first."""

from __future__ import annotations

import math

from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import Keep, KeepaliveDecision, LayerView, Prewarm

_KEEP = Keep(None)


class LeastRecentlyUsed:
    """A cache of layers without time limits; only the ledger's budget ends any."""

    __slots__ = ()
    name = "lru"
    worth_holds = math.inf
    watches_arrivals = False

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return _KEEP

    def priority(self, layer: LayerView, now: float) -> float:
        return layer.last_used_s
