"""`rewarm versions`: what is kept of a function."""

from __future__ import annotations

from datetime import datetime

import click

from rewarm.cli.client import connect
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json, show_table
from rewarm.units import human_bytes


@click.command("versions", short_help="List the kept versions of a function.")
@click.argument("name")
@url_option
@json_option
def command(name: str, url: str, as_json: bool) -> None:
    """List the versions of a function that can be served: the current one and the one before it.

    \b
    Examples:
      rewarm versions digits
      rewarm rollback digits
    """
    with connect(url) as api:
        found = api.versions(name)
    if as_json:
        emit_json(found)
        return
    rows = [
        [
            str(kept["version"]),
            datetime.fromtimestamp(kept["created_at"]).strftime("%Y-%m-%d %H:%M:%S"),
            str(kept["digest"])[:12],
            human_bytes(kept["weights_bytes"]) if kept["weights_bytes"] else "",
            "current" if kept["current"] else "",
        ]
        for kept in found["versions"]
    ]
    show_table(["version", "deployed", "sha256", "weights", "state"], rows, right=["version", "weights"])
