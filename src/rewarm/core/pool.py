"""Sandboxes and Lang layers: how they rise, idle, are peeled and end, on one ledger.

The pool changes records and appends effects; it never touches a queue. What a queue should know (a sandbox became
ready, one died) is returned to the node that called.
"""

from __future__ import annotations

from collections import Counter

from rewarm.core.ledger import Ledger
from rewarm.core.state import INF, RISING, FunctionState, LangLayer, LangState, Mean, Sandbox
from rewarm.core.timers import Timers
from rewarm.errors import RewarmError
from rewarm.facts.function import LangKey
from rewarm.facts.messages import Destroy, DropLang, Effect, Fork, LoadUser, RaiseBare, RaiseLang
from rewarm.facts.sandbox import Layer, SandboxState, StartKind
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, KeepalivePolicy, LayerView

START_TIMEOUT_S_MIN = 60.0  # importing a large framework from a cold disk is slow, but not slower than this
_HOLD_S = 1.0  # how soon to ask again about an instance for which a batch gathers
LANG_BYTES_PRIOR = 24 << 20  # until a zygote of this key has been measured

State = SandboxState


class Pool:
    """Every sandbox and zygote of one node."""

    def __init__(self, ledger: Ledger, timers: Timers, keepalive: KeepalivePolicy) -> None:
        self.ledger = ledger
        self.timers = timers
        self.keepalive = keepalive  # rules the layers that functions share
        self.sandboxes: dict[int, Sandbox] = {}
        self.langs: dict[LangKey, LangLayer] = {}
        self.lang_s: dict[LangKey, Mean] = {}  # measured seconds to raise a zygote of this key
        self.lang_bytes: dict[LangKey, Mean] = {}
        self.children: Counter[LangKey] = Counter()  # sandboxes of a key that are not gone
        self.dying: dict[int | LangKey, int] = {}  # bytes that are about to come back
        self.closing = False  # nothing is raised any more
        self.evictions = 0
        self._next_id = 1

    # ------------------------------------------------------------ rising

    def need_bytes(self, fn: FunctionState) -> int:
        """What one more instance of `fn` is expected to add to the ledger."""
        need = int(fn.resident.value)
        if fn.key not in self.langs:
            need += int(self._lang_bytes(fn.key).value)
        return need

    def start(self, fn: FunctionState, now: float, out: list[Effect]) -> Sandbox | None:
        """Begin one instance, or None if even evicting everything idle leaves no room for it."""
        if not self.make_room(self.need_bytes(fn), now, out, sparing=fn):
            return None
        sandbox = Sandbox(self._next_id, fn, self._found(fn.key), now)
        self._next_id += 1
        self.sandboxes[sandbox.id] = sandbox
        fn.sandboxes[sandbox.id] = sandbox
        fn.rising += 1
        self.ledger.enter(sandbox.id, int(fn.resident.value))
        self.children[fn.key] += 1
        self._lang_for(fn.key, now, out)
        self.timers.arm(sandbox, now + max(START_TIMEOUT_S_MIN, fn.revision.spec.timeout_s))
        out.append(RaiseBare(sandbox.id, fn.revision.spec))
        return sandbox

    def raised(self, sandbox: Sandbox, state: SandboxState, now: float, out: list[Effect]) -> bool:
        """The driver reports progress. True once the sandbox is READY."""
        if sandbox.state is State.DYING:
            return False
        sandbox.move(state)
        fn = sandbox.function
        if state is State.BARE:
            lang = self._lang_for(sandbox.key, now, out)
            if lang.state is LangState.ALIVE:
                out.append(Fork(sandbox.id, sandbox.key))
            else:
                lang.waiting.append(sandbox)
        elif state is State.LANG:
            used = self.langs.get(sandbox.key)
            if used is not None:
                used.uses += 1
                used.last_used_s = now
            out.append(LoadUser(sandbox.id, sandbox.revision))
        elif state is State.READY:
            sandbox.ready_at_s = now
            fn.rising -= 1
            fn.start_s.add(now - sandbox.created_s)
            fn.last_error = None
            return True
        return False

    def lang_raised(self, key: LangKey, seconds: float, now: float, out: list[Effect]) -> None:
        lang = self.langs.get(key)
        if lang is None or lang.state is not LangState.RISING:
            return
        lang.state = LangState.ALIVE
        self.lang_s.setdefault(key, Mean(seconds)).add(seconds)
        waiting, lang.waiting = lang.waiting, []
        for sandbox in waiting:
            if sandbox.state is State.BARE:
                out.append(Fork(sandbox.id, key))
        if not self.children[key]:
            self._lang_idle(lang, now, out)

    def lang_exited(self, key: LangKey, error: RewarmError | None, now: float, out: list[Effect]) -> list[Sandbox]:
        """The zygote is gone. Returns the sandboxes that were waiting for it and can not rise because of `error`.

        Instances that were forked before live on: they are not its children in the kernel's eyes.
        """
        lang = self.langs.pop(key, None)
        if lang is None:
            return []
        self.ledger.leave(key)
        self.dying.pop(key, None)
        waiting = [s for s in lang.waiting if s.state is State.BARE]
        if error is not None and lang.state is LangState.RISING:
            return waiting
        if waiting and not self.closing:  # somebody came while it was on its way out
            self._lang_for(key, now, out).waiting = waiting
        return []

    def _lang_for(self, key: LangKey, now: float, out: list[Effect]) -> LangLayer:
        """The layer of `key`, being raised if it was not there (single flight: at most one per key)."""
        lang = self.langs.get(key)
        if lang is None:
            out.append(RaiseLang(key, self._ancestor(key)))
            lang = self.langs[key] = LangLayer(key, now)
            self.ledger.enter(key, int(self._lang_bytes(key).value))
            self.timers.arm(lang, now + START_TIMEOUT_S_MIN)
        return lang

    def _ancestor(self, key: LangKey) -> LangKey | None:
        """The nearest living ancestor: the largest proper subset of the key that has a zygote."""
        alive = [k for k, lang in self.langs.items() if lang.state is LangState.ALIVE and k != key and k.covers(key)]
        return max(alive, key=lambda k: (len(k.packages), str(k)), default=None)

    def _found(self, key: LangKey) -> StartKind:
        lang = self.langs.get(key)
        if lang is not None and lang.state is LangState.ALIVE:
            return StartKind.LANG
        return StartKind.BARE if lang is not None or self._ancestor(key) is not None else StartKind.COLD

    def _lang_bytes(self, key: LangKey) -> Mean:
        return self.lang_bytes.setdefault(key, Mean(LANG_BYTES_PRIOR))

    # ------------------------------------------------------------ ending

    def destroy(self, sandbox: Sandbox, reason: str, out: list[Effect]) -> None:
        """Tell the driver to end it. Its bytes stay on the ledger until it is gone."""
        if sandbox.state in (State.DYING, State.GONE):
            return
        fn = sandbox.function
        if sandbox.state in RISING:
            fn.rising -= 1
        elif sandbox.state is State.READY and sandbox in fn.idle:
            fn.idle.remove(sandbox)
        sandbox.move(State.DYING)
        self.dying[sandbox.id] = self.ledger.of(sandbox.id)
        out.append(Destroy(sandbox.id, reason))

    def exited(self, sandbox: Sandbox, now: float, out: list[Effect]) -> SandboxState:
        """The driver reports the end. Returns the state it died in."""
        fn, died_in = sandbox.function, sandbox.state
        if died_in in RISING:
            fn.rising -= 1
        elif died_in is State.READY and sandbox in fn.idle:
            fn.idle.remove(sandbox)
        sandbox.move(State.GONE)
        del self.sandboxes[sandbox.id]
        del fn.sandboxes[sandbox.id]
        self.ledger.leave(sandbox.id)
        self.dying.pop(sandbox.id, None)
        self.children[sandbox.key] -= 1
        lang = self.langs.get(sandbox.key)
        if lang is not None and lang.state is LangState.ALIVE and not self.children[sandbox.key]:
            self._lang_idle(lang, now, out)
        return died_in

    # ------------------------------------------------------------ idling

    def became_idle(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """Ask the function's policy how long this instance is worth its memory."""
        sandbox.idle_since_s = sandbox.last_used_s = now
        self._apply(sandbox, sandbox.function.keepalive.on_idle(self.user_view(sandbox), now), now, out)

    def window_over(self, sandbox: Sandbox, now: float, out: list[Effect]) -> None:
        """Its time is up: the policy may give more, or it is peeled."""
        self._apply(sandbox, sandbox.function.keepalive.on_idle(self.user_view(sandbox), now), now, out)

    def _apply(self, sandbox: Sandbox, decision: KeepaliveDecision, now: float, out: list[Effect]) -> None:
        if isinstance(decision, Keep):
            sandbox.expires_s = INF if decision.for_s is None else now + decision.for_s
            self.timers.arm(sandbox, sandbox.expires_s)
            return
        if sandbox.function.queue and len(sandbox.function.idle) == 1:
            sandbox.expires_s = now + _HOLD_S  # a batch gathers for it: not idle, whatever the policy thinks
            self.timers.arm(sandbox, sandbox.expires_s)
            return
        if decision.prewarm_after_s is not None:
            self.prewarm(sandbox.function, now + decision.prewarm_after_s)
        self.destroy(sandbox, "keepalive", out)

    def prewarm(self, fn: FunctionState, at_s: float) -> None:
        fn.prewarm_at_s = min(fn.prewarm_at_s, at_s)
        self.timers.arm(fn, at_s)

    def wake_lang(self, lang: LangLayer, now: float, out: list[Effect]) -> None:
        """A timer of this Lang layer rang."""
        if self.langs.get(lang.key) is lang and lang.state is LangState.RISING:
            if self.children[lang.key]:  # their own start timeouts decide
                self.timers.arm(lang, now + START_TIMEOUT_S_MIN)
            else:
                self._drop_lang(lang, "start timeout", out)
            return
        if self.langs.get(lang.key) is not lang or self.children[lang.key] or lang.state is not LangState.ALIVE:
            return
        if now < lang.expires_s:
            self.timers.arm(lang, lang.expires_s)
        else:
            self._lang_apply(lang, self.keepalive.on_idle(self.lang_view(lang), now), now, out)

    def _lang_idle(self, lang: LangLayer, now: float, out: list[Effect]) -> None:
        lang.idle_since_s = now
        self._lang_apply(lang, self.keepalive.on_idle(self.lang_view(lang), now), now, out)

    def _lang_apply(self, lang: LangLayer, decision: Keep | Drop, now: float, out: list[Effect]) -> None:
        if isinstance(decision, Keep):
            lang.expires_s = INF if decision.for_s is None else now + decision.for_s
            self.timers.arm(lang, lang.expires_s)
        else:
            self._drop_lang(lang, "keepalive", out)

    def drop_stuck(self, key: LangKey, now: float, out: list[Effect]) -> None:
        """A start timed out: if its zygote is still on its way up, that is what hangs."""
        lang = self.langs.get(key)
        if lang is not None and lang.state is LangState.RISING and now - lang.created_s >= START_TIMEOUT_S_MIN:
            self._drop_lang(lang, "start timeout", out)

    def _drop_lang(self, lang: LangLayer, reason: str, out: list[Effect]) -> None:
        lang.state = LangState.DYING
        self.dying[lang.key] = self.ledger.of(lang.key)
        out.append(DropLang(lang.key, reason))

    # ------------------------------------------------------------ memory

    def make_room(self, need_bytes: int, now: float, out: list[Effect], sparing: FunctionState | None = None) -> bool:
        """Free idle layers, least worth per byte first, until `need_bytes` fit.

        What is dying counts as free already: it holds its bytes for some milliseconds more, less than raising
        anything takes. If all that is idle is not enough: False, and nothing is freed, unless what lies below it
        would be (the caller asks again when the ends are reported), or nobody is waiting for room (`sparing` is
        None), when the account is brought as close to its budget as can be.
        """
        short = self.ledger.short_bytes(need_bytes - sum(self.dying.values()))
        if short == 0:
            return True
        key = sparing.key if sparing is not None else None
        freed, chosen = 0, []
        for _, layer in self._victims(now, key):
            node = layer.id if isinstance(layer, Sandbox) else layer.key
            chosen.append(layer)
            freed += self.ledger.of(node)
            if freed >= short:
                break
        if freed < short and sparing is not None and (sparing.live or freed + self._below(chosen, key) < short):
            return False
        self.evictions += len(chosen)
        for layer in chosen:
            if isinstance(layer, Sandbox):
                self.destroy(layer, "memory", out)
            else:
                self._drop_lang(layer, "memory", out)
        return freed >= short

    def _below(self, chosen: list[Sandbox | LangLayer], spare_key: LangKey | None) -> int:
        """Bytes of the Lang layers that become idle, and can be freed next, once `chosen` and the dying are gone."""
        going: Counter[LangKey] = Counter(s.key for s in self.sandboxes.values() if s.state is State.DYING)
        going.update(layer.key for layer in chosen if isinstance(layer, Sandbox))
        return sum(
            self.ledger.of(key)
            for key, lang in self.langs.items()
            if lang.state is LangState.ALIVE and key != spare_key and 0 < self.children[key] == going[key]
        )

    def _victims(self, now: float, spare_key: LangKey | None) -> list[tuple[float, Sandbox | LangLayer]]:
        """Every idle layer with its worth per byte, cheapest first. Busy and rising ones are never here."""
        ranked: list[tuple[float, Sandbox | LangLayer]] = []
        for sandbox in self.sandboxes.values():
            if sandbox.state is State.READY and not sandbox.function.queue:
                ranked.append((sandbox.function.keepalive.priority(self.user_view(sandbox), now), sandbox))
        for lang in self.langs.values():
            if lang.state is LangState.ALIVE and not self.children[lang.key] and lang.key != spare_key:
                ranked.append((self.keepalive.priority(self.lang_view(lang), now), lang))
        ranked.sort(key=lambda pair: (pair[0], pair[1].last_used_s))
        return ranked

    def measured(self, node: int | LangKey, resident_bytes: int) -> None:
        """Correct the ledger by what was measured; unknown nodes (just gone) are ignored."""
        if node in self.dying:
            self.dying[node] = resident_bytes
        if isinstance(node, LangKey):
            if node in self.langs:
                self.ledger.enter(node, resident_bytes)
                self._lang_bytes(node).add(resident_bytes)
        elif node in self.sandboxes:
            self.ledger.enter(node, resident_bytes)
            sandbox = self.sandboxes[node]
            if sandbox.state in (State.READY, State.BUSY):
                sandbox.function.resident.add(resident_bytes)

    # ------------------------------------------------------------ views

    def user_view(self, sandbox: Sandbox) -> LayerView:
        fn = sandbox.function
        return LayerView(
            Layer.USER, fn.name, sandbox.key, fn.user_s.value, self.ledger.of(sandbox.id),
            sandbox.idle_since_s, sandbox.last_used_s, sandbox.uses,
        )  # fmt: skip

    def lang_view(self, lang: LangLayer) -> LayerView:
        seconds = self.lang_s.get(lang.key)
        return LayerView(
            Layer.LANG, None, lang.key, seconds.value if seconds else 0.0, self.ledger.of(lang.key),
            lang.idle_since_s, lang.last_used_s, lang.uses,
        )  # fmt: skip
