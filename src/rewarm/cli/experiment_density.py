"""`rewarm experiment density`: many functions in little memory, live."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewarm.cli.options import json_option
from rewarm.cli.output import emit_json, progress_bar, show_table, show_verdicts

if TYPE_CHECKING:
    from rewarm.bench.experiment_density import Result


@click.command("density", short_help="Many functions in little memory.")
@click.option("--quick", is_flag=True, help="48 functions and 25 s of load a policy: under three minutes in all.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("results"), show_default=True,
              help="Folder for density.json, density.md and density.svg.")  # fmt: skip
@click.option("--also", multiple=True, metavar="POLICY",
              help="A further policy, as rewarm serve --keepalive takes it; nothing in it is compressed.")  # fmt: skip
@json_option
def density(quick: bool, out: Path, also: tuple[str, ...], as_json: bool) -> None:
    """60 functions of three runtimes with memory for a fifth of them: fixed with LRU, rainbowcake and hazard.

    The load is a piece of the shipped Azure trace, sixty times as fast, on servers started for it. Nothing else should
    use the machine meanwhile. The full run sends for 100 s a policy and takes about eight minutes.

    \b
    Examples:
      rewarm experiment density --quick
      rewarm experiment density --out results/ --json
      rewarm experiment density --also hazard:price=2e-5
    """
    from rewarm.bench import density_report
    from rewarm.bench.experiment_density import QUICK, Settings, run
    from rewarm.bench.load import require_aiohttp
    from rewarm.bench.plots import require_matplotlib

    # What is missing is told before minutes of measuring, not after.
    require_aiohttp()
    require_matplotlib()
    with progress_bar(as_json) as progress:
        result = run(dataclasses.replace(QUICK if quick else Settings(), also=also), progress)
    paths = density_report.write(result, out)
    if as_json:
        emit_json(density_report.to_json(result))
        return
    _show(result)
    click.echo("written: " + ", ".join(str(path) for path in paths))


def _show(result: Result) -> None:
    from rewarm.bench import density_report

    titles = list(density_report.TITLES)
    show_table(titles, [density_report.cells(row) for row in result.rows], right=titles[2:])
    click.echo()
    show_verdicts(density_report.verdicts(result))
    if result.note:
        click.echo(result.note)
