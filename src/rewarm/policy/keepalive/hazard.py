"""`hazard`: hold a layer exactly while its own idle gaps make that worth the memory. Ours.

Each function (its instances, and apart from them its snapshot on disk), each runtime key (its Lang layers) and the Bare
layers as a whole have a histogram of idle gaps (`gaps`), and the layer is held through those ranges of the gap in which
the start-up seconds that it is expected to save outweigh its rent, `price` times its megabytes times the seconds held.
A range need not begin at once:
if gaps are regular, the layer is dropped and raised again shortly before it is asked for. Ranges stay right as the gap
grows, since each is chosen for the gaps that reach it. While a function has few gaps of its own, those of all others
count as much as one of its own.

A function that has never been called has one gap all the same, from its deployment to its first call. How long such
gaps are is learnt from all functions (`firsts`), and by the same sums an instance is raised ahead and held, or not.

`price` is the one knob: start-up seconds that a MB·s (MB = 2**20 bytes) of idle memory is worth. RainbowCake's alpha
says the same as (1 - alpha) / alpha. Everything else is the same for every load. When memory is short the budget has
a price of its own: each layer freed for want of memory raises the price, and it falls back while none is.
"""

from __future__ import annotations

import math
from collections import defaultdict

from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import BARE, LANG, ROUNDING_S, USER, Drop, Keep, KeepaliveDecision, LayerView, Prewarm
from rewarm.policy.keepalive.checks import positive
from rewarm.policy.keepalive.firsts import FirstCalls
from rewarm.policy.keepalive.gaps import EDGES_S, GapHistogram, bin_of, plan, worth_per_s
from rewarm.units import MB

_DECAY = 0.998  # of a gap's weight with each that follows: about the last five hundred count
_PRIOR_WEIGHT = 1.0  # what the gaps of all others weigh, in gaps of its own
_SEED_WEIGHT = 0.5  # before anybody had a gap: all orders of magnitude alike, gone with the first samples
_AGAIN_SHARE = 0.02  # a start ahead of time costs this share of one that somebody waits for; and see `_again_s`
_NEVER_S = 1e9  # the same for layers that are not raised ahead: more than any wait
_UNKNOWN_KEEP_S = 600.0  # for a layer that nobody has measured
_REPLAN_SHARE = 0.125  # a plan stands until so much of its histogram is new
_RETHINK_MIN_S = 1.0  # and, of the wait for a first call, not less than this
_MOVED = 1.1  # or until the price, the start-up time or the size has changed by this factor
_PRESSURE_STEP, _PRESSURE_MAX, _PRESSURE_FADES_S = 0.05, 7.0, 600.0  # of the price's logarithm
_OPEN_GAPS_MAX = 64
_HORIZON_S = 600.0  # makes an index per second comparable with what a start saves per byte
_DROP = Drop()


class _Book:
    """What is known of the gaps of one function, one key, or the Bare layers."""

    __slots__ = ("due", "gaps", "open_s", "rent", "saved_s", "mass", "windows_s", "worths")

    def __init__(self) -> None:
        self.gaps = GapHistogram(_DECAY)
        self.open_s: list[float] = []  # when gaps that have not ended began; the core takes the latest idle one first
        self.due = 0  # number of gaps at which the plan is made again
        self.saved_s = self.rent = 0.0  # what the plan was made for
        self.mass: list[float] = []
        self.windows_s: list[tuple[float, float]] = []
        self.worths: dict[int, float] = {}  # by bin, for `saved_s` = 1

    def plan(self, prior: list[float], saved_s: float, rent: float, again_s: float) -> None:
        self.saved_s, self.rent = saved_s, rent
        known = self.gaps.count
        self.due = known + max(1, int(_REPLAN_SHARE * min(known, self.gaps.total)))
        self.mass = self.gaps.mixed(prior, _PRIOR_WEIGHT)
        self.windows_s = [(EDGES_S[a], EDGES_S[b]) for a, b in plan(self.mass, saved_s, rent, again_s)]
        self.worths.clear()


