"""The demo's picture: latency, memory and batches of one run, from zero and back to zero."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from demo_show import COLOURS, WORDS
from demo_traffic import Moment, Shot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MultipleLocator

_INK = "#2b2b2b"
_FAINT = "#8a8a8a"
_ZYGOTE = "#9ecae1"
_INSTANCE = "#66c2a5"
_DOTS = (0, (3, 3))
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rewarm", "svg.fonttype": "path", "font.size": 10, "text.color": _INK, "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlepad": 10, "legend.frameon": False, "legend.fontsize": 9,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What is drawn. `marks` are (seconds, text) on the time axis; `rungs` (start kind, ms, samples);
    `crowd` are those of the shots that were sent many at once."""

    shots: Sequence[Shot]
    crowd: Sequence[Shot]
    moments: Sequence[Moment]
    rungs: Sequence[tuple[str, float, int]]
    marks: Sequence[tuple[float, str]]
    summary: str


def draw(run: Run, path: Path) -> None:
    """Writes the picture as SVG; everything in it was measured in this run."""
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, hspace=0.04, wspace=0.04)
        figure = Figure(figsize=(13, 7.4), layout=layout, facecolor="white")
        grid = figure.add_gridspec(2, 2, width_ratios=[2.6, 1])
        latency = figure.add_subplot(grid[0, 0])
        memory = figure.add_subplot(grid[1, 0], sharex=latency)
        _latency(latency, run)
        _memory(memory, run)
        _ladder(figure.add_subplot(grid[0, 1]), run)
        _batches(figure.add_subplot(grid[1, 1]), run)
        figure.suptitle("rewarm: from zero and back to zero", x=0.012, ha="left", fontsize=15, fontweight="bold")
        figure.text(0.988, 0.985, run.summary, ha="right", va="top", fontsize=11)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _latency(axes: Axes, run: Run) -> None:
    for kind in ("warm", "lang", "cold"):
        shots = [shot for shot in run.shots if shot.start == kind]
        rare = kind != "warm"
        axes.scatter(
            [shot.at_s for shot in shots], [shot.latency_ms for shot in shots], s=46 if rare else 9,
            color=COLOURS[kind], alpha=1.0 if rare else 0.45, linewidths=0, zorder=3 if rare else 2,
            label=f"{WORDS[kind]} ({len(shots)})",
        )  # fmt: skip
        if rare and shots:
            first = shots[0]
            axes.annotate(
                f"{first.latency_ms:.0f} ms", (first.at_s, first.latency_ms), xytext=(8, 3),
                textcoords="offset points", color=COLOURS[kind], fontweight="bold",
            )  # fmt: skip
    for at_s, _ in run.marks:
        axes.axvline(at_s, color=_FAINT, linewidth=0.8, linestyle=_DOTS, alpha=0.5, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(0.1, max(shot.latency_ms for shot in run.shots) * 3)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color="#ececec", zorder=0)
    axes.tick_params(labelbottom=False)
    axes.set_ylabel("latency, ms (log)")
    axes.set_title("Every request, by what it found alive")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper right", bbox_to_anchor=(0.96, 1.0), markerscale=1.4)


def _memory(axes: Axes, run: Run) -> None:
    seconds = [moment.at_s for moment in run.moments]
    zygotes = [moment.zygote_bytes / 2**20 for moment in run.moments]
    both = [moment.instance_bytes / 2**20 + zygote for moment, zygote in zip(run.moments, zygotes, strict=True)]
    axes.fill_between(seconds, zygotes, step="post", color=_ZYGOTE, linewidth=0, label="zygote (Lang layer)")
    axes.fill_between(seconds, zygotes, both, step="post", color=_INSTANCE, linewidth=0, label="instances")
    axes.step(seconds, both, where="post", color=_INK, linewidth=1)
    top = max(both) * 1.7
    axes.set_ylim(0, top)
    for number, (at_s, text) in enumerate(run.marks):
        late = at_s > 0.8 * seconds[-1]
        height = top * (0.98 if late else 0.98 - 0.1 * (number % 4))
        axes.plot([at_s, at_s], [0, height], color=_FAINT, linewidth=0.8, linestyle=_DOTS, zorder=1)
        axes.annotate(
            text, (at_s, height), xytext=(-5 if late else 5, 0), textcoords="offset points", fontsize=9, va="top",
            ha="right" if late else "left",
        )  # fmt: skip
    axes.set_xlim(0, seconds[-1])
    axes.xaxis.set_major_locator(MultipleLocator(1 if seconds[-1] < 10 else 2))
    axes.set_xlabel("seconds")
    axes.set_ylabel("memory held, MB")
    axes.set_title("Memory kept for speed, as the ledger has it")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper right", bbox_to_anchor=(0.96, 0.88))


def _ladder(axes: Axes, run: Run) -> None:
    kinds = [kind for kind, _, _ in run.rungs]
    values = [latency_ms for _, latency_ms, _ in run.rungs]
    places = range(len(kinds))
    floor = 0.1
    axes.barh(places, [value - floor for value in values], 0.55, floor, color=[COLOURS[kind] for kind in kinds])
    for place, value in zip(places, values, strict=True):
        axes.text(value * 1.15, place, f"{value:.3g} ms", va="center", fontweight="bold")
    axes.set_xscale("log")
    axes.set_xlim(floor, max(values) * 12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(places, [WORDS[kind].replace(" ", "\n", 1) for kind in kinds])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("ms (log)")
    axes.set_title("One digit, three starts")


def _batches(axes: Axes, run: Run) -> None:
    counts = Counter(shot.batch_size for shot in run.crowd)
    axes.bar(list(counts), list(counts.values()), 0.8, color=COLOURS["warm"])
    widest = max(counts)
    axes.set_xlim(0, widest + 1)
    axes.set_xticks([1, *range(max(1, widest // 4), widest + 1, max(1, widest // 4))])
    axes.set_xlabel("requests in one call of the function")
    axes.set_ylabel("requests")
    axes.set_title("How the crowd was batched")
