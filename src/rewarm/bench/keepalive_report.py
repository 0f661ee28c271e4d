"""The keep-alive experiment's files: `keepalive.json`, `keepalive.md` and `keepalive.svg`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewarm.bench import keepalive_findings as findings
from rewarm.bench.experiment_keepalive import Result
from rewarm.bench.keepalive_sweeps import TRACES
from rewarm.bench.report import markdown_table, write_files
from rewarm.units import human_bytes

_METHOD = """\
Simulated by `rewarm experiment keepalive{quick}`. Start-up seconds are the mean over all calls, those without a
start among them; idle GB·h is what instances held while nothing ran in them. Traces: the shipped Azure day without its
20 busiest functions (380 functions, each call at a moment drawn within its minute) and six hours (12 to 18) of the
shipped 60 ServeGen clients (1 s a call). Of the functions in the order of the file the first, third, … are the tuned
half, the others the held-out half. RainbowCake's grid (alpha, p, floor, pre-warm) is searched on the tuned half and its
front carried over; of the other policies, which have one parameter, every setting is run on both.

**One layer, one instance per function**, so that the offline optimum is one: it goes through the same simulator with
the same costs, knows the next call, keeps an instance if price · MB · gap is less than its start, and raises nothing
ahead. Start-up times are drawn once per function (lognormal, median 0.8 s, sigma 0.8), sizes are the trace's (ServeGen:
55 MB). Calls that come while the instance runs wait for it; that wait is not start-up. Every call that needs a start is
`cold` here. The budgets of FaasCache and LRU bound busy instances, too.

Between two settings a front is its lower convex hull, linear between the corners: some functions can have the one
setting, the rest the other. A dash: the policy has no setting that spends so little. Levels are those of the whole
trace; the half has its share of them, by what it takes never to unload ({shares})."""


def to_markdown(result: Result) -> str:
    machine = result.machine
    shares = ", ".join(f"{trace} {findings.half_share(result, trace, 'heldout'):.1%}" for trace in TRACES)
    quick = " --quick" if result.quick else ""
    lines = [
        "# Keep-alive: start-up time against idle memory",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {human_bytes(machine['memory_bytes'])}, "
        f"Python {machine['python']}; the figures do not depend on it.",
        "",
        *(["*A `--quick` run: every fifth function, three hours of ServeGen, coarser sweeps.*", ""] if quick else []),
        *_METHOD.format(quick=quick, shares=shares).splitlines(),
        "",
        "## What was expected",
        "",
        *markdown_table(
            ["expected", "measured", "holds"],
            [[one.claim, one.measured, "yes" if one.holds else "**no**"] for one in findings.verdicts(result)],
        ),
        "",
    ]
    for trace in TRACES:
        lines += [f"## {trace}, held-out half: mean start-up seconds at equal idle memory", "",
                  *_levels(findings.levels(result, trace)), ""]  # fmt: skip
    lines += _classes(result)
    return "\n".join([*lines, *_rainbowcake(result), "![Fronts](keepalive.svg)", ""])


def write(result: Result, folder: Path) -> list[Path]:
    """Writes the three files into `folder`, made if need be, and returns their paths."""
    from rewarm.bench.keepalive_plot import keepalive_svg

    data = findings.to_json(result)
    return write_files(folder, "keepalive", data, to_markdown(result), keepalive_svg(result), indent=1)


def _levels(levels: list[findings.Level]) -> list[str]:
    names = list(levels[0].startup_s)
    titles = ["GB·h, whole", "GB·h, half", *names, "hazard / best rival", "hazard / optimum"]
    rows = [
        [
            f"{level.level_gb_h:g}", f"{level.idle_gb_h:.1f}",
            *(_seconds(level.startup_s[name], best=name == level.rival) for name in names),
            _ratio(level.to_rival), _ratio(level.to_optimum),
        ]
        for level in levels
    ]  # fmt: skip
    return markdown_table(titles, rows)


def _classes(result: Result) -> list[str]:
    names = [*findings.POLICIES, "optimum"]
    titles = ["trace", "CV of gaps", "functions", "calls", "of all", "GB·h", *names, "/ rival", "/ optimum"]
    rows = [
        [
            trace, one.cv, str(one.functions), f"{one.calls:,}", f"{one.share:.0%}", f"{one.level.idle_gb_h:.2f}",
            *(_seconds(one.level.startup_s[name], best=name == one.level.rival) for name in names),
            _ratio(one.level.to_rival), _ratio(one.level.to_optimum),
        ]
        for trace in TRACES
        for one in findings.class_levels(result, trace)
    ]  # fmt: skip
    return [
        "## By regularity of the calls, held-out half",
        "",
        "Functions by the coefficient of variation of the gaps between their calls. Each class has fronts of its own,",
        "read at a tenth and at three tenths of the idle memory that it takes never to unload its functions.",
        "",
        *markdown_table(titles, rows),
        "",
    ]  # fmt: skip


def _rainbowcake(result: Result) -> list[str]:
    titles = ["policy", "settings", "start-up s", "p99", "cold %", "idle GB·h", "wasted", "start-up", "waste", "idle"]
    rows = [
        [
            one.outcome.job.policy, _words(one.outcome.job.params), f"{one.outcome.startup_s_mean:.4f}",
            f"{one.outcome.startup_s_p99:.2f}", f"{one.outcome.cold_pct:.3f}", f"{one.outcome.idle_gb_h:.1f}",
            f"{one.outcome.wasted_gb_h:.1f}", f"{one.startup_pct:+.0f} %", f"{one.waste_pct:+.0f} %",
            f"{one.idle_pct:+.0f} %",
        ]
        for one in findings.comparisons(result)
    ]  # fmt: skip
    return [
        "## RainbowCake against fixed 10 min: all layers, up to 100 instances per function, azure-2019, held-out half",
        "",
        f"Published: start-up {findings.PUBLISHED_STARTUP_PCT:.0f} %, waste {findings.PUBLISHED_WASTE_PCT:.0f} %. "
        "The last three columns compare with fixed 10 min on the same costs, the simulator's defaults.",
        "",
        *markdown_table(titles, rows),
        "",
    ]


def _words(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in params.items())


def _seconds(value: float | None, *, best: bool) -> str:
    if value is None:
        return "–"
    text = f"{value:.4f}"
    return f"*{text}*" if best else text


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