class _Tier:
    """All books of one kind of layer, and what is common to them."""

    __slots__ = ("_all", "_prior", "_prior_at", "_uniform", "books")

    def __init__(self) -> None:
        self.books: dict[object, _Book] = {}
        self._all = GapHistogram()
        self._uniform = [1.0 / len(EDGES_S)] * len(EDGES_S)
        self._prior, self._prior_at = self._uniform, 0

    def book(self, owner: object) -> _Book:
        found = self.books.get(owner)
        if found is None:
            found = self.books[owner] = _Book()
        return found

    def ended(self, book: _Book, gap_s: float) -> None:
        index = bin_of(gap_s)
        book.gaps.add(index)
        self._all.add(index, 1.0 / book.gaps.count)  # nobody's gaps drown those of the others

    def prior(self) -> list[float]:
        """The probabilities of a gap of nobody in particular, seldom made anew once many are known."""
        if self._all.count >= self._prior_at:
            self._prior = self._all.mixed(self._uniform, _SEED_WEIGHT)
            self._prior_at = self._all.count + 1 + self._all.count // 64
        return self._prior


class Hazard:
    """Holds what pays at `price` start-up seconds per MB·s of idle memory; less of it the higher the price.

    Raises BadDefinition unless `price` is a number above 0.
    """

    __slots__ = ("_firsts", "_lang_s", "_pressure", "_pressure_at_s", "_price", "_tiers", "_turn_s")
    name = "hazard"
    worth_holds = 0.08  # its bins of idle time are that wide
    watches_ends = True
    watches_deploys = True

    def __init__(self, price: float = 2e-5) -> None:
        self._price = positive("price", price)
        self._pressure, self._pressure_at_s = 0.0, -math.inf
        # In the order of `on_arrival`; Asleep comes last, and only once something sleeps.
        self._tiers = defaultdict(_Tier, {layer: _Tier() for layer in (BARE, LANG, USER)})
        self._firsts = FirstCalls()
        self._turn_s = -math.inf  # when the next one of those that are raised ahead of their first call may begin
        self._lang_s: dict[LangKey, float] = {}  # start-up seconds of the layer below

    def on_deployed(self, instance: LayerView, now: float) -> Prewarm | None:
        takes_s = instance.startup_s
        self._firsts.deployed(instance.function, now)
        windows_s = self._until_first_call(instance, now, there=False)
        if not windows_s:
            return None
        turn_s = max(self._turn_s, now)  # one after the other: a server that comes up has many to raise
        self._turn_s = turn_s + takes_s
        return Prewarm(max(turn_s - now, windows_s[0][0] - takes_s))

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        if function in self._firsts.waiting_since_s:
            self._firsts.called(function, now)
        for tier, owner in zip(self._tiers.values(), (None, key, function, function), strict=False):
            book = tier.books.get(owner)
            if book is not None and book.open_s:
                tier.ended(book, now - book.open_s.pop())
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        waits = self._waits(layer)
        tier, book = self._book(layer)
        began_s = layer.idle_since_s
        if waits:
            began_s = self._firsts.waiting_since_s[layer.function]
        elif layer.uses == 0 and layer.layer >= USER:
            # Raised ahead of its use: the gap began before it did, unless others ran in the meantime.
            if book.open_s and book.open_s[-1] < began_s:
                began_s = book.open_s[-1]
        elif now == began_s:
            self._open(book, layer, now)
        if layer.layer is LANG:
            self._lang_s[layer.key] = layer.startup_s
        gap_s = now - began_s
        if layer.startup_s <= 0 or layer.resident_bytes <= 0:
            left_s = _UNKNOWN_KEEP_S - gap_s
            return Keep(left_s) if left_s > ROUNDING_S else _DROP
        if waits:
            again_s = max(_RETHINK_MIN_S, _REPLAN_SHARE * gap_s)
            return self._decide(self._until_first_call(layer, now), layer, gap_s, again_s)
        self._refresh(tier, book, layer, now)
        return self._decide(book.windows_s, layer, gap_s)

    def _decide(
        self, windows_s: list[tuple[float, float]], layer: LayerView, gap_s: float, at_most_s: float = math.inf
    ) -> KeepaliveDecision:
        for from_s, until_s in windows_s:
            if until_s - gap_s <= ROUNDING_S:
                continue
            ahead_s = from_s - gap_s - layer.startup_s - self._lang_s.get(layer.key, 0.0)
            if ahead_s <= layer.startup_s:  # to end it and begin again would take longer than the pause lasts
                return Keep(min(until_s - gap_s, at_most_s))
            return Drop(prewarm_after_s=ahead_s)
        return _DROP

    def _waits(self, layer: LayerView) -> bool:
        """It is an instance of a function that has never been called."""
        return layer.layer >= USER and layer.function in self._firsts.waiting_since_s

    def _until_first_call(self, layer: LayerView, now: float, there: bool = True) -> list[tuple[float, float]]:
        """The stretches of the wait, since the function was deployed, that are worth an instance."""
        saved_s, rent = layer.startup_s, self.price_at(now) * layer.resident_bytes / MB
        again_s = _again_s(saved_s, rent, math.inf)  # the curve is not a guess of one function's own
        ranges = plan(self._firsts.mass(now), saved_s, rent, again_s, there=there)
        return [(EDGES_S[a], EDGES_S[b]) for a, b in ranges]

    def priority(self, layer: LayerView, now: float) -> float:
        """The rent per byte at which it would be dropped (`gaps.worth_per_s`), for ten minutes."""
        return _HORIZON_S * self._worth_per_s(layer, now) * layer.startup_s / max(layer.resident_bytes, 1)

    def _worth_per_s(self, layer: LayerView, now: float) -> float:
        """For a start of one second."""
        if self._waits(layer):
            return self._firsts.worth_per_s(layer.function, now)
        tier, book = self._book(layer)
        self._refresh(tier, book, layer, now)
        first = bin_of(max(now - layer.idle_since_s, 0.0))
        worth = book.worths.get(first)
        if worth is None:
            worth = book.worths[first] = worth_per_s(book.mass, first, 1.0)
        return worth

    def on_gone(self, layer: LayerView, evicted: bool, now: float) -> None:
        if evicted:
            self._pressure = min(self._faded(now) + _PRESSURE_STEP, _PRESSURE_MAX)
            self._pressure_at_s = now

    def price_at(self, now: float) -> float:
        """Start-up seconds per MB·s that are asked now: the knob, times what memory pressure adds."""
        return self._price * math.exp(self._faded(now)) if self._pressure else self._price

    def _faded(self, now: float) -> float:
        return self._pressure * math.exp((self._pressure_at_s - now) / _PRESSURE_FADES_S) if self._pressure else 0.0

    def _book(self, layer: LayerView) -> tuple[_Tier, _Book]:
        tier = self._tiers[min(layer.layer, USER)]
        return tier, tier.book(layer.key if layer.layer is LANG else layer.function)  # Bare has no function

    def _open(self, book: _Book, layer: LayerView, now: float) -> None:
        if layer.layer < USER:
            book.open_s = [now]  # there is one of a key; whoever comes next asks for it
            return
        book.open_s.append(now)
        if len(book.open_s) > _OPEN_GAPS_MAX:
            del book.open_s[0]

    def _refresh(self, tier: _Tier, book: _Book, layer: LayerView, now: float) -> None:
        saved_s = layer.startup_s
        rent = self.price_at(now) * layer.resident_bytes / MB
        if book.gaps.count >= book.due or _moved(book.saved_s, saved_s) or _moved(book.rent, rent):
            again_s = _again_s(saved_s, rent, book.gaps.total) if layer.layer >= USER else _NEVER_S
            book.plan(tier.prior(), saved_s, rent, again_s)


def _again_s(saved_s: float, rent: float, known: float) -> float:
    """What is asked of a range that begins later, over its own rent, in start-up seconds.

    It is in memory while it rises; and the next gap is unlike the `known` ones, so that the range was a guess, about
    once in so many times and one (Good and Turing: the share of what was seen just once).
    """
    return saved_s * (_AGAIN_SHARE + 1.0 / (1.0 + known) + rent)


def _moved(planned: float, measured: float) -> bool:
    return not planned <= measured * _MOVED <= planned * _MOVED * _MOVED
