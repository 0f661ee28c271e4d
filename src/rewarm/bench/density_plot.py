"""The density experiment's picture: what callers waited for starts, and what idle memory was good for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewarm.bench.experiment_density import Result
from rewarm.bench.plots import require_matplotlib, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart.
_MEAN, _P99, _USED, _WASTED = "#0072b2", "#56b4e9", "#009e73", "#d55e00"
_BAR = 0.38


def density_svg(result: Result) -> str:
    """Two panels: mean and p99 start-up, and used and wasted idle memory."""
    figure = require_matplotlib()(figsize=(11, 4.4), layout="constrained")
    startup, memory = figure.subplots(1, 2)
    rows = result.rows
    _bars(startup, result, {"mean": ([row.startup.mean for row in rows], _MEAN),
                            "p99": ([row.startup.p99 for row in rows], _P99)})  # fmt: skip
    startup.set_ylabel("start-up over all requests, ms")
    _bars(memory, result, {"used": ([row.used_mb_s for row in rows], _USED),
                           "wasted": ([row.wasted_mb_s for row in rows], _WASTED)})  # fmt: skip
    memory.set_ylabel("idle memory, MB·s")
    settings = result.settings
    quick = " (quick run)" if settings.quick else ""
    figure.suptitle(
        f"{settings.functions} functions, memory for {settings.budget_share:.0%} of them, "
        f"{settings.duration_s:g} s a policy{quick}"
    )
    return svg(figure)


def _bars(axes: Axes, result: Result, series: dict[str, tuple[list[float], str]]) -> None:
    for side, (name, (values, colour)) in enumerate(series.items()):
        places = [index + (side - 0.5) * (_BAR + 0.02) for index in range(len(values))]
        axes.bar(places, values, _BAR, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value, f"{value:.0f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(result.rows)), [row.policy for row in result.rows], fontsize=8)
    axes.margins(y=0.14)
    axes.legend(fontsize=8)
