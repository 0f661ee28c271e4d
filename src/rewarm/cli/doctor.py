"""`rewarm doctor`: what this machine can do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json, show_table
from rewarm.errors import RewarmError
from rewarm.units import counted


@click.command("doctor", short_help="Say what this machine can do.")
@click.option("--home", envvar="REWARM_HOME", default="~/.rewarm", show_default=True, show_envvar=True,
              help="Where deployments are kept; its disk is measured.")  # fmt: skip
@url_option
@json_option
def command(home: str, url: str, as_json: bool) -> None:
    """Say what this machine can do, which sandbox driver is chosen and why, and whether a server answers.

    Needs no server and changes nothing: it writes and removes one file of 32 MB in the home (or the nearest folder
    above it that exists) to measure the disk. Where a guest for micro-VMs was built, the first run after a boot of this
    machine tries KVM with it, which takes up to 4 s, and keeps the verdict in the home.

    \b
    Examples:
      rewarm doctor
      rewarm doctor --json | jq .driver
    """
    from rewarm.cli import probes, probes_microvm

    at = Path(home).expanduser().absolute()
    microvm = probes_microvm.all_checks(at)
    checks = [*probes.all_checks(at), *microvm]
    driver = {**probes.choose_driver(checks), "microvm": probes_microvm.choose_driver(microvm)}
    server = _server(url)
    if as_json:
        emit_json({"checks": [asdict(check) for check in checks], "driver": driver, "server": server})
        return
    marks = {True: "✓", False: "✗", None: "·"}
    show_table(["", "what", "found", "note"], [[marks[c.ok], c.name, c.value, c.note] for c in checks])
    click.echo()
    click.echo(f"driver: {driver['chosen']}: {driver['why']}")
    click.echo(f"micro-VMs: {driver['microvm']}")
    click.echo(f"server: {server['note']}")


def _server(url: str) -> dict[str, Any]:
    try:
        with connect(url, timeout_s=3.0) as api:
            found = api.server()
    except RewarmError as error:
        return {"url": url, "answers": False, "note": error.message}
    note = f"version {found.get('version')} answers at {url} with {counted(found.get('functions', 0), 'function')}"
    return {"url": url, "answers": True, "note": note, **found}
