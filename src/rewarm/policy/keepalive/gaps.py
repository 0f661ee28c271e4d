"""Idle gaps as histograms, and the windows that are worth holding under them: the arithmetic of `hazard`.

A gap is the time from when a layer becomes idle to when it is asked for. Bins are log-spaced: what matters about a gap
is its order of magnitude; but the narrower they are, the closer to its moment a timer's layer is raised. 144 of them
from 1 s to a day are 8 % wide, and more gain nothing. All in plain Python: code that only names a policy must not pay
for numpy's import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

GAP_MIN_S, GAP_MAX_S, _LOG_BINS = 1.0, 86_400.0, 144
_PER_LOG = _LOG_BINS / math.log(GAP_MAX_S / GAP_MIN_S)

#: Where bins begin: one below 1 s, 144 log-spaced ones; the last begins at 24 h and has no end.
EDGES_S: tuple[float, ...] = (0.0, *(GAP_MIN_S * math.exp(i / _PER_LOG) for i in range(_LOG_BINS + 1)))
#: Of every bin but the endless one.
WIDTHS_S: tuple[float, ...] = tuple(after - before for before, after in pairwise(EDGES_S))
_ENDLESS = len(WIDTHS_S)
_RESCALE_AT = 1e12  # long before sums of floats of such size lose the small ones


def bin_of(gap_s: float) -> int:
    """The index of the bin that a gap of so many seconds falls into."""
    if gap_s < GAP_MIN_S:
        return 0
    return min(1 + int(math.log(gap_s / GAP_MIN_S) * _PER_LOG), _ENDLESS)


class GapHistogram:
    """Decayed weights by bin: a sample that `n` others followed weighs `decay ** n`.

    Half of a sample's weight goes to the two bins beside its own: gaps that repeat do so with some jitter.
    """

    __slots__ = ("count", "total", "_decay", "_step", "_weights")

    def __init__(self, decay: float = 1.0) -> None:
        self.count = 0  # samples ever
        self.total = 0.0  # weight now
        self._decay = decay
        self._step = 1.0  # what the next sample adds: growing it is cheaper than shrinking all the others
        self._weights = [0.0] * (_ENDLESS + 1)

    def add(self, index: int, weight: float = 1.0) -> None:
        """One more gap, in the bin `index`."""
        self._step /= self._decay
        self.count += 1
        self.total = self.total * self._decay + weight
        step, weights = self._step * weight, self._weights
        if 0 < index < _ENDLESS:
            weights[index] += 0.5 * step
            weights[index - 1] += 0.25 * step
            weights[index + 1] += 0.25 * step
        else:  # there is no bin on one of the sides
            weights[index] += step
        if self._step > _RESCALE_AT:
            self._weights = [value / self._step for value in weights]
            self._step = 1.0

    def mixed(self, prior: Sequence[float], prior_weight: float) -> list[float]:
        """Probabilities by bin: the samples, and `prior` (probabilities) with the weight of so many samples."""
        whole = self.total + prior_weight
        own, other = 1.0 / (self._step * whole), prior_weight / whole
        return [own * weight + other * p for weight, p in zip(self._weights, prior, strict=True)]


def plan(
    mass: Sequence[float], saved_s: float, rent: float, again_s: float, widths_s: Sequence[float] = WIDTHS_S,
    there: bool = True,
) -> list[tuple[int, int]]:  # fmt: skip
    """The bins to hold a layer through, as ranges [first, end) in ascending order; [] is to drop it at once.

    Unless it is `there`, it has to be raised for a range that begins at bin 0, too; [] is not to raise it.

    `mass` are the probabilities of the gap by bin, one more than `widths_s` (the endless one, through which nothing is
    held). A held layer saves `saved_s` if the gap ends, and costs `rent` a second. A gap inside a bin lasts half of it
    on average. To raise it again for a later range costs `again_s`. The value of a set of ranges is

        sum over held bins k of   saved_s * mass[k] - rent * widths_s[k] * (P(gap after k) + mass[k] / 2)
        less, for every range that begins at a bin k > 0,   again_s * P(gap in or after k)

    and the set with the highest value is found backwards over the bins with two states, held and dropped. For one range
    from 0 to b it is saved_s * F(b) - rent * E[min(gap, b)].
    """
    bins = len(widths_s)
    stay, enter = [False] * bins, [False] * bins
    held = dropped = 0.0  # the best value from here on, in either state, not yet divided by the chance to get here
    after = mass[bins]
    for k in range(bins - 1, -1, -1):
        p = mass[k]
        hold = held + saved_s * p - rent * widths_s[k] * (after + 0.5 * p)
        after += p
        raised = hold - again_s * after
        held = dropped
        if raised > dropped:
            enter[k] = True
            dropped = raised
        if hold > held:
            stay[k] = True
            held = hold
    ranges: list[tuple[int, int]] = []
    first = 0 if (stay if there else enter)[0] else -1
    for k in range(1, bins):
        if first < 0:
            if enter[k]:
                first = k
        elif not stay[k]:
            ranges.append((first, k))
            first = -1
    if first >= 0:
        ranges.append((first, bins))
    return ranges


def worth_per_s(mass: Sequence[float], first: int, saved_s: float, widths_s: Sequence[float] = WIDTHS_S) -> float:
    """The rent at which a layer that has idled until bin `first` is just worth holding on to.

    It is Gittins' index of holding: the best, over all ends, of what is saved by then for each second held.
    """
    gained, seconds, best = 0.0, 0.0, 0.0
    after = sum(mass[first:])
    for k in range(first, len(widths_s)):
        p = mass[k]
        after -= p
        gained += p
        seconds += widths_s[k] * (after + 0.5 * p)
        if gained > best * seconds:
            best = gained / seconds
    return best * saved_s
