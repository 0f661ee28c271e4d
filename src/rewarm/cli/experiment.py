"""`rewarm experiment`: the published comparisons, on the live platform and in the simulator."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewarm.cli.client import connect
from rewarm.cli.experiment_density import density
from rewarm.cli.experiment_snapshot import snapshot
from rewarm.cli.experiment_starts import starts
from rewarm.cli.experiment_streaming import streaming
from rewarm.cli.options import duration, json_option
from rewarm.cli.output import emit_json, progress_bar, show_table, show_verdicts
from rewarm.errors import UsageError

if TYPE_CHECKING:
    from rewarm.bench.experiment_batching import Result

_ROW_S_MIN, _ROW_S_MAX = 1.0, 3600.0  # less shows nothing of a policy that waits; more is ten times as long in all


@click.group("experiment", short_help="Run a published experiment.")
def command() -> None:
    """Run a published experiment and write its figures as JSON, Markdown and SVG.

    \b
    Examples:
      rewarm experiment batching --quick
      rewarm experiment batching --out results/
      rewarm experiment density --quick
      rewarm experiment keepalive --quick
      rewarm experiment snapshot --quick
      rewarm experiment starts --save costs.toml
      rewarm experiment streaming --quick
    """


command.add_command(density)
command.add_command(snapshot)
command.add_command(starts)
command.add_command(streaming)


@command.command("batching", short_help="Batching policies against each other.")
@click.option("--quick", is_flag=True, help="4 s of load a row: under a minute in all.")
@click.option("--duration", "duration_s", type=duration, help="Load of a row; default: 60s, with --quick 4s.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("results"), show_default=True,
              help="Folder for batching.json, batching.md and batching.svg.")  # fmt: skip
@click.option("--url", envvar="REWARM_URL", show_envvar=True,
              help="Use this server; without it, one is started for the experiment.")  # fmt: skip
@click.option("--app", type=click.Path(file_okay=False, path_type=Path), help="The folder of the digits example.")
@json_option
def batching(
    quick: bool, duration_s: float | None, out: Path, url: str | None, app: Path | None, as_json: bool
) -> None:
    """{static, dynamic, slo-latency, slo-cost, none} × {uniform, bursty} on the digits model, about 12 requests/s.

    Nothing else should use the machine meanwhile. The full run sends for 60 s a row and takes about 11 minutes.

    \b
    Examples:
      rewarm experiment batching --quick
      rewarm experiment batching --out results/ --json
    """
    from rewarm.bench import report
    from rewarm.bench.experiment_batching import QUICK, Settings, run
    from rewarm.bench.load import require_aiohttp
    from rewarm.bench.local_server import local_server
    from rewarm.bench.plots import require_matplotlib
    from rewarm.bench.shipping import find_example

    settings = QUICK if quick else Settings()
    if duration_s is not None:
        if not _ROW_S_MIN <= duration_s <= _ROW_S_MAX:
            raise UsageError(f"--duration must be {_ROW_S_MIN:g} to {_ROW_S_MAX:g} seconds a row, not {duration_s:g}")
        settings = dataclasses.replace(settings, duration_s=duration_s)
    # What is missing is told before minutes of measuring, not after.
    require_aiohttp()
    require_matplotlib()
    folder = find_example("digits", app, "--app")
    on = contextlib.nullcontext(url) if url else local_server()
    with on as at, connect(at) as api, progress_bar(as_json, "requests") as progress:
        result = run(api, folder, settings, progress)
    paths = report.write(result, out)
    if as_json:
        emit_json(report.to_json(result))
        return
    _show(result)
    click.echo("written: " + ", ".join(str(path) for path in paths))


@command.command("keepalive", short_help="Keep-alive policies against each other, simulated.")
@click.option("--quick", is_flag=True, help="Fewer functions, hours and settings: under five minutes on two cores.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("results"), show_default=True,
              help="Folder for keepalive.json, keepalive.md and keepalive.svg.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time, each in a process; default: one per core.")
@json_option
def keepalive(quick: bool, out: Path, jobs: int | None, as_json: bool) -> None:
    """Start-up seconds per request against idle memory: every keep-alive policy over its settings, and two bounds.

    Over the shipped Azure day without its 20 busiest functions and over ServeGen's clients. Settings are searched on
    one half of the functions and reported on the other. The full run takes about 15 minutes on two cores.

    \b
    Examples:
      rewarm experiment keepalive --quick
      rewarm experiment keepalive --out results/ --json
    """
    from rewarm.bench import keepalive_findings, keepalive_report
    from rewarm.bench.experiment_keepalive import run
    from rewarm.bench.plots import require_matplotlib

    require_matplotlib()
    with progress_bar(as_json, "runs") as progress:
        result = run(quick, progress, jobs)
    paths = keepalive_report.write(result, out)
    if as_json:
        emit_json(keepalive_findings.to_json(result))
        return
    show_verdicts(keepalive_findings.verdicts(result))
    click.echo("written: " + ", ".join(str(path) for path in paths))


def _show(result: Result) -> None:
    from rewarm.bench import report

    titles = [
        "policy",
        "workload",
        "requests",
        "errors",
        "mean ms",
        "p50 ms",
        "p99 ms",
        "SLO %",
        "init ms",
        "batch",
        "cost $",
    ]
    rows = [
        [
            row.policy, row.workload, str(row.requests), str(row.errors), f"{row.mean_ms:.1f}", f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}", f"{row.slo_pct:.2f}", f"{row.init_ms:.0f}", f"{row.mean_batch:.2f}",
            f"{row.cost_usd:.7f}",
        ]
        for row in result.rows
    ]  # fmt: skip
    show_table(titles, rows, right=titles[2:])
    click.echo()
    show_verdicts(report.verdicts(result))
