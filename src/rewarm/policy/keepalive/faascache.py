"""`faascache`: keep-alive as a cache, GreedyDual-Size-Frequency over layers (FaasCache, ASPLOS'21).

Nothing ends by itself. When memory is short the layer with the lowest

    clock + freq * cost_s / size_MB

goes first. cost_s is what raising it again takes (cold less warm time), MB is 2**20 bytes, freq counts the function's
requests over its living instances and is forgotten with the last of them (a Lang layer and a snapshot count their own
uses), and clock is the highest priority that was ever evicted, as it stood when the layer was last used: what is not
used ages.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import USER, Keep, KeepaliveDecision, LayerView, Prewarm
from rewarm.units import MB

_KEEP = Keep(None)
_HISTORY_MAX = 4096  # changes of the clock; what was last used before them has the oldest value that is known


class FaasCache:
    """GreedyDual-Size-Frequency without time limits; only the ledger's budget ends any layer."""

    __slots__ = ("_changed_s", "_clocks", "_freq")
    name = "faascache"
    worth_holds = math.inf
    watches_ends = True

    def __init__(self) -> None:
        self._freq: dict[str, int] = {}  # requests by function since it last had no instance
        self._clocks = [0.0]  # ascending: _clocks[i] holds from _changed_s[i - 1] on
        self._changed_s: list[float] = []

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        self._freq[function] = self._freq.get(function, 0) + 1
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return _KEEP

    def on_gone(self, layer: LayerView, evicted: bool, now: float) -> None:
        if evicted and (worth := self.priority(layer, now)) > self._clocks[-1]:
            self._clocks.append(worth)
            self._changed_s.append(now)
            if len(self._changed_s) >= 2 * _HISTORY_MAX:
                del self._clocks[:_HISTORY_MAX], self._changed_s[:_HISTORY_MAX]
        if layer.function is not None and layer.layer >= USER and layer.others == 0:
            self._freq.pop(layer.function, None)

    def priority(self, layer: LayerView, now: float) -> float:
        """The formula above. A layer smaller than 1 MB, or not measured yet, counts as 1 MB."""
        clock = self._clocks[bisect_right(self._changed_s, layer.last_used_s)]
        freq = layer.uses if layer.layer < USER or layer.function is None else self._freq.get(layer.function, 0)
        return clock + freq * layer.startup_s / max(layer.resident_bytes / MB, 1.0)
