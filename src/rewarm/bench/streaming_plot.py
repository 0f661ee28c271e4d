"""The streaming experiment's picture: first answers by mode, and two starts of each model layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rewarm.bench.plots import require_matplotlib, svg
from rewarm.bench.streaming_rows import Result, Row, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart; neighbours on a lane have one of two shades.
_LOAD, _COMPUTE = ("#0072b2", "#56b4e9"), ("#009e73", "#7fd0b4")
_BUBBLE, _OURS, _OTHER, _WARM = "#d55e00", "#0072b2", "#999999", "#e69f00"
_LANE = 0.34


def streaming_svg(result: Result) -> str:
    """One row a model: bars of its cold starts on torch, then its timelines without and with pins."""
    models = result.settings.models
    figure = require_matplotlib()(figsize=(15, 0.8 + 3.1 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 3, squeeze=False, width_ratios=[2, 3, 3])
    for (bars, *lanes), model in zip(axes, models, strict=True):
        _bars(bars, result, model)
        told = [timeline for timeline in result.timelines if timeline.model == model]
        end_ms = 1.02 * max(timeline.end_ms for timeline in told)
        for lane, timeline in zip(lanes, told, strict=True):
            _timeline(lane, timeline, end_ms)
    axes[0][1].legend(*_legend(), fontsize=8, loc="upper right", ncols=3)
    quick = " (quick run)" if result.settings.quick else ""
    figure.suptitle(f"First answers of models whose files are not in memory{quick}")
    return svg(figure)


def _bars(axes: Axes, result: Result, model: str) -> None:
    rows = [row for row in result.rows if row.case[:2] == (model, "torch") and row.case.cache == "cold"]
    rows += [row for row in (result.row(model, "torch", "warm", "warm"),) if row is not None]
    rows.sort(key=lambda row: -row.ttfi_ms)
    axes.barh(range(len(rows)), [row.ttfi_ms for row in rows], color=[_colour(row) for row in rows])
    for place, row in enumerate(rows):
        axes.text(row.ttfi_ms, place, f" {row.ttfi_ms:.0f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7)
    axes.set_title(f"{model}: ms to the first answer", fontsize=9)
    axes.margins(x=0.16)


def _colour(row: Row) -> str:
    if row.case.mode == "warm":
        return _WARM
    return _OURS if row.case.mode == "streamed" else _OTHER


def _label(row: Row) -> str:
    return row.case.mode + (f" + {row.case.pinned_pct} %" if row.case.pinned_pct else "")


def _timeline(axes: Axes, timeline: Timeline, end_ms: float) -> None:
    _lane(axes, 1.0, timeline.loads_ms, _LOAD)
    _lane(axes, 0.0, timeline.computes_ms, _COMPUTE)
    gaps = [(before[1], after[0]) for before, after in pairwise(timeline.computes_ms)]
    axes.broken_barh([(begin, end - begin) for begin, end in gaps], (-_LANE / 2, _LANE), facecolor="none",
                     edgecolor=_BUBBLE, hatch="////", linewidth=0)  # fmt: skip
    axes.set_yticks([0.0, 1.0], ["compute", "load"], fontsize=8)
    axes.set_ylim(-0.5, 1.75)
    axes.set_xlim(0.0, end_ms)
    waited_ms = sum(end - begin for begin, end in gaps)
    pinned = f"first {timeline.pinned_pct} % pinned" if timeline.pinned_pct else "nothing pinned"
    axes.set_title(f"{timeline.model}, {pinned}: {timeline.end_ms:.0f} ms, {waited_ms:.0f} of them bubbles", fontsize=9)
    axes.set_xlabel("ms from the start of the load", fontsize=8)


def _lane(axes: Axes, place: float, spans: Sequence[tuple[float, float]], shades: tuple[str, str]) -> None:
    for number, shade in enumerate(shades):
        own = [(begin, end - begin) for begin, end in spans[number::2]]
        axes.broken_barh(own, (place - _LANE / 2, _LANE), facecolor=shade, linewidth=0)


def _legend() -> tuple[list[object], list[str]]:
    from matplotlib.patches import Patch

    bubble = Patch(facecolor="none", edgecolor=_BUBBLE, hatch="////", linewidth=0)
    return [Patch(color=_LOAD[0]), Patch(color=_COMPUTE[0]), bubble], ["layer read", "layer computed", "bubble"]
