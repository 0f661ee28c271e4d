"""`rewarm rollback`: serve an earlier version again."""

from __future__ import annotations

import click

from rewarm.cli.client import connect
from rewarm.cli.deploy import WAIT_S, tell
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json


@click.command("rollback", short_help="Serve an earlier version again.")
@click.argument("name")
@click.option("--to", "version", type=click.IntRange(1, 999_999_999), help="Which one.  [default: the one before]")
@url_option
@json_option
def command(name: str, version: int | None, url: str, as_json: bool) -> None:
    """Deploy the version of a function before the current one once more, under a new number.

    Callers notice nothing: as at any deploy, what runs is finished by the old instances. A second rollback undoes the
    first.

    \b
    Examples:
      rewarm rollback digits
      rewarm rollback digits --to 3
    """
    with connect(url, timeout_s=WAIT_S) as api:
        done = api.rollback(name, version)
    if as_json:
        emit_json(done)
    else:
        tell(done, None, url)
