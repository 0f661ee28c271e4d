"""What one core was told and what it decided, in order, by the moments that it was given; and whether that is lawful.

A record hears events from the core itself and effects from whoever carries them out. It keeps an account of each
sandbox and runtime, so that an event that no effect asked for, or one out of order, is noticed wherever it happens.
What is wrong is kept in `wrong`, not raised: a record is called from the midst of things.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple, TypeVar

from rewarm.core.node import Node
from rewarm.facts import messages as m
from rewarm.facts.function import LangKey
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.sandbox.port import Node as LayerName

State = SandboxState
T = TypeVar("T")
ROUNDING_S = 1e-6  # an event loop may call a clock's resolution too early


class Entry(NamedTuple):
    """One event that the core was told, or one effect that was carried out for it. `at_s` is the core's moment."""

    at_s: float
    what: m.Event | m.Effect


class _Account:
    """One layer that lives: which events may come next, and whether it was told to end."""

    def __init__(self) -> None:
        self.owed: list[object] = []  # states of Raised, or the type of the event
        self.ending = False
        self.batch: list[Request] = []


class Record:
    """Listens to `node` from now on."""

    def __init__(self, node: Node) -> None:
        self.entries: list[Entry] = []
        self.wrong: list[str] = []
        self.submitted: Counter[str] = Counter()  # by function
        self.served: list[Request] = []  # in the order in which their runs were done
        self.refused: list[Request] = []
        self.changed = asyncio.Event()
        self._node = node
        self._now_s = 0.0
        self._accounts: dict[LayerName, _Account] = {}
        node.hears = self._told

    # ------------------------------------------------------------ hearing

    def came(self, function: str, now: float) -> None:
        """A request is about to be given to the core, which takes most of them in without an event."""
        self.submitted[function] += 1
        self._passes(now, f"a request for {function!r}")

    def _passes(self, now: float, what: object) -> None:
        self._expect(now >= self._now_s, f"time went back from {self._now_s!r} to {now!r} at {what}")
        self._now_s = max(now, self._now_s)

    def _told(self, event: m.Event, now: float) -> None:
        """The core is told `event`."""
        self._passes(now, event)
        self.entries.append(Entry(now, event))
        if isinstance(event, m.Tick):
            wakeup_s = self._node.next_wakeup_s()
            asked = wakeup_s is not None and wakeup_s <= now + ROUNDING_S
            self._expect(asked, f"a Tick at {now!r} that nobody asked for: the next wake-up is {wakeup_s!r}")
        elif isinstance(event, m.Raised):
            self._owed(event.sandbox_id, event.state, event)
        elif isinstance(event, m.RunDone):
            account = self._owed(event.sandbox_id, m.RunDone, event)
            self.served += account.batch if account is not None else []
        elif isinstance(event, m.LangRaised):
            self._owed(event.key, m.LangRaised, event)
        elif isinstance(event, m.Exited):
            self._ended(event.sandbox_id, event)
        elif isinstance(event, m.LangExited):
            self._ended(event.key, event)
        self.changed.set()

    def decided(self, effect: m.Effect, now: float | None = None) -> None:
        """`effect` is about to be carried out; at the moment of the last event, unless the driver says `now`."""
        self.entries.append(Entry(self._now_s if now is None else now, effect))
        if isinstance(effect, m.Reject):
            self.refused.append(effect.request)
        elif isinstance(effect, m.RaiseBare):
            self._begins(effect.sandbox_id, State.BARE)
        elif isinstance(effect, m.RaiseLang):
            self._begins(effect.key, m.LangRaised)
        elif isinstance(effect, m.DropLang):
            self._told_to_end(effect.key)
        elif isinstance(effect, m.Destroy):
            self._told_to_end(effect.sandbox_id)
        elif isinstance(effect, m.Restore):
            self._begins(effect.sandbox_id, State.READY)
        elif isinstance(effect, m.Pin | m.Prefetch | m.Sleep | m.Forget):
            pass  # they are about no layer that lives
        elif (account := self._accounts.get(effect.sandbox_id)) is not None:  # else the two crossed on the way
            if isinstance(effect, m.Run):
                account.batch = effect.requests
                account.owed.append(m.RunDone)
            elif isinstance(effect, m.LoadUser):
                account.owed += [State.USER, State.READY]
            else:
                account.owed.append(State.LANG)
        if isinstance(effect, m.Fork) and not effect.key.forks:
            self._accounts.pop(effect.key, None)  # it is used up: no word of it any more
        self.changed.set()

    def closing(self) -> None:
        """From here on everything may end, and nothing else happens."""
        for layer in self._accounts:
            self._told_to_end(layer)

    def _begins(self, layer: LayerName, owed: object) -> None:
        self._expect(layer not in self._accounts, f"{layer} is raised and is there already")
        self._accounts[layer] = _Account()
        self._accounts[layer].owed.append(owed)

    def _told_to_end(self, layer: LayerName) -> None:
        account = self._accounts.get(layer)
        if account is not None:
            account.ending = True
            account.owed.clear()

    def _owed(self, layer: LayerName, what: object, event: m.Event) -> _Account | None:
        """`event` comes for a living layer, of which it is the next that an effect asked for."""
        account = self._accounts.get(layer)
        if account is None or not account.owed or account.owed[0] != what:
            self.wrong.append(f"{event}: expected {account.owed if account is not None else 'nothing'} of {layer}")
            return None
        del account.owed[0]
        return account

    def _ended(self, layer: LayerName, event: m.Exited | m.LangExited) -> None:
        account = self._accounts.pop(layer, None)
        self._expect(account is not None, f"{event} of what has ended, or never was")
        self._expect(account is None or account.ending, f"{event} of what nobody told to end")
        self._expect(event.error is None, f"{event}: an end that was asked for is no error")

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    # ------------------------------------------------------------ looking

    @property
    def living(self) -> set[LayerName]:
        """Every layer that an effect raised and whose end was not told; a runtime that was used up is none."""
        return set(self._accounts)

    def all(self, kind: type[T], layer: LayerName | None = None) -> list[tuple[float, T]]:
        """Every event or effect of this kind, and when; of this layer, if one is named."""
        return [(at_s, what) for at_s, what in self.entries if isinstance(what, kind) and _is_of(what, layer)]

    def words(self, layer: LayerName) -> list[object]:
        """What was said of one layer, in order: kinds of events and effects, and for Raised the state."""
        said = [what for _, what in self.entries if _is_of(what, layer)]
        return [what.state if isinstance(what, m.Raised) else type(what) for what in said if not _is_measured(what)]

    def place(self, kind: type, layer: LayerName | None = None) -> int:
        """Where the first of this kind stands in the record. Raises AssertionError if there is none."""
        places = [n for n, (_, what) in enumerate(self.entries) if isinstance(what, kind) and _is_of(what, layer)]
        assert places, f"no {kind.__name__} of {layer}: {self.entries}"
        return places[0]

    def waiting(self) -> int:
        """Requests that were submitted and have no answer yet."""
        return self.submitted.total() - len(self.served) - len(self.refused)

    def check_end(self) -> None:
        """Nothing was wrong, nothing lives, every request has one answer. Raises AssertionError."""
        assert not self.wrong, self.wrong
        assert not self.living, f"left at the end: {self.living}"
        answered = self.served + self.refused
        by_function = Counter(request.function for request in answered)
        assert by_function == self.submitted, f"submitted {self.submitted}, answered {by_function}"
        twice = [request for request, times in Counter(answered).items() if times > 1]
        assert not twice, f"answered more than once: {twice}"


def _is_measured(what: m.Event | m.Effect) -> bool:
    return isinstance(what, m.Measured)


def _is_of(what: object, layer: LayerName | None) -> bool:
    """True if it is about the layer. A Fork is about its sandbox, and about its key only if that is used up by it."""
    if layer is None:
        return True
    if isinstance(layer, LangKey):
        return getattr(what, "key", None) == layer and (not isinstance(what, m.Fork) or not layer.forks)
    return getattr(what, "sandbox_id", None) == layer
