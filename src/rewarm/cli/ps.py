"""`rewarm ps`: what is alive and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json, show_table
from rewarm.units import human_bytes, human_seconds

_TITLES = ["what", "id", "version", "state", "pid", "memory", "runs", "age", "idle", "expires"]


@click.command("ps", short_help="Show instances, zygotes and memory.")
@url_option
@json_option
def command(url: str, as_json: bool) -> None:
    """Show the zygotes (Lang layers), the instances of each function, and the memory ledger.

    \b
    Examples:
      rewarm ps
      watch -n 1 rewarm ps
      rewarm ps --json | jq .ledger
    """
    with connect(url) as api:
        alive = api.instances()
    if as_json:
        emit_json(alive)
        return
    rows = [_zygote(entry) for entry in alive["langs"]]
    functions = sorted({str(entry["function"]) for entry in alive["instances"]})
    for name in functions:
        rows.append([name, *[""] * (len(_TITLES) - 1)])
        members = [entry for entry in alive["instances"] if entry["function"] == name]
        for entry in members:
            rows.append(_instance(entry, "└─ " if entry is members[-1] else "├─ "))
    if rows:
        show_table(_TITLES, rows, right=["id", "version", "pid", "memory", "runs", "age", "idle", "expires"])
    else:
        click.echo("nothing is alive")
    ledger = alive["ledger"]
    held, budget = ledger["held_bytes"], ledger["budget_bytes"]
    share = f" ({100 * held / budget:.0f} %)" if budget else ""
    click.echo(f"memory: {human_bytes(held)} held of {human_bytes(budget)}{share}")


def _zygote(entry: Mapping[str, Any]) -> list[str]:
    return [
        f"zygote {entry['key']}", "", "", str(entry.get("state", "")), _text(entry.get("pid")),
        human_bytes(entry.get("resident_bytes") or 0), "", "", "", _duration(entry.get("expires_in_s")),
    ]  # fmt: skip


def _instance(entry: Mapping[str, Any], branch: str) -> list[str]:
    return [
        f"{branch}instance", _text(entry["id"]), _text(entry.get("version")), str(entry["state"]),
        _text(entry.get("pid")), human_bytes(entry.get("resident_bytes") or 0), _text(entry.get("runs")),
        _duration(entry.get("age_s")), _duration(entry.get("idle_s")), _duration(entry.get("expires_in_s")),
    ]  # fmt: skip


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _duration(value: Any) -> str:
    return "" if value is None else human_seconds(value)
