"""What the keep-alive experiment tries: costs, traces and their halves, and the parameters of each policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from rewarm.sim.costs import DEFAULTS, Costs, LangCosts
from rewarm.sim.run import UNLIMITED_BYTES
from rewarm.sim.traces.base import Options
from rewarm.sim.traces.catalogue import open_trace

GB = float(1 << 30)
#: "user": one layer and one instance per function, so that the offline optimum is one. "layered": all layers.
COSTS: dict[str, Costs] = {
    "user": Costs(bare_s=0.0, bare_bytes=0, langs={"python": LangCosts(0.0, 0)}, user=DEFAULTS.user),
    "layered": DEFAULTS,
}
MAX_INSTANCES = {"user": 1, "layered": 100}
BUSIEST_DROPPED = {"azure-2019": 20, "servegen": 0}
TRACES = tuple(BUSIEST_DROPPED)
#: Whole-trace levels of idle memory that the fronts are read at; a half has its share of them.
LEVELS_GB_H = {
    "azure-2019": (20.0, 40.0, 60.0, 80.0, 100.0, 130.0, 160.0, 200.0, 250.0),
    "servegen": (1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0),
}
BOUNDS = ("optimum", "never-unload")
RIVALS = ("fixed", "histogram", "faascache", "lru", "rainbowcake", "break_even", "barista")
#: Of these the grid is searched on the tuned half only; of the others every setting goes to the held-out half, too.
SEARCHED = ("rainbowcake",)
#: The published figures are for these (ASPLOS'24, the authors' code).
RAINBOWCAKE_PAPER = {"alpha": 0.996, "p": 0.8, "floor_s": 60.0}


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one policy. `params` as reported; `memory_gb` among them is the budget."""

    costs: str
    trace: str
    split: str  # tuned, heldout, or whole
    policy: str
    params: Mapping[str, Any]
    quick: bool = False

    @property
    def budget_bytes(self) -> int:
        return round(self.params["memory_gb"] * GB) if "memory_gb" in self.params else UNLIMITED_BYTES


def options(trace: str, split: str, quick: bool = False) -> Options:
    """The functions of a half: of those left without the busiest, in the order of the file, every other one.

    Of ServeGen six busy hours. A quick run has every fifth function, and of ServeGen three hours.
    """
    names = [function.name for function in open_trace(trace, Options(drop_busiest=BUSIEST_DROPPED[trace])).functions]
    first, step = {"tuned": (0, 2), "heldout": (1, 2), "whole": (0, 1)}[split]
    names = names[first :: step * 5 if quick else step]
    hours = (12.0, 15.0 if quick else 18.0) if trace == "servegen" else (0.0, math.inf)
    return Options(hours=hours, functions=frozenset(names))


def sweeps(trace: str, quick: bool) -> list[tuple[str, dict[str, Any]]]:
    """Policy and parameters, in the order of the report. Finer for the Azure day, where the goals are."""
    fine = trace == "azure-2019" and not quick
    points = 14 if fine else 9
    price_points = 20 if fine else points  # fronts are steep where memory is scarce, and a chord between two is not one
    prices = [2e-7, 5e-7, *_spaced(1e-6, 1e-3, price_points)]
    found: list[tuple[str, dict[str, Any]]] = [("never-unload", {})]
    found += [("optimum", {"price": price}) for price in prices]
    found += [("hazard", {"price": price}) for price in prices]
    found += [("fixed", {"ttl_s": 60.0 * minutes}) for minutes in (_MINUTES if fine else _MINUTES[::2])]
    found += [("histogram", {"span_s": 60.0 * minutes}) for minutes in _SPANS_MIN]
    for policy in ("faascache", "lru"):
        found += [(policy, {"memory_gb": memory_gb}) for memory_gb in _spaced(*_BUDGETS_GB[trace], points)]
    found += [("rainbowcake", params) for params in _rainbowcake(fine)]
    found += [("break_even", {"alpha": round(1.0 - rest, 9)}) for rest in _spaced(1e-6, 1e-3, price_points)]
    found += [("barista", {"slot_s": slot_s}) for slot_s in _SLOTS_S]
    return found


def comparison(quick: bool) -> list[Job]:
    """All layers, the Azure day: fixed 10 min first, then RainbowCake as published and changed, and hazard."""
    tried: list[tuple[str, dict[str, Any]]] = [("fixed", {"ttl_s": 600.0}), ("rainbowcake", RAINBOWCAKE_PAPER)]
    changes = (
        {"floor_s": 0.0}, {"prewarm": False}, {"sharing": False}, {"layers": False}, {"p": 0.99},
        {"alpha": 0.9999, "p": 0.99},
    )  # fmt: skip
    tried += [("rainbowcake", {**RAINBOWCAKE_PAPER, **change}) for change in changes]
    tried += [("hazard", {"price": price}) for price in (2e-5, 1e-4)]
    return [Job("layered", "azure-2019", "heldout", policy, params, quick) for policy, params in tried]


_MINUTES = (1, 1.5, 2, 3, 4, 7, 10, 15, 20, 30, 60, 80, 120, 160, 240)
_SPANS_MIN = (10, 20, 30, 60, 90, 120, 240, 480)
_SLOTS_S = (30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
#: From little more than the largest function to all that a half can use at a time.
_BUDGETS_GB = {"azure-2019": (0.7, 10.0), "servegen": (0.15, 1.7)}


def _spaced(first: float, last: float, count: int) -> list[float]:
    """`count` figures from first to last, each the same multiple of the one before, rounded to three digits."""
    return [float(f"{first * (last / first) ** (i / (count - 1)):.3g}") for i in range(count)]


def _rainbowcake(fine: bool) -> list[dict[str, Any]]:
    alphas = (0.996, 0.9997, 0.9999, 0.99997, 0.99999, 0.999999)
    ps, floors_s = ((0.8, 0.99, 0.999), (0.0, 60.0)) if fine else ((0.8, 0.99), (60.0,))
    grid = product(alphas, ps, floors_s, (True, False))
    return [{"alpha": alpha, "p": p, "floor_s": floor_s, "prewarm": prewarm} for alpha, p, floor_s, prewarm in grid]
