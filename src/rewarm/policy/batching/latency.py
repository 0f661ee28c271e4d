"""How long a batch takes: learnt while serving, and the part of a rule that does the learning.

The law is L(b) = a + c·b with a, c ≥ 0, as profiles of CPU inference show for moderate batches (BATCH, SC'20, fits a
cubic; HarmonyBatch, IWQoS'24, a line). It is fitted by least squares whose past fades, kept as a mean point and
centred second moments (West 1979), so one sample costs the same whether it is the first or the millionth.

Three things keep it sane where plain least squares is not:

* An outlier is pulled in to a few times the usual deviation before it enters (Huber's clipping). A lasting change
  still gets through, because every clipped sample also widens the usual deviation.
* The slope is shrunk until sizes have varied: above the mean size towards `L` proportional to `b`, below it towards
  constant `L`. Both are the dearer guess, so few distinct sizes make a careful model and not a wild one.
* While few samples are in, one that is far *faster* than believed unseats the belief: a first run is often cold.
"""

from __future__ import annotations

import math

from rewarm.errors import BadDefinition
from rewarm.policy.batching.base import Dispatch

SIZE_LIMIT = 4096  # a table of decisions is built up to max_size; nobody batches more rows on a CPU

_FADE = 0.97  # weight of the past after one more sample: about 33 samples are remembered
_SHRINK = 1.0  # rows²: how much spread of sizes outweighs the careful guess of the slope
_DEVIATION_PRIOR = 0.25  # of the mean
_CLIP_DEVIATIONS = 5.0
_CLIP_MIN = 0.3
_LEARN_MIN = 0.05
_YOUNG = 5  # samples
_TAIL = math.log(50.0)  # q99 of a Laplace law lies ln 50 mean deviations above its centre; 2.9 for a Gaussian
_TINY_S = 1e-7
_LEARN_EVERY_S = 0.001


