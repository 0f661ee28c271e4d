"""`rewarm experiment snapshot`: first answers of functions that sleep on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewarm.cli.options import json_option
from rewarm.cli.output import emit_json, progress_bar, show_table, show_verdicts

if TYPE_CHECKING:
    from rewarm.bench.snapshot_rows import Result


@click.command("snapshot", short_help="First answers of functions that sleep on disk.")
@click.option("--quick", is_flag=True, help="Three rounds, fewer cases where reads are throttled: under five minutes.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("results"), show_default=True,
              help="Folder for snapshot.json, snapshot.md and snapshot.svg.")  # fmt: skip
@click.option("--home", type=click.Path(file_okay=False, path_type=Path), default=Path("~/.rewarm"), show_default=True,
              envvar="REWARM_HOME", show_envvar=True,
              help="Where `rewarm microvm build` made a guest; its disk is measured.")  # fmt: skip
@json_option
def snapshot(quick: bool, out: Path, home: Path, as_json: bool) -> None:
    """{cold boot, lazy, lazy with 4 KiB faults, read all, prefetch, layered, uffd, cached, warm} × {native, throttled}.

    Beside an input that was not recorded, bursts of 4 from one snapshot and from different ones, and the memory of 4
    clones. Throttled: 3000 reads and 125 MB a second, where a cgroup can be made that does it. Nothing else should use
    the machine meanwhile. Needs QEMU, a guest and 4 GB of disk; no server.

    \b
    Examples:
      rewarm experiment snapshot --quick
      rewarm experiment snapshot --out results/ --json
    """
    from rewarm.bench import snapshot_report
    from rewarm.bench.experiment_snapshot import run
    from rewarm.bench.plots import require_matplotlib
    from rewarm.bench.snapshot_rows import QUICK, Settings

    require_matplotlib()  # what is missing is told before minutes of measuring, not after
    with progress_bar(as_json, "cases") as progress:
        result = run(home.expanduser().absolute(), QUICK if quick else Settings(), progress)
    paths = snapshot_report.write(result, out)
    if as_json:
        emit_json(snapshot_report.to_json(result))
        return
    _show(result)
    click.echo("written: " + ", ".join(str(path) for path in paths))


def _show(result: Result) -> None:
    from rewarm.bench import snapshot_report

    titles = list(snapshot_report.TITLES)
    show_table(titles, [snapshot_report.cells(row) for row in result.rows], right=titles[2:])
    click.echo()
    for line in snapshot_report.density_lines(result):
        click.echo(line)
    show_verdicts(snapshot_report.verdicts(result))
    for failure in result.failures:
        click.echo(f"done again: {failure}")
    for what, why in result.left_out.items():
        click.echo(f"left out: {what}: {why}")
