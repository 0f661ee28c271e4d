"""`barista`: instances for the load that is forecast, started early enough to be there (BARISTA, IC2E'19).

Per function, requests are counted in slots of `slot_s`. Their number is forecast as a trend plus seasonality (a day and
an hour, as Fourier series: the model of Prophet, which the paper uses), fitted by regularised least squares with older
slots fading out, plus a corrector: the next error as a multiple of the last one, learnt from the recent ones.

    instances = ceil(rate * SLO / floor(SLO / p95 latency)),   rate in requests a second

floor(SLO / p95) is what one instance serves one after the other within the objective. A slot for which less than half
a request is forecast needs none. An instance beyond what this slot and the next need is dropped, and raised again
ahead of the next slot that needs it. The rule knows no layers: what is below an instance goes with it, but
what is on disk stays.
"""

from __future__ import annotations

import math
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.policy.keepalive.base import (
    LANG,
    ROUNDING_S,
    USER,
    Drop,
    Keep,
    KeepaliveDecision,
    LayerView,
    Prewarm,
    below_user,
)
from rewarm.policy.keepalive.checks import duration_s
from rewarm.policy.keepalive.fixed import worth_per_byte

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

_DAY_S = 86_400.0
_PERIODS_S = (_DAY_S, _DAY_S / 2, _DAY_S / 3, _DAY_S / 4, 3600.0, 1800.0)
_FADE = 0.998  # of a slot's weight with each that follows
_RIDGE = 0.3  # pulls trend and seasons to nothing while there is little to learn them from,
_RIDGE_LEVEL = 1e-6  # but hardly the level
_FIT_SHARE, _FIT_EVERY = 6, 12  # the fit follows once a sixth as many slots have come as it knows, or twelve
_ERRORS_MAX = 24
_NEAR, _AHEAD_MAX = 2, 288  # slots: the running one and the next; how far a need is looked for
_LATENCIES_MAX = 128
_SLO_DEFAULT_S = 1.0
_REQUESTS_MIN = 0.5
_DROP = Drop()


