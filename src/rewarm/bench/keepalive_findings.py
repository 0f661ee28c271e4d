"""What the keep-alive experiment's runs say: start-up times at equal idle memory, ratios, and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewarm.bench import fronts
from rewarm.bench.experiment_keepalive import CV_CLASSES, FEW, Outcome, Result
from rewarm.bench.keepalive_sweeps import LEVELS_GB_H, RAINBOWCAKE_PAPER, RIVALS, TRACES
from rewarm.bench.report import Verdict

OURS = "hazard"
POLICIES = (OURS, *RIVALS)
RIVAL_RATIO_MAX, OPTIMUM_RATIO_MAX = 0.6, 1.3
#: RainbowCake (ASPLOS'24), abstract: against OpenWhisk's fixed 10 min and others.
PUBLISHED_STARTUP_PCT, PUBLISHED_WASTE_PCT = -68.0, -77.0
REGULAR = "< 0.5"
_CLASS_SHARES = (0.1, 0.3)


@dataclass(frozen=True, slots=True)
class Level:
    """What each policy's front says at one level of idle memory. None: it has no point that spends so little."""

    level_gb_h: float  # of the whole trace
    idle_gb_h: float  # of these functions
    startup_s: Mapping[str, float | None]

    @property
    def rival(self) -> str | None:
        """The best of the others."""
        values = {name: value for name in RIVALS if (value := self.startup_s.get(name)) is not None}
        return min(values, key=values.__getitem__, default=None)

    @property
    def to_rival(self) -> float | None:
        return self._ratio(self.rival)

    @property
    def to_optimum(self) -> float | None:
        return self._ratio("optimum")

    def _ratio(self, other: str | None) -> float | None:
        ours, theirs = self.startup_s.get(OURS), self.startup_s.get(other) if other else None
        return ours / theirs if ours is not None and theirs else None

    def to_json(self) -> dict[str, Any]:
        return {
            "level_gb_h": self.level_gb_h, "idle_gb_h": _digits(self.idle_gb_h),
            "startup_s": {name: _digits(value) for name, value in self.startup_s.items()},
            "best_rival": self.rival, "hazard_to_best_rival": _digits(self.to_rival),
            "hazard_to_optimum": _digits(self.to_optimum),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class ClassLevel:
    """The same for the functions of one CV class alone, at a share of what it takes never to unload them."""

    cv: str
    functions: int
    calls: int
    share: float
    level: Level

    def to_json(self) -> dict[str, Any]:
        level = self.level.to_json()
        del level["level_gb_h"]
        return {"cv": self.cv, "functions": self.functions, "calls": self.calls, "share": self.share, **level}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A setting beside fixed 10 min on the same costs; changes in percent of it."""

    outcome: Outcome
    startup_pct: float
    waste_pct: float
    idle_pct: float

    def to_json(self) -> dict[str, Any]:
        changes = {"startup_pct": self.startup_pct, "waste_pct": self.waste_pct, "idle_pct": self.idle_pct}
        return {**self.outcome.to_json(), **{name: round(value, 1) for name, value in changes.items()}}


def half_share(result: Result, trace: str, split: str) -> float:
    """The part of the trace's GB·h that a half has: of what is idle if nothing is ever unloaded."""
    (half,) = result.of("user", trace, split, "never-unload")
    (whole,) = result.of("user", trace, "whole", "never-unload")
    return half.idle_gb_h / whole.idle_gb_h


def levels(result: Result, trace: str, split: str = "heldout") -> list[Level]:
    share = half_share(result, trace, split)
    points = {name: [one.point for one in result.of("user", trace, split, name)] for name in (*POLICIES, "optimum")}
    return [
        Level(gb_h, gb_h * share, {name: fronts.suffered_at(points[name], gb_h * share) for name in points})
        for gb_h in LEVELS_GB_H[trace]
    ]


def class_levels(result: Result, trace: str) -> list[ClassLevel]:
    """Each class has its own fronts: of what its functions held and waited in the runs over the held-out half."""
    outcomes = result.of("user", trace, "heldout")
    (kept,) = (one for one in outcomes if one.job.policy == "never-unload")
    found = []
    for cv in (name for name in (*CV_CLASSES, FEW) if name in kept.classes):
        whole = kept.classes[cv]
        points: dict[str, list[fronts.Point]] = {name: [] for name in (*POLICIES, "optimum")}
        for one in outcomes:
            if one.job.policy in points:
                share = one.classes[cv]
                points[one.job.policy].append((share.idle_gb_h, share.startup_s / share.calls))
        for part in _CLASS_SHARES:
            idle_gb_h = whole.idle_gb_h * part
            startup_s = {name: fronts.suffered_at(points[name], idle_gb_h) for name in points}
            level = Level(idle_gb_h, idle_gb_h, startup_s)
            found.append(ClassLevel(cv, whole.functions, whole.calls, part, level))
    return found


def comparisons(result: Result) -> list[Comparison]:
    """What was run over the Azure day with all layers; fixed 10 min comes first."""
    base, *others = result.of("layered", "azure-2019", "heldout")
    return [
        Comparison(
            one,
            _change(one.startup_s_mean, base.startup_s_mean),
            _change(one.wasted_gb_h, base.wasted_gb_h),
            _change(one.idle_gb_h, base.idle_gb_h),
        )
        for one in (base, *others)
    ]


def verdicts(result: Result) -> list[Verdict]:
    found = []
    for trace in TRACES:
        at = levels(result, trace)
        found += [
            _worst(f"{trace}: hazard / best rival", [level.to_rival for level in at], RIVAL_RATIO_MAX),
            _worst(f"{trace}: hazard / offline optimum without pre-warm", [one.to_optimum for one in at],
                   OPTIMUM_RATIO_MAX),
        ]  # fmt: skip
    regular = [one.level.to_optimum for one in class_levels(result, "azure-2019") if one.cv == REGULAR]
    found.append(_worst("azure-2019: hazard / that optimum, functions with regular gaps", regular, 1.0))
    published = next(one for one in comparisons(result) if dict(one.outcome.job.params) == RAINBOWCAKE_PAPER)
    for what, change, paper in (
        ("start-up", published.startup_pct, PUBLISHED_STARTUP_PCT),
        ("waste", published.waste_pct, PUBLISHED_WASTE_PCT),
    ):
        claim = f"azure-2019: {what} of RainbowCake against fixed 10 min, published {paper:.0f} %"
        found.append(Verdict(claim, f"{change:+.0f} %", change <= paper))
    return found


def to_json(result: Result) -> dict[str, Any]:
    """`rows` has the published keys: both halves, one layer. Of `ratios` and `cv_classes` the held-out half."""
    splits = ("tuned", "heldout")
    return {
        "experiment": "keepalive",
        "machine": dict(result.machine),
        "quick": result.quick,
        "rows": [one.to_json() for trace in TRACES for split in splits for one in result.of("user", trace, split)],
        "ratios": {trace: [level.to_json() for level in levels(result, trace)] for trace in TRACES},
        "cv_classes": {trace: [one.to_json() for one in class_levels(result, trace)] for trace in TRACES},
        "layered": [one.to_json() for one in comparisons(result)],
        "verdicts": [asdict(verdict) for verdict in verdicts(result)],
    }


def _worst(claim: str, ratios: Sequence[float | None], limit: float) -> Verdict:
    known = [ratio for ratio in ratios if ratio is not None]
    within = sum(ratio <= limit for ratio in known)
    measured = f"{min(known):.2f} to {max(known):.2f}; at {within} of {len(known)} levels" if known else "no level"
    return Verdict(f"{claim} ≤ {limit:g}", measured, bool(known) and within == len(known))


def _change(value: float, base: float) -> float:
    return 100.0 * (value / base - 1.0) if base else 0.0


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
