"""Keep-alive policies that only an experiment has: one that knows the trace, and one that looks over a shoulder."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, KeepalivePolicy, LayerView, Prewarm
from rewarm.policy.keepalive.fixed import worth_per_byte
from rewarm.units import MB

_GB_H = float(1 << 30) * 3600.0
_KEEP, _DROP = Keep(None), Drop()


class Optimum:
    """Offline: knows when each function is called next, and keeps its instance if that is cheaper than a start:

        price * MB * gap_s < startup_s                MB = 2**20 bytes, price in start-up seconds per MB·s

    Nothing is raised ahead. With one instance per function and one layer no policy without pre-warm does better: every
    gap is a choice of its own between these two costs. Layers below User are kept for as long as any is above them.
    """

    name = "optimum"
    watches_arrivals = False

    def __init__(self, price: float, arrivals_s: Mapping[str, Sequence[float]]) -> None:
        self._price = price
        self._arrivals_s = arrivals_s

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        if layer.function is None:
            return _DROP
        arrivals_s = self._arrivals_s[layer.function]
        after = bisect_right(arrivals_s, now)
        gap_s = arrivals_s[after] - now if after < len(arrivals_s) else math.inf
        return _KEEP if self._price * layer.resident_bytes / MB * gap_s < layer.startup_s else _DROP

    def priority(self, layer: LayerView, now: float) -> float:
        return worth_per_byte(layer)


class Watched:
    """Does what `rule` does, and adds up what instances held while idle, function by function.

    For functions of one instance at most. It counts as `rewarm.core.meter` does, which has sums only, up to `end_s`,
    the end of the trace.
    """

    def __init__(self, rule: KeepalivePolicy, end_s: float) -> None:
        self._rule = rule
        self._end_s = end_s
        self._learns = getattr(rule, "watches_arrivals", True)
        self._ends = getattr(rule, "watches_ends", False)
        self._open: dict[str, tuple[float, int]] = {}  # since when the instance idles, and what it holds
        self._byte_s: dict[str, float] = {}
        self.name = rule.name
        self.watches_runs = getattr(rule, "watches_runs", False)
        self.watches_ends = True
        self.watches_deploys = getattr(rule, "watches_deploys", False)
        self.worth_holds = getattr(rule, "worth_holds", 0.0)
        self.priority = rule.priority

    def idle_gb_h(self) -> dict[str, float]:
        """By function, once the trace is over."""
        for function in list(self._open):
            self._close(function, self._end_s)
        return {function: byte_s / _GB_H for function, byte_s in self._byte_s.items()}

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        self._close(function, now)
        return self._rule.on_arrival(function, key, now) if self._learns else None

    def on_deployed(self, instance: LayerView, now: float) -> Prewarm | None:
        return self._rule.on_deployed(instance, now)  # type: ignore[attr-defined,no-any-return]

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        if layer.layer >= Layer.USER and layer.function is not None:
            since_s, _ = self._open.get(layer.function, (layer.idle_since_s, 0))
            self._open[layer.function] = since_s, layer.resident_bytes  # as last told: the first is measured late
        return self._rule.on_idle(layer, now)

    def on_gone(self, layer: LayerView, evicted: bool, now: float) -> None:
        if layer.function is not None:
            self._close(layer.function, now)
        if self._ends:
            self._rule.on_gone(layer, evicted, now)  # type: ignore[attr-defined]

    def on_run(self, spec: FunctionSpec, size: int, run_s: float, now: float) -> None:
        self._rule.on_run(spec, size, run_s, now)  # type: ignore[attr-defined]

    def _close(self, function: str, now: float) -> None:
        since_s, resident_bytes = self._open.pop(function, (now, 0))
        idle_s = max(min(now, self._end_s) - since_s, 0.0)
        self._byte_s[function] = self._byte_s.get(function, 0.0) + idle_s * resident_bytes
