"""Lang layers: one started runtime per key, from which its functions' instances come.

Of a key that forks it is a zygote, idle while no sandbox of the key is left. Of a key that is consumed the one runtime
that waits becomes an instance; whoever comes next finds a fresh one if the policy thought that worth its memory. Of a
micro-VM it is a snapshot on disk of a guest without user code, which is to its instances what a zygote is to forks; it
is on the disk account and holds no memory.
"""

from __future__ import annotations

from rewarm.core.ledger import Ledger
from rewarm.core.state import Ground, KnownOfKey, LangLayer, LayerState, Sandbox, start_timeout_s
from rewarm.errors import RewarmError
from rewarm.facts.function import LangKey
from rewarm.facts.messages import DropLang, Effect, Fork, RaiseLang
from rewarm.facts.prices import as_memory_bytes
from rewarm.facts.sandbox import SandboxState, StartKind
from rewarm.policy.keepalive.base import LANG, Keep, LayerView

BYTES_PRIOR = 24 << 20  # until a runtime of this key has been measured


class Langs:
    """Every Lang layer of one node."""

    def __init__(self, ground: Ground) -> None:
        self.layers: dict[LangKey, LangLayer] = {}
        self.known: dict[LangKey, KnownOfKey] = {}  # whether it has a layer now or not
        self._ground = ground

    def of(self, key: LangKey) -> KnownOfKey:
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = KnownOfKey(BYTES_PRIOR)
        return found

    # ------------------------------------------------------------ what a start finds and needs

    def found(self, key: LangKey) -> StartKind | None:
        """LANG if it is alive, BARE if it is on its way or an ancestor is alive."""
        lang = self.layers.get(key)
        if lang is not None and lang.state is LayerState.ALIVE:
            return StartKind.LANG
        return StartKind.BARE if lang is not None or self._ancestor(key) is not None else None

    def need_bytes(self, key: LangKey) -> int:
        """What the Lang layer is expected to add to the memory ledger for one more sandbox of `key`."""
        if key.vm_bytes:
            return 0
        lang = self.layers.get(key)
        there = lang is not None and lang.state is not LayerState.DYING
        if key.forks:
            return 0 if there else self.bytes_of(key)
        return -self._ground.ledger.of(key) if there else 0  # what a spare holds is part of the instance then

    def bytes_of(self, key: LangKey) -> int:
        """What a runtime of `key` holds, or is expected to."""
        return int(self.of(key).bytes.value)

    def account(self, key: LangKey) -> Ledger:
        """Where a Lang layer of `key` is entered."""
        return self._ground.disk if key.vm_bytes else self._ground.ledger

    def _ancestor(self, key: LangKey) -> LangKey | None:
        """The nearest living ancestor: the largest proper subset of the key that has a zygote."""
        alive = [k for k, lang in self.layers.items() if lang.state is LayerState.ALIVE and k != key and k.covers(key)]
        return max(alive, key=lambda k: (len(k.packages), str(k)), default=None)

    # ------------------------------------------------------------ sandboxes come and go

    def hold(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """A sandbox of this key begins: its runtime is raised, or kept, for it."""
        self.of(sandbox.key).holders += 1
        sandbox.holds_lang = True
        lang = self._layer_for(sandbox.key, now, out)
        if not sandbox.key.forks and lang.state is not LayerState.DYING:
            self._ground.ledger.enter(sandbox.key, 0)  # the estimate of the sandbox includes it

    def fork(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """The sandbox is BARE: fork it now, or as soon as its runtime is alive."""
        lang = self._layer_for(sandbox.key, now, out)
        if lang.state is LayerState.ALIVE:
            if sandbox.found is StartKind.LANG:
                self.of(sandbox.key).reuses += 1
            self._give(lang, sandbox, now, out)
        else:
            lang.waiting.append(sandbox)

    def let_go(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """The sandbox is gone."""
        if not sandbox.holds_lang:
            return
        self._released(sandbox)
        lang = self.layers.get(sandbox.key)
        if lang is not None and lang.state is LayerState.ALIVE and not self.of(sandbox.key).holders:
            self._idle(lang, now, out)

    def _released(self, sandbox: Sandbox) -> None:
        sandbox.holds_lang = False
        self.of(sandbox.key).holders -= 1

    def _give(self, lang: LangLayer, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        key = lang.key
        out.append(Fork(sandbox.id, key, sandbox.revision.spec))
        known = self.of(key)
        known.uses += 1
        lang.uses += 1
        lang.last_used_s = now
        if not key.forks:
            del self.layers[key]
            self._ground.ledger.leave(key)
            self._released(sandbox)
            if not known.holders:
                self.consider(key, now, out)
            elif not self._ground.closing:  # the next one for those who wait
                self._layer_for(key, now, out).waiting = lang.waiting

    # ------------------------------------------------------------ rising

    def _layer_for(self, key: LangKey, now: float, out: list[Effect]) -> LangLayer:
        """The layer of `key`, being raised if it was not there (single flight: at most one per key)."""
        lang = self.layers.get(key)
        return lang if lang is not None else self._raise(key, self.bytes_of(key) if key.forks else 0, now, out)

    def _raise(self, key: LangKey, resident_bytes: int, now: float, out: list[Effect]) -> LangLayer:
        out.append(RaiseLang(key, self._ancestor(key)))
        lang = self.layers[key] = LangLayer(key, now)
        self.account(key).enter(key, resident_bytes)
        self._ground.timers.arm(lang, now + start_timeout_s(key))
        return lang

    def consider(self, key: LangKey, now: float, out: list[Effect]) -> None:
        """Of a key that is consumed: ask the policy whether a spare runtime is worth raising, if there is room."""
        ground, size = self._ground, self.bytes_of(key)
        if key.forks or key in self.layers or ground.draining or ground.ledger.short_bytes(size):
            return
        view = LayerView(LANG, None, key, self.seconds_of(key), size, now, now, 0)
        if isinstance(ground.keepalive.on_idle(view, now), Keep):
            self._raise(key, size, now, out)

    def raised(self, key: LangKey, seconds: float, now: float, out: list[Effect]) -> None:
        lang = self.layers.get(key)
        if lang is None or lang.state is not LayerState.RISING:
            return
        lang.state = LayerState.ALIVE
        known = self.of(key)
        known.seconds.add(seconds)
        while lang.waiting and self.layers.get(key) is lang:  # one that is consumed serves the first alone
            sandbox = lang.waiting.pop(0)
            if sandbox.state is SandboxState.BARE:
                self._give(lang, sandbox, now, out)
        if not known.holders and self.layers.get(key) is lang:
            self._idle(lang, now, out)

    def on_disk(self, key: LangKey, disk_bytes: int, now: float, out: list[Effect]) -> None:
        """That of a micro-VM lies there, though it was not raised: made by the way, or by an earlier server."""
        lang = self.layers.get(key)
        if lang is not None:
            self.measured(key, disk_bytes)
            return
        lang = self.layers[key] = LangLayer(key, now)
        lang.state = LayerState.ALIVE
        self.measured(key, disk_bytes)
        if not self.of(key).holders:
            self._idle(lang, now, out)

    def exited(self, key: LangKey, error: RewarmError | None, now: float, out: list[Effect]) -> list[Sandbox]:
        """The runtime is gone. Returns the sandboxes that were waiting for it and can not rise because of `error`.

        Instances that were forked before live on: they are not its children in the kernel's eyes.
        """
        lang = self.layers.pop(key, None)
        if lang is None:
            return []
        self.account(key).leave(key)
        waiting = [s for s in lang.waiting if s.state is SandboxState.BARE]
        if error is not None and lang.state is LayerState.RISING:
            return waiting
        if waiting and not self._ground.closing:  # somebody came while it was on its way out
            self._layer_for(key, now, out).waiting = waiting
        return []

    # ------------------------------------------------------------ idling and ending

    def idle(self, lang: LangLayer) -> bool:
        return lang.state is LayerState.ALIVE and not self.of(lang.key).holders

    def _idle(self, lang: LangLayer, now: float, out: list[Effect]) -> None:
        lang.idle_since_s = now
        if not lang.key.forks and not self._ground.ledger.of(lang.key):  # the sandbox it was meant for is gone
            self._ground.ledger.enter(lang.key, self.bytes_of(lang.key))
        self._ask(lang, now, out)

    def wake(self, lang: LangLayer, now: float, out: list[Effect]) -> None:
        """A timer of this Lang layer rang."""
        if self.layers.get(lang.key) is not lang:
            return
        if lang.state is LayerState.RISING:
            if self.of(lang.key).holders:  # their own start timeouts decide
                self._ground.timers.arm(lang, now + start_timeout_s(lang.key))
            else:
                self._end(lang, "start timeout", out)
        elif self.idle(lang):
            if now < lang.expires_s:
                self._ground.timers.arm(lang, lang.expires_s)
            else:
                self._ask(lang, now, out)

    def _ask(self, lang: LangLayer, now: float, out: list[Effect]) -> None:
        if lang.key.vm_bytes and self._ground.draining:
            return  # what is on disk is for the next server
        decision = self._ground.keepalive.on_idle(self.view(lang), now)
        if isinstance(decision, Keep):
            self._ground.keep(lang, decision.for_s, now)
        else:
            self.drop(lang, "keepalive", now, out)

    def drop_stuck(self, key: LangKey, now: float, out: list[Effect]) -> None:
        """A start timed out: if its runtime is still on its way up, that is what hangs."""
        lang = self.layers.get(key)
        if lang is not None and lang.state is LayerState.RISING and now - lang.created_s >= start_timeout_s(key):
            self._end(lang, "start timeout", out)

    def drop(self, lang: LangLayer, reason: str, now: float, out: list[Effect]) -> None:
        """End an idle one: its window is over ("keepalive"), or memory or disk is short ("memory", "disk")."""
        if self._ground.on_gone is not None:
            self._ground.on_gone(self.view(lang), reason == "memory", now)
        self._end(lang, reason, out)

    def _end(self, lang: LangLayer, reason: str, out: list[Effect]) -> None:
        lang.state = LayerState.DYING
        self.account(lang.key).told_to_end(lang.key)
        out.append(DropLang(lang.key, reason))

    # ------------------------------------------------------------ figures

    def measured(self, key: LangKey, resident_bytes: int) -> None:
        """Of a micro-VM: bytes on disk."""
        if key in self.layers:
            self.account(key).enter(key, resident_bytes)
            self.of(key).bytes.add(resident_bytes)

    def seconds_of(self, key: LangKey) -> float:
        """What raising a runtime of `key` costs; 0.0 while unknown."""
        return self.of(key).seconds.value

    def view(self, lang: LangLayer) -> LayerView:
        held = self.account(lang.key).of(lang.key)
        return LayerView(
            LANG, None, lang.key, self.seconds_of(lang.key), as_memory_bytes(held) if lang.key.vm_bytes else held,
            lang.idle_since_s, lang.last_used_s, lang.uses,
        )  # fmt: skip
