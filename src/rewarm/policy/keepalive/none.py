"""`none`: nothing idle is kept in memory; every request after a pause has to wait for a start."""

from __future__ import annotations

import math

from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import ON_DISK, Drop, KeepaliveDecision, LayerView, Prewarm, on_disk
from rewarm.policy.keepalive.checks import switch
from rewarm.policy.keepalive.fixed import worth_per_byte

_DROP = Drop()


class NoKeepalive:
    """Drops every layer at once, but for what is on disk and takes no memory; `asleep` off drops that too.

    Raises BadDefinition.
    """

    __slots__ = ("_asleep",)
    name = "none"
    worth_holds = math.inf
    watches_arrivals = False

    def __init__(self, asleep: bool | str = True) -> None:
        self._asleep = switch("asleep", asleep)

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        return ON_DISK if self._asleep and on_disk(layer) else _DROP

    def priority(self, layer: LayerView, now: float) -> float:
        return worth_per_byte(layer)
