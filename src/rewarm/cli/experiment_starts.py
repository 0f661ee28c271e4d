"""`rewarm experiment starts`: what the layers cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewarm.cli.options import json_option
from rewarm.cli.output import emit_json, progress_bar, show_table
from rewarm.errors import UsageError

if TYPE_CHECKING:
    from rewarm.bench.experiment_starts import Result

_NAMES = ("lambda", "digits", "nodejs")


@click.command("starts", short_help="What the layers cost on this machine.")
@click.option("--repeat", type=click.IntRange(1, 1000), default=10, show_default=True,
              help="Starts from nothing of each function.")  # fmt: skip
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the costs there, for rewarm sim --layers.")  # fmt: skip
@click.option("--only", type=click.Choice(_NAMES), multiple=True, help="This example alone; may be repeated.")
@json_option
def starts(repeat: int, save: Path | None, only: tuple[str, ...], as_json: bool) -> None:
    """Measure start-up seconds and memory of Bare, Lang and User layers, with servers started for it.

    The functions are the shipped examples, one a runtime; one whose runtime is not installed is left out. Nothing else
    should use the machine meanwhile. Run it in a checkout of rewarm.

    \b
    Examples:
      rewarm experiment starts
      rewarm experiment starts --save costs.toml
      rewarm experiment starts --only lambda --repeat 3
      rewarm sim azure-2019 --policy hazard --layers costs.toml
    """
    from rewarm.bench.experiment_starts import run, to_toml

    if save is not None and not save.absolute().parent.is_dir():
        raise UsageError(f"--save {save}: there is no folder {save.absolute().parent}; create it first")
    with progress_bar(as_json) as progress:
        result = run(repeat, only, progress)
    if save is not None:
        save.write_text(to_toml(result), "utf-8")
    if as_json:
        emit_json(result.to_json())
        return
    _show(result)
    if save is not None:
        click.echo(f"written: {save}")


def _show(result: Result) -> None:
    titles = ["function", "runtime", "bare ms", "lang ms", "fork ms", "user ms", "lang MB", "user MB"]
    rows = []
    for row in result.to_json()["rows"]:
        lang, user = row["lang"], row["user"]
        milliseconds = (row["bare"]["startup_s"], lang["startup_s"], lang["fork_s"], user["startup_s"])
        rows.append([
            row["function"], row["key"], *(f"{seconds * 1e3:.2f}" for seconds in milliseconds),
            f"{lang['resident_mb']:.1f}", f"{user['resident_mb']:.1f}",
        ])  # fmt: skip
    show_table(titles, rows, right=titles[2:])
    click.echo("\nmedians; memory is PSS: the runtime by itself, and what an instance adds to it")
    for example, why in result.left_out.items():
        click.echo(f"left out: {example}: {why}")
