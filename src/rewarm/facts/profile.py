"""Run times by batch size, as `rewarm profile` measured them of one revision's code."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from rewarm.errors import BadDefinition

SIZE_MAX = 256  # the largest batch a profile may hold: plans are made for every size up to it
BODIES_MAX = 64


@dataclass(frozen=True, slots=True)
class Profile:
    """`run_s[k][i]`: seconds that a batch of `sizes[i]` requests took whose bodies had `body_bytes[k]` bytes each.

    Both axes rise, and sizes begin with 1. Raises BadDefinition for anything else.
    """

    sizes: tuple[int, ...]
    body_bytes: tuple[int, ...]
    run_s: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        _check_rising("sizes", self.sizes, SIZE_MAX)
        _check_rising("body_bytes", self.body_bytes, math.inf)
        if self.sizes[0] != 1:
            raise BadDefinition(f"the sizes of a profile begin with 1, not {self.sizes[0]}")
        if len(self.body_bytes) > BODIES_MAX:
            raise BadDefinition(f"a profile has at most {BODIES_MAX} sizes of bodies, not {len(self.body_bytes)}")
        if len(self.run_s) != len(self.body_bytes) or any(len(row) != len(self.sizes) for row in self.run_s):
            raise BadDefinition("run_s of a profile has a row for each of body_bytes, with a time for each of sizes")
        for run_s in (run_s for row in self.run_s for run_s in row):
            if type(run_s) not in (int, float) or not 0 < run_s < math.inf:
                raise BadDefinition(f"run_s of a profile holds seconds above 0, not {run_s!r}")

    def curve_s(self, body_bytes: float = 0.0) -> tuple[float, ...]:
        """Seconds of batches of 1, 2, … up to the largest measured size, when the largest body has `body_bytes`.

        Linear between what was measured, in both directions. Below the smallest body it stays, above the largest it
        goes on at the last slope. Never falling: where noise made more work quicker, it takes the time of less.
        """
        row = self._row(body_bytes)
        curve: list[float] = []
        for low, high, low_s, high_s in zip(self.sizes, self.sizes[1:], row, row[1:], strict=False):
            curve += [low_s + (high_s - low_s) * step / (high - low) for step in range(high - low)]
        return tuple(accumulate((*curve, row[-1]), max))

    def _row(self, body_bytes: float) -> tuple[float, ...]:
        at = self.body_bytes
        if len(at) == 1 or body_bytes <= at[0]:
            return self.run_s[0]
        upper = min(bisect_left(at, body_bytes), len(at) - 1)
        part = (body_bytes - at[upper - 1]) / (at[upper] - at[upper - 1])
        lows, highs = (tuple(max(times) for times in zip(*self.run_s[:k], strict=True)) for k in (upper, upper + 1))
        return tuple(low + (high - low) * part for low, high in zip(lows, highs, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {
            "sizes": list(self.sizes), "body_bytes": list(self.body_bytes), "run_s": [list(row) for row in self.run_s],
        }  # fmt: skip

    @staticmethod
    def from_json(data: Any) -> Profile:
        """Fields beside its own are ignored. Raises BadDefinition."""
        if not isinstance(data, Mapping):
            raise BadDefinition("a profile is an object with sizes, body_bytes and run_s")
        try:
            return Profile(tuple(data["sizes"]), tuple(data["body_bytes"]), tuple(tuple(row) for row in data["run_s"]))
        except (KeyError, TypeError) as error:
            raise BadDefinition(f"not a profile with sizes, body_bytes and run_s: {error!r}") from error


def _check_rising(label: str, values: Sequence[int], limit: float) -> None:
    if not values or any(type(value) is not int or not 0 <= value <= limit for value in values):
        bound = f" up to {limit}" if limit < math.inf else ""
        raise BadDefinition(f"{label} of a profile are whole numbers{bound}, not {list(values)!r}")
    if any(high <= low for low, high in pairwise(values)):
        raise BadDefinition(f"{label} of a profile rise, each only once; they are {list(values)}")
