"""Pictures of results, as SVG text that is the same for the same figures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rewarm.bench.experiment_batching import POLICIES, WORKLOADS, Result
from rewarm.errors import SystemFault

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and orange that also differ in grey and for the colour-blind; p99 is the pale bar behind p50.
_COLOURS = {"uniform": "#0072b2", "bursty": "#d55e00"}
_BAR = 0.38


def batching_svg(result: Result) -> str:
    """Two panels: p50 and p99 latency with the SLO line, and cost per million requests."""
    figure = require_matplotlib()(figsize=(11, 4.6), layout="constrained")
    latency, cost = figure.subplots(1, 2, width_ratios=[3, 2])
    _latencies(latency, result)
    _costs(cost, result)
    quick = " (quick run)" if result.settings.quick else ""
    figure.suptitle(f"Batching policies on the digits model, {result.settings.rate:g} requests/s on average{quick}")
    return svg(figure)


def _latencies(axes: Axes, result: Result) -> None:
    # The scale is logarithmic, so bars stand on a floor and not on zero.
    floor_ms = min(0.5, min(max(row.p50_ms, 0.05) for row in result.rows) / 2)
    for side, workload in enumerate(WORKLOADS):
        rows = [result.row(policy, workload) for policy in POLICIES]
        places = [index + (side - 0.5) * (_BAR + 0.02) for index in range(len(rows))]
        colour = _COLOURS[workload]
        p50, p99 = [row.p50_ms for row in rows], [row.p99_ms for row in rows]
        axes.bar(places, [max(0.0, ms - floor_ms) for ms in p99], _BAR, floor_ms, color=colour, alpha=0.35,
                 label=f"{workload} p99")  # fmt: skip
        axes.bar(places, [max(0.0, ms - floor_ms) for ms in p50], _BAR, floor_ms, color=colour, label=f"{workload} p50")
        for place, ms in zip(places, p99, strict=True):
            axes.text(
                place,
                max(ms, floor_ms) * 1.06,
                f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}",
                ha="center",
                va="bottom",
                fontsize=8,
            )
    slo_ms = result.settings.slo_s * 1e3
    axes.axhline(slo_ms, color="black", linestyle="--", linewidth=1, label=f"SLO {slo_ms:g} ms")
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor_ms, top=6 * max(slo_ms, *(row.p99_ms for row in result.rows)))
    axes.set_ylabel("latency from intended send, ms (log)")
    axes.set_xticks(range(len(POLICIES)), list(POLICIES))
    axes.legend(fontsize=8, ncols=3, loc="upper right")


def _costs(axes: Axes, result: Result) -> None:
    for side, workload in enumerate(WORKLOADS):
        rows = [result.row(policy, workload) for policy in POLICIES]
        places = [index + (side - 0.5) * (_BAR + 0.02) for index in range(len(rows))]
        usd = [row.cost_usd / max(1, row.requests) * 1e6 for row in rows]
        axes.bar(places, usd, _BAR, color=_COLOURS[workload], label=workload)
        for place, value in zip(places, usd, strict=True):
            axes.text(place, value, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    axes.set_ylabel("cost, $ per million requests")
    axes.set_xticks(range(len(POLICIES)), list(POLICIES), fontsize=8)
    axes.margins(y=0.12)
    axes.legend(fontsize=8)


def require_matplotlib() -> Any:
    """The Figure class, or a SystemFault that says how to get it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemFault("drawing needs matplotlib; get it with: pip install 'rewarm[bench]'") from error
    return Figure


def svg(figure: Any) -> str:
    """The figure as text, the same each time for the same figure."""
    import matplotlib

    text = io.StringIO()
    # A fixed salt and no date: the same figures give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "rewarm", "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
