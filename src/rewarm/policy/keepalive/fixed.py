"""`fixed`: every idle layer lives for a set time, as with OpenWhisk (10 min), Azure (20 min) or Knative (60 s)."""

from __future__ import annotations

import math

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.base import (
    ASLEEP,
    LANG,
    ROUNDING_S,
    Drop,
    Keep,
    KeepaliveDecision,
    LayerView,
    Prewarm,
    on_disk,
)
from rewarm.policy.keepalive.checks import duration_s

_DROP = Drop()
_TIE = 1e-18  # s/B; a real difference (1 ms on 100 MB is 1e-11) outweighs it


def worth_per_byte(layer: LayerView) -> float:
    """Start-up seconds saved per resident byte, GreedyDual-Size's value without its clock (Cao and Irani, 1997; as
    FaasCache, ASPLOS'21, uses it). Between equals the more recently used is worth more, by at most 1e-18 s/B; that does
    not depend on when it is asked for, so an answer holds for as long as the layer idles."""
    return layer.startup_s / max(layer.resident_bytes, 1) - _TIE / (1.0 + max(layer.last_used_s, 0.0))


class FixedKeepalive:
    """A time to live per layer, in seconds from when it became idle; 0 drops at once.

    `user_s` holds instances with their code and weights, `lang_s` interpreters with packages imported, `bare_s` empty
    sandboxes, `asleep_s` what is on disk (None: no limit but the disk budget). `ttl_s` is a word for both `user_s` and
    `lang_s`; either, given as well, has its own way. When memory is short, `evict` says who goes first: "worth" saves
    least start-up time per byte, "lru" was not used for longest.
    Raises BadDefinition.
    """

    __slots__ = ("_by_use", "_keeps", "_ttls_s")
    name = "fixed"
    worth_holds = math.inf
    watches_arrivals = False

    def __init__(
        self,
        ttl_s: float | None = None,
        user_s: float | None = None,
        lang_s: float | None = None,
        bare_s: float = 60.0,
        evict: str = "worth",
        asleep_s: float | None = None,
    ) -> None:
        both_s = 600.0 if ttl_s is None else duration_s("ttl_s", ttl_s)
        user_s = both_s if user_s is None else duration_s("user_s", user_s)
        lang_s = both_s if lang_s is None else duration_s("lang_s", lang_s)
        bare_s = duration_s("bare_s", bare_s)
        asleep_s = math.inf if asleep_s is None else duration_s("asleep_s", asleep_s)
        if evict not in ("worth", "lru"):
            raise BadDefinition(f"evict must be worth or lru, not {evict!r}")
        self._by_use = evict == "lru"
        # Indexed by Layer; an instance with its weights (MODEL) is a User layer to this rule.
        self._ttls_s = (asleep_s, bare_s, lang_s, user_s, user_s)
        assert len(self._ttls_s) == max(Layer) + 1
        self._keeps = tuple(Keep(ttl if ttl < math.inf else None) for ttl in self._ttls_s)

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        kind = layer.layer
        if kind is LANG and on_disk(layer):
            kind = ASLEEP
        ttl_s = self._ttls_s[kind]
        left_s = layer.idle_since_s + ttl_s - now
        if left_s <= ROUNDING_S:
            return _DROP
        return self._keeps[kind] if left_s >= ttl_s - ROUNDING_S else Keep(left_s)

    def priority(self, layer: LayerView, now: float) -> float:
        return layer.last_used_s if self._by_use else worth_per_byte(layer)
