"""`histogram`: the hybrid histogram policy of "Serverless in the Wild" (Shahrad et al., ATC'20).

Per function, idle times (from the end of a run to the next request; 0 if it still ran) in bins of a minute up to `span`
(4 h). After a run:

    half or more of them lie beyond the span    their next value x is forecast: raise at 0.85 x, hold until 1.15 x
    the histogram says something                raise at the 5th percentile (rounded down to its minute) less 10 %, hold
                                                until the 99th (rounded up) plus 10 %, both from the end of the run
    else, or fewer than five idle times         hold for the span

It says something if the coefficient of variation of the bins' counts is 2 or more (all bins alike: 0; all in one of
240: 15.5). The paper's text leaves open whether the second time counts from the end of the run or from the raising;
here it is the end of the run. An instance to be raised later is dropped at once. For the forecast the paper has ARIMA
with its order found automatically; here it is ARIMA(p, d, 0) with p and d of 0 or 1, the best by Akaike's criterion.
`forecast` off holds for the span instead. The rule knows no layers: what is below an instance goes with it, but what is
on disk stays.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.policy.keepalive.base import ROUNDING_S, USER, Drop, Keep, KeepaliveDecision, LayerView, Prewarm, below_user
from rewarm.policy.keepalive.checks import duration_s, switch
from rewarm.policy.keepalive.fixed import worth_per_byte

_BIN_S = 60.0
_HEAD, _TAIL = 0.05, 0.99
_MARGIN = 0.1
_FORECAST_MARGIN = 0.15
_CV_MIN = 2.0
_BEYOND_MAX = 0.5
_SAMPLES_MIN = 5
_SERIES_MAX = 32  # idle times that a forecast looks at
_DROP = Drop()


def forecast(series: Sequence[float]) -> float:
    """The next value of at least one: ARIMA(p, d, 0) by least squares, p and d of 0 or 1, lowest AIC."""
    best, best_aic = series[-1], math.inf
    for differences in (0, 1):
        values = series if not differences else [b - a for a, b in pairwise(series)]
        if len(values) < 3:  # nothing to judge an order by
            continue
        base = series[-1] if differences else 0.0
        before, after = values[:-1], values[1:]
        count = len(after)
        mean_before, mean_after = sum(before) / count, sum(after) / count
        spread = sum((x - mean_before) ** 2 for x in before)
        slope = sum((x - mean_before) * (y - mean_after) for x, y in zip(before, after, strict=True))
        slope = min(max(slope / spread, -0.99), 0.99) if spread > 0 else 0.0
        for order, phi in ((0, 0.0), (1, slope)):
            residuals = [y - mean_after - phi * (x - mean_before) for x, y in zip(before, after, strict=True)]
            # Per value, so that series of different lengths compare; the term in seconds² keeps the logarithm finite.
            aic = math.log(sum(r * r for r in residuals) / count + 1.0) + 2.0 * (order + 1) / count
            if aic < best_aic:
                best, best_aic = base + mean_after + phi * (values[-1] - mean_before), aic
    return best


class _Record:
    """One function's idle times."""

    __slots__ = ("beyond", "bins", "idle_since_s", "series", "squares", "total")

    def __init__(self, bins: int) -> None:
        self.idle_since_s: float | None = None  # None: it runs, or is on its way up
        self.bins = [0] * bins
        self.total = 0  # in the bins
        self.squares = 0  # sum of the squares of the counts
        self.beyond = 0  # idle times longer than the span
        self.series: deque[float] = deque(maxlen=_SERIES_MAX)

    def add(self, idle_s: float) -> None:
        index = int((idle_s + ROUNDING_S) / _BIN_S)
        self.series.append(idle_s)
        if index >= len(self.bins):
            self.beyond += 1
            return
        self.squares += 2 * self.bins[index] + 1
        self.bins[index] += 1
        self.total += 1

    def says_something(self) -> bool:
        mean = self.total / len(self.bins)
        return math.sqrt(max(self.squares / len(self.bins) - mean * mean, 0.0)) >= _CV_MIN * mean

    def percentiles(self) -> tuple[int, int]:
        """The bins in which the head and the tail lie."""
        ranks = list(accumulate(self.bins))
        return bisect_left(ranks, _HEAD * self.total), bisect_left(ranks, _TAIL * self.total)


class Histogram:
    """`span_s` is the range of the histogram, minutes as seconds; `forecast` is its fallback. Raises BadDefinition."""

    __slots__ = ("_bins", "_forecast", "_records", "_span_s")
    name = "histogram"
    worth_holds = math.inf

    def __init__(self, span_s: float = 14_400.0, forecast: bool | str = True) -> None:
        self._bins = int(duration_s("span_s", span_s) / _BIN_S)
        if not 2 <= self._bins <= 10_080:
            raise BadDefinition(f"span_s must be 2 minutes to a week, not {span_s!r} seconds")
        self._span_s = self._bins * _BIN_S
        self._forecast = switch("forecast", forecast)
        self._records: dict[str, _Record] = {}

    def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
        record = self._records.get(function)
        if record is None:
            self._records[function] = _Record(self._bins)
            return None
        record.add(now - record.idle_since_s if record.idle_since_s is not None else 0.0)
        record.idle_since_s = None
        return None

    def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
        if layer.layer < USER or layer.function is None:
            return below_user(layer)
        record = self._records.get(layer.function)
        if record is None:
            record = self._records[layer.function] = _Record(self._bins)
        if record.idle_since_s is None or (layer.uses and now == layer.idle_since_s):
            record.idle_since_s = layer.idle_since_s
        idle_s = now - (layer.idle_since_s if layer.uses else record.idle_since_s)
        from_s, until_s = self._window_s(record)
        if idle_s >= until_s - ROUNDING_S:
            return _DROP
        ahead_s = from_s - idle_s - layer.startup_s  # when to begin raising it, so that it is there in time
        return Keep(until_s - idle_s) if ahead_s <= ROUNDING_S else Drop(ahead_s)

    def priority(self, layer: LayerView, now: float) -> float:
        return worth_per_byte(layer)

    def _window_s(self, record: _Record) -> tuple[float, float]:
        """From when until when after a run an instance should be there, in seconds."""
        count = record.total + record.beyond
        if count < _SAMPLES_MIN:
            return 0.0, self._span_s
        if record.beyond >= _BEYOND_MAX * count:
            if not self._forecast:
                return 0.0, self._span_s
            next_s = max(forecast(list(record.series)), _BIN_S)
            return next_s * (1.0 - _FORECAST_MARGIN), next_s * (1.0 + _FORECAST_MARGIN)
        if not record.says_something():
            return 0.0, self._span_s
        head, tail = record.percentiles()
        return head * _BIN_S * (1.0 - _MARGIN), (tail + 1) * _BIN_S * (1.0 + _MARGIN)
