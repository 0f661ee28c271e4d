"""The density experiment's files: `density.json`, `density.md` and `density.svg`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewarm.bench import density_arrivals, density_functions
from rewarm.bench.experiment_density import Result, Row
from rewarm.bench.report import Verdict, markdown_table, write_files
from rewarm.facts.sandbox import StartKind
from rewarm.units import human_bytes

OURS = "hazard"
TITLES = ("policy", "warm / lang / bare / cold %", "start-up ms mean", "p50", "p99", "latency ms mean", "its p99",
          "used MB·s", "wasted MB·s", "evictions", "errors")  # fmt: skip
_KINDS = (StartKind.WARM, StartKind.LANG, StartKind.BARE, StartKind.COLD)

_METHOD = """\
{functions} functions ({runtimes}, in turns), each with {held[0]} to {held[1]} MB of its own that it touches when it
starts, and {start[0]:g} to {start[1]:g} s that its start waits. All instances together hold {all_warm}; the budget is
{budget}, {share:.0%} of that and the runtimes below them. The load is {span_min:.0f} minutes of {trace} from hour
{hour:g} on, {speed:g} times as fast, so {duration_s:g} s for each policy: {requests} requests, the same for all, to
functions with {calls_min} calls or more and at most {per_hour:g} an hour of trace, drawn with seed {seed}. One
instance a function at most; each policy begins with nothing alive.

Durations among a policy's parameters are divided by {speed:g} and prices of a MB·s multiplied by it, so that
`fixed-lru` is ten minutes at the trace's own speed; starts take what they take. `rainbowcake` has its published
alpha, 0.996, and `rainbowcake-at-price` the alpha that says the same as hazard's default price. Constants that are no
parameters stay: hazard's memory pressure fades within ten real minutes, which is longer than the run.

Start-up is `Rewarm-Init-Ms`, over all good answers, 0 for those that found a warm instance. Latency counts from the
intended send time and has in it, too, the wait for memory and for the function's one instance. Used and wasted idle
memory are the server's own figures; what is idle at the end is wasted. MB are 2**20 bytes."""


def verdicts(result: Result) -> list[Verdict]:
    """No errors, and hazard against each other policy, in both figures of the trade."""
    ours, errors = result.row(OURS), sum(row.errors for row in result.rows)
    found = [Verdict("no errors", str(errors), errors == 0)]
    for row in result.rows:
        if row.policy != OURS:
            found.append(_no_more(f"mean start-up of {OURS} / {row.policy}", ours.startup.mean, row.startup.mean))
            found.append(_no_more(f"wasted MB·s of {OURS} / {row.policy}", ours.wasted_mb_s, row.wasted_mb_s))
    return found


def cells(row: Row) -> list[str]:
    """The row as TITLES names its columns."""
    startup, latency = row.startup, row.latency
    return [
        row.policy, " / ".join(f"{row.share_pct(kind):.1f}" for kind in _KINDS), f"{startup.mean:.0f}",
        f"{startup.p50:.0f}", f"{startup.p99:.0f}", f"{latency.mean:.0f}", f"{latency.p99:.0f}",
        f"{row.used_mb_s:.0f}", f"{row.wasted_mb_s:.0f}", str(row.evictions), str(row.errors),
    ]  # fmt: skip


def to_json(result: Result) -> dict[str, Any]:
    return {
        "experiment": "density", "machine": dict(result.machine), "settings": result.settings.to_json(),
        "runtimes": list(result.runtimes), "note": result.note, "all_warm_bytes": result.all_warm_bytes,
        "budget_bytes": result.budget_bytes, "rows": [row.to_json() for row in result.rows],
        "verdicts": [asdict(verdict) for verdict in verdicts(result)],
    }  # fmt: skip


def to_markdown(result: Result) -> str:
    machine, settings = result.machine, result.settings
    lines = [
        "# Density: sixty functions in memory for a fifth of them" if settings.functions == 60
        else f"# Density: {settings.functions} functions in memory for a part of them",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {human_bytes(machine['memory_bytes'])}, "
        f"{machine['system']} {machine['kernel']}, Python {machine['python']}; load average before it "
        f"{machine['load_average_1min']:g}.",
        "",
        *(["*A `--quick` run: fewer functions and a short load.*", ""] if settings.quick else []),
        *([f"*{result.note}.*", ""] if result.note else []),
        *_method(result).splitlines(), "",
        *_table(result), "",
        *markdown_table(
            ["expected", "measured", "holds"],
            [[one.claim, one.measured, "yes" if one.holds else "**no**"] for one in verdicts(result)],
        ), "",
        *(f"- `{row.policy}`: `--keepalive {row.keepalive}`" for row in result.rows), "",
        "![Start-up and wasted memory](density.svg)", "",
    ]  # fmt: skip
    return "\n".join(lines)


def write(result: Result, folder: Path) -> list[Path]:
    """Writes the three files into `folder`, made if need be, and returns their paths."""
    from rewarm.bench.density_plot import density_svg

    return write_files(folder, "density", to_json(result), to_markdown(result), density_svg(result))


def _method(result: Result) -> str:
    settings = result.settings
    return _METHOD.format(
        functions=settings.functions, runtimes=", ".join(result.runtimes), held=density_functions.HELD_MB,
        start=density_functions.START_S, all_warm=human_bytes(result.all_warm_bytes),
        budget=human_bytes(result.budget_bytes), share=settings.budget_share, trace=density_arrivals.TRACE,
        span_min=settings.duration_s * settings.compression / 60, hour=density_arrivals.FROM_HOUR,
        speed=settings.compression, duration_s=settings.duration_s, requests=result.rows[0].requests,
        calls_min=density_arrivals.CALLS_MIN, per_hour=density_arrivals.PER_HOUR_MAX, seed=settings.seed,
    )  # fmt: skip


def _table(result: Result) -> list[str]:
    return markdown_table(list(TITLES), [cells(row) for row in result.rows])


def _no_more(what: str, part: float, whole: float) -> Verdict:
    ratio = part / whole if whole else float("inf")
    return Verdict(f"{what} ≤ 1", f"{ratio:.2f}", ratio <= 1)
