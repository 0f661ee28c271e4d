"""What idling costs and what it was good for: idle byte-seconds by layer, ended by use or not, and kinds of starts.

Fed with every effect and every event in the order in which they happen, by the live executor and the simulator alike.

An instance is idle from READY or the end of a run to its next run. A zygote is idle while none of its instances is
busy, a Bare and a runtime that does not fork until a sandbox takes them. What has been idle is **used** once the layer
is: a Run for an instance, a Fork for a Bare or a Lang layer. It is **wasted** if the layer ends first, or nobody looks
any longer (`close`). What is on disk holds no memory and does not count.
"""

from __future__ import annotations

from rewarm.core.state import INF
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.facts.messages import Effect, Event
from rewarm.facts.sandbox import Layer, SandboxState, StartKind
from rewarm.policy.keepalive.base import BARE, LANG, USER

_WARM = StartKind.WARM  # what most requests find


class _Layer:
    """One that lives: what it holds, since when it is idle (INF: it is not), and what its idling has cost so far."""

    __slots__ = ("idle_byte_s", "idle_since_s", "lang", "layer", "running", "size")

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.size = 0  # resident bytes
        self.idle_since_s = INF
        self.idle_byte_s = 0.0
        self.lang: _Layer | None = None  # the zygote that an instance was forked from
        self.running = 0  # of a zygote: instances that are busy

    def rest(self, now: float) -> None:
        self.idle_since_s = now

    def stir(self, now: float) -> None:
        if self.idle_since_s < now:
            self.idle_byte_s += self.size * (now - self.idle_since_s)
        self.idle_since_s = INF


class Meter:
    """The sums of one node since it was made."""

    def __init__(self) -> None:
        self.used_byte_s = dict.fromkeys(Layer, 0.0)
        self.wasted_byte_s = dict.fromkeys(Layer, 0.0)
        self.starts = dict.fromkeys(StartKind, 0)  # requests, by what they found
        self.evictions = 0  # layers that ended because memory was short
        self._layers: dict[int | LangKey, _Layer] = {}
        self._busy: set[int] = set()

    def event(self, event: Event, now: float) -> None:
        """Something happened; before or after the core is told, but always in order."""
        if isinstance(event, m.RunDone):
            self._run_done(event, now)
        elif isinstance(event, m.Raised):
            self._raised(event, now)
        elif isinstance(event, m.LangRaised):
            self._lang_raised(event, now)
        elif isinstance(event, m.Exited):
            self._gone(event.sandbox_id, now)
        elif isinstance(event, m.LangExited):
            self._gone(event.key, now)
        elif isinstance(event, m.Measured):
            self.resident(event.node, event.resident_bytes, now)

    def effect(self, effect: Effect, now: float) -> None:
        """The core decided this."""
        if isinstance(effect, m.Run):
            self._run(effect, now)
        elif isinstance(effect, m.Fork):
            self._fork(effect, now)
        elif isinstance(effect, m.Restore):
            self._restore(effect, now)
        elif isinstance(effect, m.Destroy):
            self._destroy(effect, now)
        elif isinstance(effect, m.DropLang):
            self._drop_lang(effect, now)

    def resident(self, node: int | LangKey, resident_bytes: int, now: float) -> None:
        """A layer holds so much from here on, as measured or as the core's ledger expects. Unknown ones are ignored."""
        layer = self._layers.get(node)
        if layer is not None:
            if layer.idle_since_s < now:
                layer.stir(now)
                layer.rest(now)
            layer.size = resident_bytes

    @property
    def living(self) -> frozenset[int | LangKey]:
        """The layers that are there."""
        return frozenset(self._layers)

    def pending_byte_s(self, now: float) -> dict[Layer, float]:
        """What has been idle up to now, of layers whose idling has not ended yet: neither used nor wasted so far."""
        sums = dict.fromkeys(Layer, 0.0)
        for layer in self._layers.values():
            idle_s = now - layer.idle_since_s if layer.idle_since_s < now else 0.0
            sums[layer.layer] += layer.idle_byte_s + layer.size * idle_s
        return sums

    def close(self, now: float) -> None:
        """The end of observation: whatever is idle now was so for nothing."""
        for node in list(self._layers):
            self._gone(node, now)

    # ------------------------------------------------------------ runs

    def _run(self, effect: m.Run, now: float) -> None:
        sandbox_id = effect.sandbox_id
        warm = len(effect.requests)
        for request in effect.requests:
            if request.start is not _WARM:
                self.starts[request.start] += 1
                warm -= 1
        self.starts[_WARM] += warm
        layer = self._layers.get(sandbox_id)
        if layer is None:
            return
        self._busy.add(sandbox_id)
        self._use(layer, now)
        lang = layer.lang
        if lang is not None:
            lang.running += 1
            if lang.running == 1:
                lang.stir(now)

    def _run_done(self, event: m.RunDone, now: float) -> None:
        sandbox_id = event.sandbox_id
        if sandbox_id in self._busy:
            layer = self._layers[sandbox_id]
            self._stops(sandbox_id, layer, now)
            layer.rest(now)

    def _stops(self, sandbox_id: int, layer: _Layer, now: float) -> None:
        self._busy.discard(sandbox_id)
        lang = layer.lang
        if lang is not None:
            lang.running -= 1
            if not lang.running:
                lang.rest(now)

    # ------------------------------------------------------------ layers come and go

    def _raised(self, event: m.Raised, now: float) -> None:
        if event.state is SandboxState.BARE:
            self._layers[event.sandbox_id] = bare = _Layer(BARE)
            bare.rest(now)
        elif event.state is SandboxState.READY and event.sandbox_id in self._layers:
            self._layers[event.sandbox_id].rest(now)

    def _lang_raised(self, event: m.LangRaised, now: float) -> None:
        if event.key.vm_bytes:
            return  # it is on disk
        self._layers[event.key] = lang = _Layer(LANG)
        lang.rest(now)

    def _fork(self, effect: m.Fork, now: float) -> None:
        lang = self._layers.get(effect.key)
        bare = self._layers.get(effect.sandbox_id)
        if bare is not None:
            self._use(bare, now)
            bare.layer = USER
            bare.lang = lang if effect.key.forks else None
        if lang is not None:
            resting = lang.idle_since_s < INF
            self._use(lang, now)
            if not effect.key.forks:
                del self._layers[effect.key]
            elif resting:
                lang.rest(now)

    def _restore(self, effect: m.Restore, now: float) -> None:
        self._layers[effect.sandbox_id] = _Layer(USER)  # it has been nobody's Bare, and idles once it is READY

    def _use(self, layer: _Layer, now: float) -> None:
        layer.stir(now)
        self.used_byte_s[layer.layer] += layer.idle_byte_s
        layer.idle_byte_s = 0.0

    def _destroy(self, effect: m.Destroy, now: float) -> None:
        self.evictions += effect.reason == "memory"
        self._gone(effect.sandbox_id, now)

    def _drop_lang(self, effect: m.DropLang, now: float) -> None:
        self.evictions += effect.reason == "memory"
        self._gone(effect.key, now)

    def _gone(self, node: int | LangKey, now: float) -> None:
        layer = self._layers.pop(node, None)
        if layer is None:
            return
        if isinstance(node, int) and node in self._busy:
            self._stops(node, layer, now)
        layer.stir(now)
        self.wasted_byte_s[layer.layer] += layer.idle_byte_s
