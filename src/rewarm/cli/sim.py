"""`rewarm sim`: keep-alive policies over a trace, in virtual time."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewarm.cli.options import duration, json_option, size
from rewarm.cli.output import TABLE_COLUMNS, console, emit_json, show_table, wants_progress

if TYPE_CHECKING:
    from rewarm.sim.report import Report
    from rewarm.sim.run import Progress

#: What people look at first, and the columns of text that it takes at most.
_FIRST = ("cold %", "bare %", "lang %", "user %", "start-up s", "p99", "used GB·h", "wasted", "evictions")
_ASLEEP = ("restored %", "disk GB·h")  # and these where something slept
_NARROW_COLUMNS = 100


def policies(value: Sequence[str]) -> list[str]:
    """ "lru,fixed:user_s=30,lang_s=60" → ["lru", "fixed:user_s=30,lang_s=60"]: key=value belongs to what is before."""
    found: list[str] = []
    for piece in ",".join(value).split(","):
        begins = "=" not in piece or ":" in piece.partition("=")[0]
        if begins or not found:
            found.append(piece.strip())
        else:
            found[-1] += f",{piece}"
    return found


def hours(value: str) -> tuple[float, float]:
    """ "6-18" or "6-" → hours from the beginning of the trace."""
    first, dash, last = value.partition("-")
    try:
        begin, end = float(first or 0), float(last or math.inf)
    except ValueError:
        begin = end = math.nan
    if not dash or not 0 <= begin < end:
        raise click.BadParameter(f"{value!r} is not FROM-TO in hours; write for example 6-18, or 12- for all after 12")
    return begin, end


@click.command("sim", short_help="Simulate keep-alive policies over a trace.")
@click.argument("trace")
@click.option("--policy", "-p", "policy", multiple=True, default=("fixed",), show_default=True,
              help="Policies, NAME or NAME:KEY=VALUE, separated by commas; may be given again.")  # fmt: skip
@click.option("--memory", type=size, help="Budget for all layers; without it there is no limit.")
@click.option("--layers", type=click.Path(dir_okay=False, path_type=Path), help="A TOML file with the costs of layers.")
@click.option("--granularity", type=click.Choice(("call", "minute")), default="call", show_default=True,
              help="minute: one call per function and active minute, which lasts the minute.")  # fmt: skip
@click.option("--spacing", type=click.Choice(("uniform", "even")), default="uniform", show_default=True,
              help="Of calls that are known by the minute: drawn with the seed, or evenly spaced.")  # fmt: skip
@click.option("--run-time", type=duration, default="1s", show_default=True,
              help="Of a call, where the trace has none.")  # fmt: skip
@click.option("--sandboxes-per-function", type=click.IntRange(1, 1000), default=None,
              help="At most.  [default: 100; 1 with --granularity minute]")  # fmt: skip
@click.option(
    "--drop-busiest", type=click.IntRange(0), default=0, metavar="N", help="Leave out the N busiest functions."
)
@click.option("--hours", type=hours, default="0-", show_default=True, metavar="FROM-TO", help="This part of the trace.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Same seed, same calls and costs.")
@click.option("--jobs", type=click.IntRange(1), help="Policies at a time, each in a process; default: one per core.")
@click.option("--wide", is_flag=True, help="Show all columns; without it, those that fit into 100 characters.")
@json_option
def command(
    trace: str, policy: tuple[str, ...], memory: int | None, layers: Path | None, granularity: str, spacing: str,
    run_time: float, sandboxes_per_function: int | None, drop_busiest: int, hours: tuple[float, float], seed: int,
    jobs: int | None, wide: bool, as_json: bool,
) -> None:  # fmt: skip
    """Drive the server's own core with the calls of TRACE in virtual time, under each policy.

    TRACE is a CSV file, plain or compressed with gzip, of a format that is told by its header: t_s,function,duration_s;
    Azure Functions 2019 (calls by the minute) or 2021 (call by call); fits of ServeGen. Or a name: azure-2019,
    azure-2021, servegen, servegen-images are shipped. See docs/simulator.md for what is counted and how.

    \b
    Examples:
      rewarm sim azure-2019 --drop-busiest 20 --policy none,fixed:ttl=10min,histogram
      rewarm sim azure-2019 --granularity minute --policy fixed:ttl=1min,fixed:ttl=20min
      rewarm sim calls.csv --policy lru,faascache --memory 2GB --layers costs.toml --json
    """
    from rewarm.policy import registry
    from rewarm.sim import costs
    from rewarm.sim.run import UNLIMITED_BYTES, Settings, simulate_all
    from rewarm.sim.traces.base import Options

    minutes = granularity == "minute"
    options = Options(
        seed=seed, hours=hours, drop_busiest=drop_busiest, run_s=run_time, even=spacing == "even", whole_minutes=minutes
    )
    settings = Settings(
        trace, options, costs.read(layers) if layers else costs.DEFAULTS,
        budget_bytes=UNLIMITED_BYTES if memory is None else memory,
        max_instances=sandboxes_per_function or (1 if minutes else 100),
    )  # fmt: skip
    texts = policies(policy)
    specs = [registry.parse(text) for text in texts]
    with _bars(texts, as_json) as progress:
        reports = simulate_all(settings, specs, jobs=jobs, progress=progress)
    if as_json:
        emit_json({"trace": trace, "seed": seed, "policies": [report.to_json() for report in reports]})
    else:
        _show(texts, reports, wide)


@contextlib.contextmanager
def _bars(names: Sequence[str], as_json: bool) -> Iterator[Progress]:
    """One bar per policy, moved on by the calls that came."""
    if not wants_progress(as_json):
        yield lambda index, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True) as bars:
        tasks = [bars.add_task(Text(name).markup, total=None) for name in names]
        yield lambda index, done, total: bars.update(tasks[index], completed=done, total=total)


def _show(names: Sequence[str], reports: Sequence[Report], wide: bool) -> None:
    rows = [_cells(one) for one in reports]
    left_out = () if any(one.disk_gb_h for one in reports) else _ASLEEP
    titles = [title for title in rows[0] if title not in left_out and (wide or title in (*_FIRST, *_ASLEEP))]
    shown = names if wide else [_words(name) for name in names]
    table = [[name, *(row[title] for title in titles)] for name, row in zip(shown, rows, strict=True)]
    show_table(["policy", *titles], table, right=titles, columns=TABLE_COLUMNS if wide else _NARROW_COLUMNS)
    first = reports[0]
    click.echo(f"\n{first.invocations:,} calls of {len(first.functions)} functions; shares are of the calls that ran")
    for name, one in zip(shown, reports, strict=True):
        refused = [f"{count:,} refused ({code})" for code, count in one.rejected.items()]
        refused += [f"{one.unserved:,} never served"] if one.unserved else []
        if refused:
            click.echo(textwrap.fill(f"{name}: {', '.join(refused)}", _NARROW_COLUMNS))


def _cells(one: Report) -> dict[str, str]:
    """Title → figure, all of them in the order of `--wide`."""
    return {
        "cold %": f"{one.cold_pct:.2f}", "bare %": f"{one.bare_pct:.2f}", "lang %": f"{one.lang_pct:.2f}",
        "restored %": f"{one.restored_pct:.2f}", "user %": f"{one.user_pct:.2f}",
        "start-up s": f"{one.startup_s_mean:.4f}", "p50": f"{one.startup_s_p50:.3f}",
        "p99": f"{one.startup_s_p99:.3f}", "wait s": f"{one.wait_s_mean:.4f}", "wait p99": f"{one.wait_s_p99:.3f}",
        "idle GB·h": f"{one.idle_gb_h:.1f}", "used GB·h": f"{one.used_gb_h:.1f}", "wasted": f"{one.wasted_gb_h:.1f}",
        "disk GB·h": f"{one.disk_gb_h:.1f}", "evictions": str(one.evictions),
        "p75 cold %": f"{one.cold_pct_p75_function:.1f}", "p75 start %": f"{one.start_pct_p75_function:.1f}",
        "calls/s": f"{one.invocations_per_s:,.0f}",
    }  # fmt: skip


def _words(policy: str) -> str:
    """ "fixed:user_s=30,lang_s=60" → "fixed user_s=30 lang_s=60", which can be wrapped between parameters."""
    name, _, params = policy.partition(":")
    return f"{name} {params.replace(',', ' ')}".rstrip()
