"""The interface of a keep-alive policy, wide enough for layered, pre-warming and cache-like rules.

One policy object serves one server. The core calls `on_arrival` for every request, `on_idle` whenever a layer
becomes idle and again each time a window it gave has run out, and `priority` when memory is short. Seconds, bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.facts.sandbox import Layer

ROUNDING_S = 1e-6  # a window that ends this soon has ended: sums of floats on a clock of weeks are no finer


class LayerView(NamedTuple):
    """What a policy may know of one idle layer. A tuple: one is made for each question, and for each idle layer when
    memory is short."""

    layer: Layer
    function: str | None  # None for layers below User
    key: LangKey
    startup_s: float  # what raising it again costs, running mean of measurements; 0.0 while unknown
    resident_bytes: int  # what keeping it costs, measured; 0 while unknown
    idle_since_s: float
    last_used_s: float
    uses: int  # requests served by this layer since it was raised
    others: int = 0  # further living layers of the same kind: instances of the function, or of the key; 0 for Bare


@dataclass(frozen=True, slots=True)
class Keep:
    """Hold the layer for `for_s` more seconds, then ask again; None: no time limit, only memory pressure."""

    for_s: float | None


@dataclass(frozen=True, slots=True)
class Drop:
    """Peel the layer now. With `prewarm_after_s`, raise it again that much later, before it is asked for."""

    prewarm_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Prewarm:
    """`after_s` from now, see to it that the function has `instances` that are idle, busy or rising, one of them idle.

    A later answer for the same function takes the place of this one.
    """

    after_s: float
    instances: int = 1


KeepaliveDecision = Keep | Drop


class KeepalivePolicy(Protocol):
    """The rule of a server, or of one function that asked for its own.

    A policy that learns nothing from arrivals may set `watches_arrivals = False`: the core then spares the call. One
    that wants to know more sets `watches_runs = True` (see `WatchesRuns`) or `watches_ends = True` (`WatchesEnds`).

    `worth_holds` (0 if it is not set) says for how long an answer of `priority` about an idle instance may be used
    again, as a share of the time that it has been idle: `math.inf` for as long as it idles, 0 not at all. Ranking some
    hundred layers for each start that finds memory full is what a policy costs then.
    """

    name: str

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        """A request for `function` came."""

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        """The layer has nothing to do (first call: `now == layer.idle_since_s`), or its last window ran out.

        `uses` is 0 and the layer above has never run if it was raised ahead of its use.
        """

    def priority(self, layer: LayerView, now: float) -> float:
        """Worth per byte; the layer with the lowest value is freed first when memory is short."""


class WatchesRuns(Protocol):
    """The further method of a policy with `watches_runs = True`."""

    def on_run(self, spec: FunctionSpec, size: int, run_s: float, now: float) -> None:
        """A batch of `size` ran for `run_s` inside an instance of `spec` and ended at `now`, before it is idle."""


class WatchesEnds(Protocol):
    """The further method of a policy with `watches_ends = True`."""

    def on_gone(self, layer: LayerView, evicted: bool, now: float) -> None:
        """An idle layer was told to end: for want of memory if `evicted`, else because its window was over."""