class LatencyModel:
    """The learnt L(b), in seconds. `samples` counts what it was told; every answer is None while that is zero."""

    __slots__ = (
        "_deviation", "_mean_run", "_mean_size", "_moment", "_moment_run", "_slope_down", "_slope_up", "_weight",
        "samples", "tail",
    )  # fmt: skip

    def __init__(self) -> None:
        self.samples = 0
        self.tail = 1.0  # q99 L(b) / L(b)
        self._weight = 0.0
        self._mean_size = 0.0
        self._mean_run = 0.0
        self._moment = 0.0  # Σ (b − mean)², faded
        self._moment_run = 0.0  # Σ (b − mean)(run − mean), faded
        self._slope_up = 0.0
        self._slope_down = 0.0
        self._deviation = _DEVIATION_PRIOR  # mean |run / L − 1|

    def observe(self, size: int, run_s: float) -> None:
        """A batch of `size` took `run_s` seconds."""
        if size < 1 or not run_s < math.inf:
            return
        if run_s < _TINY_S:
            run_s = _TINY_S
        self.samples += 1
        if self.samples > 1:
            run_s = self._clipped(size, run_s)
        weight = self._weight * _FADE + 1.0
        from_mean = size - self._mean_size
        mean_size = self._mean_size + from_mean / weight
        mean_run = self._mean_run + (run_s - self._mean_run) / weight
        moment = self._moment * _FADE + from_mean * (size - mean_size)
        moment_run = self._moment_run * _FADE + from_mean * (run_s - mean_run)
        steepest = mean_run / mean_size  # at this slope a = 0
        spread = moment + _SHRINK
        up = (moment_run + _SHRINK * steepest) / spread
        down = moment_run / spread
        self._slope_up = 0.0 if up < 0.0 else steepest if up > steepest else up
        self._slope_down = 0.0 if down < 0.0 else steepest if down > steepest else down
        self._weight, self._mean_size, self._mean_run = weight, mean_size, mean_run
        self._moment, self._moment_run = moment, moment_run
        self.tail = 1.0 + _TAIL * self._deviation * (1.0 + 2.0 / self.samples)

    def _clipped(self, size: int, run_s: float) -> float:
        """`run_s` as far from the expectation as a believable sample may be; also learns what is believable."""
        expected_s = self._at(size)
        error = run_s / expected_s - 1.0
        if error < -0.5 and self.samples <= _YOUNG:
            scale = 0.25 / self._weight
            self._weight *= scale
            self._moment *= scale
            self._moment_run *= scale
            self._deviation = _DEVIATION_PRIOR
            return run_s
        limit = max(_CLIP_DEVIATIONS * self._deviation, _CLIP_MIN)
        size_of_error = abs(error)
        rate = max(1.0 / self.samples, _LEARN_MIN)
        self._deviation += rate * (min(size_of_error, limit) - self._deviation)
        if size_of_error <= limit:
            return run_s
        return expected_s * (1.0 + limit) if error > 0.0 else expected_s * (1.0 - min(limit, 0.9))

    def _at(self, size: float) -> float:
        from_mean = size - self._mean_size
        return self._mean_run + from_mean * (self._slope_up if from_mean > 0.0 else self._slope_down)

    def expected_s(self, size: int) -> float | None:
        """L(size): the centre of the run time of a batch of `size`."""
        return self._at(size) if self.samples else None

    def q99_s(self, size: int) -> float | None:
        """What about 99 of 100 batches of `size` stay below."""
        return self._at(size) * self.tail if self.samples else None

    def saved_s(self, size: int) -> float:
        """L(size) + L(1) − L(size + 1): run time saved when one more joins `size` instead of going alone."""
        return self._at(size) + self._at(1) - self._at(size + 1)

    def largest(self, budget_s: float, limit: int, gap_s: float = 0.0, tail: float | None = None) -> int:
        """The largest b ≤ `limit` with tail · L(b) + (b − 1) · `gap_s` ≤ `budget_s`; 0 if not even one fits.

        `tail` defaults to that of q99. Without samples everything fits.
        """
        if not self.samples:
            return limit
        if tail is None:
            tail = self.tail
        # The law bends at the mean size. Try the piece above it first, then the piece below.
        bend, at_bend_s = self._mean_size, tail * self._mean_run + (self._mean_size - 1.0) * gap_s
        spare_s = budget_s - at_bend_s
        per_row_s = tail * (self._slope_up if spare_s >= 0.0 else self._slope_down) + gap_s
        if spare_s >= 0.0 and spare_s >= (limit - bend) * per_row_s:
            return limit
        if per_row_s <= 0.0:
            return 0  # constant below the bend, and too slow
        fits = bend + spare_s / per_row_s + 1e-9
        return int(min(fits, limit)) if fits >= 1.0 else 0  # a slope next to nothing makes it -inf


class LearningRule:
    """What most rules share: a checked `max_size`, its decisions made beforehand, and the learnt run times."""

    __slots__ = ("_latency", "_learn_s", "_sends", "max_size")
    watches_arrivals = False

    def __init__(self, max_size: int, parameter: str = "max_size") -> None:
        if isinstance(max_size, bool) or not isinstance(max_size, int) or not 1 <= max_size <= SIZE_LIMIT:
            raise BadDefinition(f"{parameter} must be a whole number from 1 to {SIZE_LIMIT}, not {max_size!r}")
        self.max_size = max_size
        # Indexed by queue length, so that the hot path makes no objects.
        self._sends = tuple(Dispatch(max(size, 1)) for size in range(max_size + 1))
        self._latency = LatencyModel()
        self._learn_s = -math.inf  # the next sample is taken from here on

    def on_arrival(self, now: float) -> None:
        """Arrivals teach this rule nothing."""

    def on_run(self, size: int, run_s: float, now: float) -> None:
        # Unbatched, runs end tens of thousands of times a second: learn from a thousand of them.
        if now >= self._learn_s:
            self._learn_s = now + _LEARN_EVERY_S
            self._latency.observe(size, run_s)

    def expected_run_s(self, size: int) -> float | None:
        return self._latency.expected_s(size)
