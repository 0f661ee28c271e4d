"""`rainbowcake`: layers peeled one by one, each with a time to live from its rate and its break-even time (ASPLOS'24).

Arrivals are counted in windows: one per function (User, and its snapshot on disk), one per runtime key (Lang: the rates
of its functions add up) and one for all (Bare). A window holds the last `n` arrivals of at most 24 hours ago. With them

    mean_s  = (now - oldest) / number in the window
    iat_p_s = -ln(1 - p) * mean_s            if arrivals are Poisson, the next one comes by then with probability p
    ttl_s   = floor_s if iat_p_s <= floor_s, else min(iat_p_s, beta_s)            beta_s: see `break_even`

The floor is in the published code, not in the paper; `floor_s = 0` leaves it out. A request also raises the function
again iat_p_s later. The published code does so only if an idle instance is there already; here, as the paper
means it, only if there is none. The time to live is set once, when the layer becomes idle.

For comparison: `sharing` off gives Lang and Bare layers the window of the function that used them last; `layers` off
drops what is below an instance together with it; `prewarm` off raises nothing ahead.
"""

from __future__ import annotations

import math
from collections import deque

from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import (
    ASLEEP,
    LANG,
    ROUNDING_S,
    USER,
    Drop,
    Keep,
    KeepaliveDecision,
    LayerView,
    Prewarm,
)
from rewarm.policy.keepalive.break_even import break_even_s
from rewarm.policy.keepalive.checks import duration_s, share, switch, whole

_WINDOW_S = 86_400.0
_DROP = Drop()


class RainbowCake:
    """`alpha` and `p` lie between 0 and 1, `floor_s` is a duration, `n` counts arrivals. Raises BadDefinition."""

    __slots__ = (
        "_alpha", "_bare", "_floor_s", "_lang", "_last", "_last_of_key", "_layers", "_n", "_prewarm", "_quantile",
        "_sharing", "_user",
    )  # fmt: skip
    name = "rainbowcake"
    worth_holds = math.inf

    def __init__(
        self,
        alpha: float = 0.996,
        p: float = 0.8,
        floor_s: float = 60.0,
        n: int = 6,
        sharing: bool | str = True,
        layers: bool | str = True,
        prewarm: bool | str = True,
    ) -> None:
        self._alpha = share("alpha", alpha)
        self._quantile = -math.log1p(-share("p", p))
        self._floor_s = duration_s("floor_s", floor_s)
        self._n = whole("n", n)
        self._sharing = switch("sharing", sharing)
        self._layers = switch("layers", layers)
        self._prewarm = switch("prewarm", prewarm)
        self._user: dict[str, deque[float]] = {}
        self._lang: dict[LangKey, deque[float]] = {}
        self._bare: deque[float] = deque(maxlen=self._n)
        self._last_of_key: dict[LangKey, str] = {}
        self._last: str | None = None

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        user, lang = self._user.get(function), self._lang.get(key)
        if user is None:
            user = self._user[function] = deque(maxlen=self._n)
        if lang is None:
            lang = self._lang[key] = deque(maxlen=self._n)
        user.append(now)
        lang.append(now)
        self._bare.append(now)
        self._last = self._last_of_key[key] = function
        if not self._prewarm:
            return None
        after_s = self._iat_p_s(user, now)
        return Prewarm(after_s) if after_s > 0 else None  # one arrival, or several at once, have no rate yet

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        if now > layer.idle_since_s or (layer.layer < USER and not self._layers):
            return _DROP
        ttl_s = self._ttl_s(layer, now)
        return Keep(ttl_s) if ttl_s > ROUNDING_S else _DROP

    def priority(self, layer: LayerView, now: float) -> float:
        """Least recently used first, whichever layer it is (published code)."""
        return layer.last_used_s

    def _ttl_s(self, layer: LayerView, now: float) -> float:
        beta_s = break_even_s(self._alpha, layer)
        window = self._window(layer)
        if not window or now - window[-1] > _WINDOW_S:
            return beta_s
        iat_p_s = self._iat_p_s(window, now)
        return self._floor_s if iat_p_s <= self._floor_s else min(iat_p_s, beta_s)

    def _window(self, layer: LayerView) -> deque[float] | None:
        function = layer.function
        if ASLEEP < layer.layer < USER:
            if self._sharing:
                return self._lang.get(layer.key) if layer.layer is LANG else self._bare
            function = self._last_of_key.get(layer.key) if layer.layer is LANG else self._last
        return self._user.get(function) if function is not None else None

    def _iat_p_s(self, window: deque[float], now: float) -> float:
        while window[0] < now - _WINDOW_S:
            window.popleft()
        return self._quantile * (now - window[0]) / len(window)
