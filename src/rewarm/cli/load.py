"""`rewarm load`: send open-loop traffic and measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from rewarm.cli.client import connect
from rewarm.cli.options import body_options, duration, json_option, url_option
from rewarm.cli.output import console, emit_json, show_table, wants_progress
from rewarm.cli.payload import Body, body_of
from rewarm.errors import BY_CODE, FunctionError, SystemFault

if TYPE_CHECKING:
    from rewarm.bench.load import LoadResult, Plan

PATTERNS = ("uniform", "bursty", "poisson")


@click.command("load", short_help="Send load and measure.")
@click.argument("name")
@click.option("--pattern", type=click.Choice(PATTERNS), default="uniform", show_default=True,
              help="bursty: 2 s at 5/3 of the rate, then 2 s at 1/3.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=20.0, show_default=True,
              help="Requests per second on average.")  # fmt: skip
@click.option(
    "--duration", "duration_s", type=duration, default="30s", show_default=True, help="How long requests are sent."
)
@body_options
@click.option("--slo", type=duration, help="Latency objective to count against; default: the function's own.")
@click.option("--warmup", is_flag=True, help="Have an instance ready first.")
@click.option("--connections", type=click.IntRange(1), default=1024, show_default=True, help="Connections at a time.")
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same intended send times.")
@url_option
@json_option
def command(
    name: str, pattern: str, rate: float, duration_s: float, slo: float | None, warmup: bool,
    connections: int, seed: int, url: str, as_json: bool, **source: Any,
) -> int:  # fmt: skip
    """Send requests to NAME at set times, whatever becomes of earlier ones (open loop).

    Latency counts from the time at which a request was meant to be sent, so a server that stalls cannot hide it.
    Percentiles are nearest-rank and over good answers; an error counts as a miss of the SLO. If nothing was answered
    well, the exit code is that of the most frequent error.

    \b
    Examples:
      rewarm load digits --npz examples/digits/test_digits.npz:images[0] --divide 255 --rate 50 --duration 10s
      rewarm load hello --pattern bursty --rate 12 --duration 1min --slo 200ms --json
    """
    from rewarm.bench import arrivals
    from rewarm.bench.load import Plan

    body: Body = body_of(**source)
    times_s = arrivals.make(pattern, rate, duration_s, seed)
    with connect(url) as api:
        slo_s = slo if slo is not None else api.function(name).get("spec", {}).get("slo_s")
        if warmup:
            api.load(name)
        target = f"{api.url}/invoke/{quote(name, safe='')}"
    plan = Plan(target, times_s, [body.content], body.content_type, connections=connections)
    result = _run(plan, as_json)
    report = summary(result, duration_s, slo_s)
    if as_json:
        emit_json(
            {"function": name, "pattern": pattern, "rate": rate, "duration_s": duration_s, "seed": seed, **report}
        )
    else:
        _show(report)
    return 0 if report["ok"] or not report["sent"] else _failed(name, next(iter(report["errors"])))


def _failed(name: str, code: str) -> int:
    """The exit code for requests that failed all, most of them with `code`."""
    kind = BY_CODE.get(code, SystemFault)
    click.echo(f"error: all requests failed, most with {code}", err=True)
    if issubclass(kind, FunctionError):
        click.echo(f"hint: rewarm logs {name} shows what it printed", err=True)
    return kind.exit_code


def _run(plan: Plan, as_json: bool) -> LoadResult:
    import asyncio

    from rewarm.bench.load import run_load

    if not wants_progress(as_json):
        return asyncio.run(run_load(plan))
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True) as progress:
        task = progress.add_task("load", total=len(plan.times_s))
        step: Callable[..., None] = lambda *_: progress.advance(task)  # noqa: E731
        return asyncio.run(run_load(plan, on_sample=step))


def summary(result: LoadResult, duration_s: float, slo_s: float | None) -> dict[str, Any]:
    """What is told of a load. Latencies in ms; None where nothing was answered well."""
    from rewarm.bench import stats

    latencies_s = result.latencies_s()
    lags_ms = [sample.lag_s * 1e3 for sample in result.samples]
    report: dict[str, Any] = {
        "sent": len(result.samples),
        "ok": len(latencies_s),
        "errors": dict(result.errors().most_common()),
        # Over the longer of the plan and the wait for the last answer: a backlog is not throughput.
        "rate_ok": round(len(latencies_s) / max(duration_s, result.elapsed_s), 3),
        "latency_ms": {
            key: round(value, 3) if latencies_s else None
            for key, value in asdict(stats.summarise([latency * 1e3 for latency in latencies_s])).items()
        },
        "starts": dict(result.starts().most_common()),
        "batch_sizes": {str(size): count for size, count in sorted(result.batch_sizes().items())},
        "lag_ms_max": round(max(lags_ms, default=0.0), 3),
    }
    if slo_s is not None:
        report["slo_ms"] = slo_s * 1e3
        report["slo_pct"] = round(stats.slo_percent(latencies_s, slo_s, len(result.samples)), 3)
    return report


def _show(report: dict[str, Any]) -> None:
    latency = report["latency_ms"]
    rows = [["sent", str(report["sent"])], ["ok", str(report["ok"])]]
    rows += [[f"error {code}", str(count)] for code, count in report["errors"].items()]
    rows.append(["rate achieved", f"{report['rate_ok']:.1f} /s"])
    rows += [
        [f"latency {key}", "–" if latency[key] is None else f"{latency[key]:.2f} ms"]
        for key in ("mean", "p50", "p90", "p99", "max")
    ]
    if "slo_pct" in report:
        rows.append([f"within {report['slo_ms']:g} ms", f"{report['slo_pct']:.2f} %"])
    rows.append(["starts", "  ".join(f"{kind} {count}" for kind, count in report["starts"].items())])
    rows.append(
        ["requests in batches of", "  ".join(f"{size}: {count}" for size, count in report["batch_sizes"].items())]
    )
    if report["lag_ms_max"] > 10:
        rows.append(["generator late by up to", f"{report['lag_ms_max']:.1f} ms"])
    show_table(["", ""], rows)
