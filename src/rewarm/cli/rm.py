"""`rewarm rm`: remove a function."""

from __future__ import annotations

import click

from rewarm.cli.client import connect
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json


@click.command("rm", short_help="Remove a function.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@url_option
@json_option
def command(names: tuple[str, ...], url: str, as_json: bool) -> None:
    """Remove functions: their instances end, and what waits for them is answered 404.

    \b
    Examples:
      rewarm rm digits
      rewarm rm hello digits
    """
    with connect(url) as api:
        for name in names:
            done = api.remove(name)
            if as_json:
                emit_json(done, compact=True)
            else:
                click.echo(f"removed {name}")
