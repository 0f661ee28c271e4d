"""`rewarm ps`: what is alive and what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json, show_table
from rewarm.units import counted, human_bytes, human_seconds

_TITLES = ["what", "id", "version", "state", "pid", "memory", "disk", "start-up", "uses", "saved", "idle", "expires"]
_MODEL_TITLES = ["weights", "functions", "size", "pinned", "pin", "bandwidth", "expected", "last", "bubble"]
_LAYERS = ("model", "user", "lang", "bare")  # dearest first

Nodes = Sequence[Mapping[str, Any]]


@click.command("ps", short_help="Show what is alive as a tree of layers.")
@url_option
@json_option
def command(url: str, as_json: bool) -> None:
    """Show the layers as a tree (Bares, runtimes by inclusion of their keys, instances), and the memory ledger.

    \b
    Examples:
      rewarm ps
      watch -n 1 rewarm ps
      rewarm ps --json | jq '.nodes[] | select(.layer == "lang")'
    """
    with connect(url) as api:
        alive = api.ps()
    if as_json:
        emit_json(alive)
        return
    nodes = alive["nodes"]
    if any(node["layer"] != "bare" or node["idle_s"] is not None for node in nodes):
        rows = list(_branches(nodes, None, ""))
        show_table(_TITLES, rows, right=[title for title in _TITLES if title not in ("what", "state")])
    else:
        click.echo("nothing is alive")
    if alive["models"]:
        click.echo()
        right = ["size", "pinned", "bandwidth", "expected", "last", "bubble"]
        show_table(_MODEL_TITLES, [_model(model) for model in alive["models"]], right=right)
        click.echo("expected, last: from the start of a load to the end of the first inference; bubble: waits in it\n")
    _show_ledger(alive["ledger"])
    _show_microvms(alive["microvms"])
    meter = alive["meter"]
    if any(meter[name] for name in ("used_mb_s", "wasted_mb_s", "evictions")):
        click.echo(
            f"idle memory so far: {meter['used_mb_s']:,.0f} MB·s used, {meter['wasted_mb_s']:,.0f} MB·s wasted, "
            f"{counted(meter['evictions'], 'layer')} evicted"
        )


def _model(model: Mapping[str, Any]) -> list[str]:
    last = model["last_load"] or {}
    kept = "" if model["locked"] or not model["held_bytes"] else " (touched)"
    return [
        model["key"][:12], ", ".join(model["functions"]), human_bytes(model["weights_bytes"]),
        human_bytes(model["pinned_bytes"]) + kept, str(model["pin"]), f"{human_bytes(model['bandwidth_bytes_s'])}/s",
        f"{model['expected_ttfi_ms']:.0f} ms", f"{last['ttfi_ms']:.0f} ms" if "ttfi_ms" in last else "",
        f"{last['bubble_ms']:.0f} ms" if "bubble_ms" in last else "",
    ]  # fmt: skip


def _show_ledger(ledger: Mapping[str, Any]) -> None:
    held, budget, by_layer = ledger["held_bytes"], ledger["budget_bytes"], ledger["by_layer"]
    share = f" ({100 * held / budget:.0f} %)" if budget else ""
    parts = ", ".join(f"{layer} {human_bytes(by_layer[layer])}" for layer in _LAYERS if by_layer[layer])
    click.echo(f"memory: {human_bytes(held)} held of {human_bytes(budget)}{share}{': ' if parts else ''}{parts}")
    disk = ledger["disk"]
    if disk["held_bytes"]:
        click.echo(f"disk: {human_bytes(disk['held_bytes'])} of snapshots, {human_bytes(disk['budget_bytes'])} at most")


def _show_microvms(told: Mapping[str, Any]) -> None:
    """How machines fared, once there was one."""
    if not (told["boots"] or told["restores"]):
        return
    ways = ", ".join(f"{policy} {count}" for policy, count in sorted(told["policies"].items()))
    accelerator = str(told["accelerator"]).upper()
    line = f"micro-VMs on {accelerator}: {told['boots']} booted, {told['restores']} restored ({ways})"
    trouble = {"tried again": told["retries"], "hung": told["hung"], "snapshots lost": told["lost"]}
    click.echo(", ".join([line, *(f"{count} {what}" for what, count in trouble.items() if count)]))


def _branches(nodes: Nodes, parent: str | None, indent: str) -> Iterator[list[str]]:
    """A row for everything below `parent`, each followed by what is below it."""
    members = [node for node in nodes if node["parent"] == parent]
    for node in members:
        last = node is members[-1]
        glyph = "" if parent is None else "└─ " if last else "├─ "
        yield _row(node, indent + glyph)
        yield from _branches(nodes, node["id"], indent + ("" if parent is None else "   " if last else "│  "))


def _row(node: Mapping[str, Any], branch: str) -> list[str]:
    layer, startup_s, saved_s = node["layer"], node["startup_s"], node["saved_s"]
    what = f"{layer} {node['name']}" if layer in ("lang", "asleep") else str(node["name"])
    return [
        branch + what, str(node["id"]).partition(":")[2] if layer == "user" else "", _text(node["version"]),
        str(node["state"]), _text(node["pid"]), human_bytes(node["resident_bytes"]),
        human_bytes(node["disk_bytes"]) if node["disk_bytes"] else "",
        human_seconds(startup_s) if startup_s else "", str(node["uses"]), human_seconds(saved_s) if saved_s else "",
        _duration(node["idle_s"]), _duration(node["expires_in_s"]),
    ]  # fmt: skip


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _duration(value: Any) -> str:
    return "" if value is None else human_seconds(value)
