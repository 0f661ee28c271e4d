"""The interface of a keep-alive policy, wide enough for layered, pre-warming and cache-like rules.

One policy object serves one server. The core calls `on_arrival` for every request, `on_idle` whenever a layer
becomes idle and again each time a window it gave has run out, and `priority` when memory is short. Seconds, bytes.
"""

from __future__ import annotations

from typing import Final, Protocol

from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.facts.sandbox import Layer
from rewarm.facts.value import Value

#: Compiled code has these at hand; looking up a member of an enumeration goes through interpreted code.
ASLEEP: Final = Layer.ASLEEP
BARE: Final = Layer.BARE
LANG: Final = Layer.LANG
USER: Final = Layer.USER

ROUNDING_S = 1e-6  # a window that ends this soon has ended: sums of floats on a clock of weeks are no finer


class LayerView(Value):
    """What a policy may know of one idle layer.

    `function`: None for Bare and Lang layers. `startup_s`: what raising it again costs, a running mean of measurements;
    0.0 while unknown. `resident_bytes`: what keeping it costs, measured, of what is `on_disk` in bytes of memory; 0
    while unknown. `uses`: requests served since it was raised, or instances forked or restored from it. `others`:
    further living layers of the same kind, instances of the function or of the key; 0 for Bare.
    """

    __match_args__ = (
        "layer", "function", "key", "startup_s", "resident_bytes", "idle_since_s", "last_used_s", "uses", "others",
    )  # fmt: skip

    def __init__(
        self, layer: Layer, function: str | None, key: LangKey, startup_s: float, resident_bytes: int,
        idle_since_s: float, last_used_s: float, uses: int, others: int = 0,
    ) -> None:  # fmt: skip
        self.layer: Final = layer
        self.function: Final = function
        self.key: Final = key
        self.startup_s: Final = startup_s
        self.resident_bytes: Final = resident_bytes
        self.idle_since_s: Final = idle_since_s
        self.last_used_s: Final = last_used_s
        self.uses: Final = uses
        self.others: Final = others


class Keep(Value):
    """Hold the layer for `for_s` more seconds, then ask again; None: no time limit, only memory pressure."""

    __match_args__ = ("for_s",)

    def __init__(self, for_s: float | None) -> None:
        self.for_s: Final = for_s


class Drop(Value):
    """Peel the layer now. With `prewarm_after_s`, raise it again that much later, before it is asked for."""

    __match_args__ = ("prewarm_after_s",)

    def __init__(self, prewarm_after_s: float | None = None) -> None:
        self.prewarm_after_s: Final = prewarm_after_s


class Prewarm(Value):
    """`after_s` from now, see to it that the function has `instances` that are idle, busy or rising, one of them idle.

    A later answer for the same function takes the place of this one.
    """

    __match_args__ = ("after_s", "instances")

    def __init__(self, after_s: float, instances: int = 1) -> None:
        self.after_s: Final = after_s
        self.instances: Final = instances


KeepaliveDecision = Keep | Drop

_DROP = Drop()
ON_DISK = Keep(None)  # the answer of a rule that says nothing of sleep: disk is cheap, and has a budget of its own


def on_disk(layer: LayerView) -> bool:
    """It takes disk and no memory: a snapshot of an instance, or the Lang layer of a micro-VM.

    `resident_bytes` is then what memory would cost as much (`facts.prices`), and `startup_s` of an Asleep layer what a
    start without it takes longer. A rule that weighs seconds against bytes can treat it as one more layer.
    """
    return layer.layer is ASLEEP or (layer.layer is LANG and layer.key.vm_bytes > 0)


def below_user(layer: LayerView) -> KeepaliveDecision:
    """What a rule that knows no layers says of those below User: they go with the instance, but for what is on disk."""
    return ON_DISK if on_disk(layer) else _DROP


class KeepalivePolicy(Protocol):
    """The rule of a server, or of one function that asked for its own.

    A policy that learns nothing from arrivals may set `watches_arrivals = False`: the core then spares the call. One
    that wants to know more sets `watches_runs = True` (see `WatchesRuns`), `watches_ends = True` (`WatchesEnds`) or
    `watches_deploys = True` (`WatchesDeploys`).

    `worth_holds` (0 if it is not set) says for how long an answer of `priority` about an idle instance may be used
    again, as a share of the time that it has been idle: `math.inf` for as long as it idles, 0 not at all. Ranking some
    hundred layers for each start that finds memory full is what a policy costs then.
    """

    name: str

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        """A request for `function` came."""

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        """The layer has nothing to do (first call: `now == layer.idle_since_s`), or its last window ran out.

        `uses` is 0 and the layer above has never run if it was raised ahead of its use. A Lang, Bare or Asleep layer
        that is not there yet is asked about in the same way, before it is made: `now == layer.idle_since_s`, `uses` 0.
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


class WatchesDeploys(Protocol):
    """The further method of a policy with `watches_deploys = True`."""

    def on_deployed(self, instance: LayerView, now: float) -> Prewarm | None:
        """A function that was not there is deployed: `instance` is what one of it is expected to take and to hold."""
