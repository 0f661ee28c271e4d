"""The keep-alive experiment's picture: one panel a trace, both axes logarithmic, every line with its name beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewarm.bench import fronts
from rewarm.bench.experiment_keepalive import Result
from rewarm.bench.keepalive_findings import POLICIES
from rewarm.bench.keepalive_sweeps import TRACES
from rewarm.bench.plots import require_matplotlib, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart; the marker says it once more.
_STYLES = {
    "hazard": ("#d55e00", "o"),
    "fixed": ("#0072b2", "s"),
    "histogram": ("#009e73", "^"),
    "faascache": ("#cc79a7", "D"),
    "lru": ("#8c5a85", "v"),
    "rainbowcake": ("#e69f00", "P"),
    "break_even": ("#56b4e9", "X"),
    "barista": ("#7f7f7f", "d"),
    "optimum": ("#000000", "."),
    "never-unload": ("#000000", "*"),
}
_LABEL_GAP = 0.047  # of the height, between two names


def keepalive_svg(result: Result) -> str:
    """The held-out halves: Pareto fronts of start-up seconds against idle GB·h."""
    figure = require_matplotlib()(figsize=(13, 5.6), layout="constrained")
    for axes, trace in zip(figure.subplots(1, len(TRACES)), TRACES, strict=True):
        _panel(axes, result, trace)
    quick = " (quick run)" if result.quick else ""
    figure.suptitle(f"Keep-alive on the held-out half of the functions, one layer{quick}: lower left is better")
    return svg(figure)


def _panel(axes: Axes, result: Result, trace: str) -> None:
    ends: list[tuple[float, str, fronts.Point]] = []
    axes.set_xscale("log")
    axes.set_yscale("log")
    for policy in (*POLICIES, "optimum", "never-unload"):
        points = fronts.pareto(
            [one.point for one in result.of("user", trace, "heldout", policy) if min(one.point) > 0], lambda one: one
        )
        if not points:
            continue
        colour, marker = _STYLES[policy]
        axes.plot(
            *zip(*points, strict=True), color=colour, marker=marker, markersize=5,
            linewidth=2.4 if policy == "hazard" else 1.2, linestyle="--" if policy == "optimum" else "-",
            zorder=3 if policy == "hazard" else 2,
        )  # fmt: skip
        ends.append((points[0][1], policy, points[0]))
    axes.set_title(trace)
    axes.set_xlabel("idle memory, GB·h (log)")
    axes.set_ylabel("mean start-up, seconds a call (log)")
    axes.xaxis.set_minor_formatter("")  # on a short axis their names overlap
    axes.grid(which="both", color="#e6e6e6", linewidth=0.5)
    _name_lines(axes, ends)


def _name_lines(axes: Axes, ends: list[tuple[float, str, fronts.Point]]) -> None:
    """Each name left of the axis of figures, as high as its line begins, or as near to that as others leave room."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    left, right = axes.get_xlim()
    axes.set_xlim(left * (left / right) ** 0.32, right)
    at = 1.0
    for height, policy, point in sorted(ends, reverse=True):
        share = float(axes.transAxes.inverted().transform(axes.transData.transform((point[0], height)))[1])
        at = min(share, at - _LABEL_GAP)
        axes.annotate(
            policy, point, (0.015, at), textcoords="axes fraction", va="center", fontsize=9,
            color=_STYLES[policy][0], fontweight="bold" if policy == "hazard" else "normal",
            arrowprops={"arrowstyle": "-", "color": _STYLES[policy][0], "linewidth": 0.6, "alpha": 0.6},
        )  # fmt: skip