class SlotForecast:
    """Requests by slot: `add` what came in the slots that have ended, ask `ahead` for those to come."""

    __slots__ = (
        "_day", "_diagonal", "_errors", "_fit", "_gram", "_known", "_moment", "_pull", "_seasons", "_waiting",
        "_weights", "next_slot",
    )  # fmt: skip

    def __init__(self, slots_a_day: int, first_slot: int) -> None:
        import numpy as np  # here, because code that only names a policy must not pay for it

        self._day, self._seasons = _day_rows(slots_a_day)
        self.next_slot = self._known = first_slot
        self._pull: Floats = np.array([_RIDGE_LEVEL] + [_RIDGE] * (1 + 2 * len(_PERIODS_S)))
        self._gram: Floats = np.diag(self._pull)
        self._diagonal: Floats = np.einsum("ii->i", self._gram)  # a view of it
        self._moment: Floats = np.zeros(len(self._pull))
        self._fit: Floats = np.zeros(len(self._pull))
        self._weights: list[float] = self._fit.tolist()  # the same: for a slot or two plain numbers cost less
        self._errors: deque[float] = deque(maxlen=_ERRORS_MAX)
        self._waiting: list[float] = []  # counts of the slots before `next_slot` that the fit has not learnt from

    def add(self, counts: list[float]) -> None:
        """The numbers of requests in the slots from `next_slot` on.

        Each is compared with its forecast at once; the fit moves slowly and follows a few slots at a time.
        """
        for place in range(max(0, len(counts) - _ERRORS_MAX), len(counts)):
            self._errors.append(counts[place] - self._expected(self.next_slot + place))
        self._waiting += counts
        self.next_slot += len(counts)
        fitted = self.next_slot - self._known - len(self._waiting)
        if len(self._waiting) >= min(fitted // _FIT_SHARE, _FIT_EVERY):
            self._learn()

    def _learn(self) -> None:
        import numpy as np

        counts, self._waiting = np.array(self._waiting), []
        rows = self._rows(self.next_slot - len(counts), len(counts))
        faded = rows * _FADE ** np.arange(len(counts) - 1, -1, -1.0)[:, None]
        whole = _FADE ** len(counts)
        self._gram *= whole
        self._gram += faded.T @ rows
        self._diagonal += (1.0 - whole) * self._pull
        self._moment *= whole
        self._moment += counts @ faded
        self._fit = np.linalg.solve(self._gram, self._moment)
        self._weights = self._fit.tolist()

    def near(self, slots: int) -> list[float]:
        """As `ahead`, for a few slots."""
        error = self._errors[-1] if self._errors else 0.0
        carry = self._carry()
        found = []
        for slot in range(self.next_slot, self.next_slot + slots):
            error *= carry
            found.append(max(self._expected(slot) + error, 0.0))
        return found

    def _expected(self, slot: int) -> float:
        """By the fit alone."""
        slots_a_day = len(self._seasons)
        seasons, weights = self._seasons[slot % slots_a_day], self._weights
        total = weights[0] + weights[1] * (slot - self._known) / slots_a_day
        for place in range(2, len(weights)):
            total += weights[place] * seasons[place]
        return total

    def ahead(self, slots: int) -> Floats:
        """Expected requests in `next_slot` and those after it, a day at most; never negative."""
        import numpy as np

        slots_a_day = len(self._seasons)
        at = self.next_slot % slots_a_day
        expected = self._day[at : at + slots] @ self._fit
        expected += self._weights[1] * (self.next_slot - at - self._known) / slots_a_day
        carry = self._carry()
        if carry:
            expected += self._errors[-1] * carry ** np.arange(1.0, slots + 1.0)
        return np.maximum(expected, 0.0)

    def _carry(self) -> float:
        """How much of an error is still there a slot later: least squares on the recent ones, 0 to 1."""
        products = squares = before = 0.0
        for error in self._errors:
            products += error * before
            squares += error * error
            before = error
        squares -= before * before  # the last has no successor
        return min(max(products / squares, 0.0), 1.0) if squares > 0 else 0.0

    def _rows(self, first: int, count: int) -> Floats:
        import numpy as np

        slots_a_day = len(self._seasons)
        slots = np.arange(first, first + count)
        rows = self._day[slots % slots_a_day]
        rows[:, 1] = (slots - self._known) / slots_a_day
        return rows


@cache
def _day_rows(slots: int) -> tuple[Floats, list[list[float]]]:
    """What the model sees in each slot, level, trend and seasons: of two days as an array, of one as numbers."""
    import numpy as np

    count = np.arange(2 * slots)
    angles = 2.0 * math.pi * (_DAY_S / slots) * (count % slots)[:, None] / np.array(_PERIODS_S)
    rows = np.column_stack((np.ones(2 * slots), count / slots, np.cos(angles), np.sin(angles)))
    return rows, rows[:slots].tolist()


def _instances(expected: float, per_instance: float) -> int:
    """For so many requests in a slot."""
    return math.ceil(expected / per_instance - ROUNDING_S) if expected >= _REQUESTS_MIN else 0


class _Demand:
    """One function: its counts, its latencies and what they say of the slots to come."""

    __slots__ = ("came", "far", "forecast", "latencies_s", "lead_s", "looked_far", "needs", "slo_s", "told_slot")

    def __init__(self, slots_a_day: int, slot: int) -> None:
        self.forecast = SlotForecast(slots_a_day, slot)
        self.came = 0  # in the slot that runs, `forecast.next_slot`
        self.latencies_s: deque[float] = deque(maxlen=_LATENCIES_MAX)
        self.slo_s = _SLO_DEFAULT_S
        self.lead_s = 0.0  # what a start takes
        self.needs: list[int] = []  # instances in the running slot and the next; [] while no slot has ended
        self.looked_far = False
        self.far: tuple[int, int] | None = None  # once looked for: the first need after those, as `_next_need` tells it
        self.told_slot = slot  # the last one in which an arrival was answered with what the next ones need

    def served(self) -> int:
        """Requests that one instance can serve within the objective: floor(SLO / p95), at least 1."""
        ranked = sorted(self.latencies_s)
        p95_s = ranked[math.ceil(0.95 * len(ranked)) - 1] if ranked else 0.0
        return max(int(self.slo_s / p95_s + ROUNDING_S), 1) if p95_s > 0 else 1


class Barista:
    """`slot_s` (1 s to 1 h, a whole part of a day) is the grain of the forecast, which looks a day or 288 slots ahead.

    Raises BadDefinition.
    """

    __slots__ = ("_demands", "_lang_s", "_slot_s", "_slots")
    name = "barista"
    worth_holds = math.inf
    watches_runs = True

    def __init__(self, slot_s: float = 300.0) -> None:
        self._slot_s = duration_s("slot_s", slot_s)
        if not 1.0 <= self._slot_s <= 3600.0 or _DAY_S % self._slot_s:
            raise BadDefinition(f"slot_s must be 1 second to 1 hour and divide a day, as 300 does, not {slot_s!r}")
        self._slots = int(_DAY_S / self._slot_s)
        self._demands: dict[str, _Demand] = {}
        self._lang_s: dict[LangKey, float] = {}

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        demand = self._at(function, now)
        demand.came += 1
        if demand.told_slot == demand.forecast.next_slot:
            return None
        demand.told_slot = demand.forecast.next_slot
        later = self._next_need(demand, 1)
        if later is None:
            return None
        slot, instances = later
        return Prewarm(self._until_s(demand, slot, now), instances)

    def on_run(self, spec: FunctionSpec, size: int, run_s: float, now: float) -> None:
        demand = self._at(spec.name, now)
        demand.slo_s = spec.slo_s or _SLO_DEFAULT_S
        demand.latencies_s.append(run_s)

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        if layer.layer is LANG:
            self._lang_s[layer.key] = layer.startup_s
        if layer.layer < USER or layer.function is None:
            return below_user(layer)
        demand = self._at(layer.function, now)
        demand.lead_s = layer.startup_s + self._lang_s.get(layer.key, 0.0)
        if not demand.needs or layer.others < max(demand.needs[:_NEAR]):
            return Keep(self._slot_end_s(demand, now))
        later = self._next_need(demand, _NEAR)
        # Others that stay are enough until then; the need of that slot is asked for again by an arrival or by them.
        return _DROP if later is None or layer.others else Drop(self._until_s(demand, later[0], now))

    def priority(self, layer: LayerView, now: float) -> float:
        return worth_per_byte(layer)

    def _at(self, function: str, now: float) -> _Demand:
        """The demand with all slots that have ended by `now` counted."""
        slot = math.floor(now / self._slot_s + ROUNDING_S)
        demand = self._demands.get(function)
        if demand is None:
            demand = self._demands[function] = _Demand(self._slots, slot)
        ended = slot - demand.forecast.next_slot
        if ended <= 0:
            return demand
        demand.forecast.add([float(demand.came)] + [0.0] * (ended - 1))
        demand.came = 0
        per_instance = self._per_instance(demand)
        demand.needs = [_instances(expected, per_instance) for expected in demand.forecast.near(_NEAR)]
        demand.looked_far = False
        return demand

    def _per_instance(self, demand: _Demand) -> float:
        """Requests that one instance serves in a slot."""
        return self._slot_s / demand.slo_s * demand.served()

    def _next_need(self, demand: _Demand, first: int) -> tuple[int, int] | None:
        """The first slot from `first` on that needs instances, and how many."""
        for slot in range(first, len(demand.needs)):
            if demand.needs[slot]:
                return slot, demand.needs[slot]
        if not demand.needs:
            return None
        if not demand.looked_far:
            demand.looked_far = True
            demand.far = self._far(demand)
        return demand.far

    def _far(self, demand: _Demand) -> tuple[int, int] | None:
        per_instance = self._per_instance(demand)
        expected: list[float] = demand.forecast.ahead(min(self._slots, _AHEAD_MAX)).tolist()
        for slot in range(_NEAR, len(expected)):
            instances = _instances(expected[slot], per_instance)
            if instances:
                return slot, instances
        return None

    def _slot_end_s(self, demand: _Demand, now: float) -> float:
        return (demand.forecast.next_slot + 1) * self._slot_s - now

    def _until_s(self, demand: _Demand, slot: int, now: float) -> float:
        """From now until a start must begin to be done when the slot `slot` places after the running one begins."""
        return max((demand.forecast.next_slot + slot) * self._slot_s - demand.lead_s - now, 0.0)
