"""The snapshot experiment's picture: first responses by way of restoring, on each storage, and what clones hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewarm.bench.plots import require_matplotlib, svg
from rewarm.bench.snapshot_rows import NATIVE, THROTTLED, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart.
_OURS, _OTHER, _WARM, _COLD = "#0072b2", "#999999", "#e69f00", "#d55e00"
_COLOURS = {"layered": _OURS, "uffd": _OURS, "prefetch": _OURS, "warm": _WARM, "cached": _WARM, "cold-boot": _COLD}
_TITLES = {NATIVE: "the disk as it is", THROTTLED: "reads throttled"}


def snapshot_svg(result: Result) -> str:
    """A panel for each storage, with a logarithmic scale, and one of the clones' memory."""
    storages = [storage for storage in (NATIVE, THROTTLED) if any(row.case.storage == storage for row in result.rows)]
    figure = require_matplotlib()(figsize=(4 + 5 * len(storages), 5), layout="constrained")
    *panels, memory = figure.subplots(1, len(storages) + 1, width_ratios=[5] * len(storages) + [3])
    for axes, storage in zip(panels, storages, strict=True):
        _times(axes, [row for row in result.rows if row.case.storage == storage], _TITLES[storage])
    _density(memory, result)
    quick = " (quick run)" if result.settings.quick else ""
    figure.suptitle(f"From starting QEMU ({result.guest['accel']}) to the function's first response{quick}")
    return svg(figure)


def _times(axes: Axes, rows: list[Row], title: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    # The scale is logarithmic, so bars stand on a floor and not on zero.
    floor_ms, slowest_ms = min(row.span_ms[0] for row in rows) / 2, max(row.span_ms[1] for row in rows)
    for place, row in enumerate(reversed(rows)):
        median_ms, (min_ms, max_ms) = row.first_response_ms, row.span_ms
        axes.barh(place, median_ms - floor_ms, left=floor_ms, color=_COLOURS.get(row.case.name, _OTHER))
        axes.plot([min_ms, max_ms], [place, place], color="black", linewidth=1)
        axes.text(max_ms, place, f" {median_ms:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.case.name for row in reversed(rows)], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if slowest_ms < 100 * floor_ms else (1,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(floor_ms, 2.5 * slowest_ms)
    axes.set_xlabel("ms (log); line: fastest to slowest", fontsize=8)
    axes.set_title(title, fontsize=9)


def _density(axes: Axes, result: Result) -> None:
    held_mb = [result.pss_mb(policy) or 0.0 for policy in result.density]
    colours = [_COLOURS.get(policy, _OTHER) for policy in result.density]
    axes.bar(range(len(held_mb)), held_mb, color=colours)
    for place, value_mb in enumerate(held_mb):
        axes.text(place, value_mb, f"{value_mb:.0f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(held_mb)), list(result.density), fontsize=8)
    axes.margins(y=0.14)
    axes.set_title(f"PSS of {result.settings.clones} clones together, MB", fontsize=9)
