"""`rewarm ls`: what is deployed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json, show_table
from rewarm.units import human_bytes, human_seconds


@click.command("ls", short_help="List the functions.")
@url_option
@json_option
def command(url: str, as_json: bool) -> None:
    """List the deployed functions.

    \b
    Examples:
      rewarm ls
      rewarm ls --json | jq -r '.functions[].name'
    """
    with connect(url) as api:
        functions = api.functions()
    if as_json:
        emit_json({"functions": functions})
    elif not functions:
        click.echo("nothing is deployed; begin with: rewarm deploy app.py")
    else:
        titles = [
            "name",
            "version",
            "kind",
            "batching",
            "keepalive",
            "memory",
            "instances",
            "queued",
            "weights",
            "state",
        ]
        figures = ["version", "memory", "instances", "queued", "weights"]
        show_table(titles, [_row(function) for function in functions], right=figures)


def _row(function: Mapping[str, Any]) -> list[str]:
    error = function.get("last_error")
    return [
        str(function["name"]),
        str(function["version"]),
        str(function["kind"]),
        policy_text(function.get("batching")),
        policy_text(function.get("keepalive")) or "server's",
        human_bytes(function["memory_bytes"]),
        f"{function['instances']}/{function['max_instances']}",
        str(function["queued"]),
        human_bytes(function["weights_bytes"]) if function.get("weights_bytes") else "",
        "ready" if function.get("ready", True) else f"failed: {_short(error)}" if error else "failed",
    ]


def policy_text(policy: Any) -> str:
    """{"name": "dynamic", "max_wait_s": 0.3} → "dynamic max_wait=300.0 ms"; text stays as it is."""
    if not isinstance(policy, Mapping):
        return str(policy or "")
    words = [str(policy.get("name", ""))]
    for key, value in policy.items():
        if key.endswith("_s") and isinstance(value, int | float):
            words.append(f"{key[:-2]}={human_seconds(value)}")
        elif key != "name":
            words.append(f"{key}={value}")
    return " ".join(words)


def _short(error: Any) -> str:
    text = str(error.get("error", error)) if isinstance(error, Mapping) else str(error)
    first = text.splitlines()[0] if text else ""
    return first if len(first) <= 60 else first[:59] + "…"
