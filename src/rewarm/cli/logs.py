"""`rewarm logs`: what user code printed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import json_option, url_option
from rewarm.cli.output import emit_json
from rewarm.errors import NotFound

if TYPE_CHECKING:
    from rewarm.bench.api import Api

_POLL_S = 0.5
_FOLLOW_TAIL = 1000

Line = Mapping[str, Any]


@click.command("logs", short_help="Show what a function printed.")
@click.argument("name")
@click.option("--tail", type=click.IntRange(0), default=100, show_default=True, help="Only the last so many lines.")
@click.option("--instance", type=int, help="Only of this instance (see rewarm ps).")
@click.option("--follow", "-f", is_flag=True, help="Go on showing new lines until Ctrl-C.")
@url_option
@json_option
def command(name: str, tail: int, instance: int | None, follow: bool, url: str, as_json: bool) -> None:
    """Show the standard output and error of NAME's instances, ended ones included while the server keeps them.

    With --json the lines are {"t_s", "instance", "text"}; with --follow too, one a line.

    \b
    Examples:
      rewarm logs digits --tail 20
      rewarm logs digits --instance 7 --follow
    """
    with connect(url) as api:
        # One line at least: a follower needs to know where it stands.
        lines: Sequence[Line] = api.logs(name, tail=max(tail, 1) if follow else tail, instance=instance)
        if not lines and tail and instance is not None:
            _check_instance(api, name, instance)
        if as_json and not follow:
            emit_json({"lines": list(lines)})
            return
        if not lines and tail and not follow:
            click.echo(f"{name} has printed nothing", err=True)
        _show(lines[len(lines) - tail :] if tail < len(lines) else lines, as_json)
        cursor = Cursor()
        cursor.new(lines)
        while follow:
            time.sleep(_POLL_S)
            _show(cursor.new(api.logs(name, tail=_FOLLOW_TAIL, instance=instance)), as_json)


def _check_instance(api: Api, name: str, instance: int) -> None:
    """Raises NotFound unless it lives: nothing is known of it that it printed."""
    if not any(one["id"] == instance and one["function"] == name for one in api.instances()["instances"]):
        raise NotFound(f"{name} has no instance {instance}; rewarm ps shows those that are alive")


class Cursor:
    """Which lines of a growing log were seen. Lines of equal time are told apart by counting them."""

    def __init__(self) -> None:
        self._last_s = float("-inf")
        self._at_last: Counter[tuple[Any, Any]] = Counter()

    def new(self, lines: Sequence[Line]) -> list[Line]:
        """Those of `lines` that no earlier call returned, oldest first."""
        fresh: list[Line] = []
        repeats = self._at_last.copy()
        for line in sorted(lines, key=lambda line: float(line["t_s"])):
            if line["t_s"] < self._last_s:
                continue
            key = (line["instance"], line["text"])
            if line["t_s"] == self._last_s and repeats[key] > 0:
                repeats[key] -= 1
                continue
            fresh.append(line)
        for line in fresh:
            if line["t_s"] > self._last_s:
                self._last_s = float(line["t_s"])
                self._at_last.clear()
            self._at_last[line["instance"], line["text"]] += 1
        return fresh


def _show(lines: Sequence[Line], as_json: bool) -> None:
    for line in lines:
        if as_json:
            emit_json(dict(line), compact=True)
        else:
            stamp = time.strftime("%H:%M:%S", time.localtime(line["t_s"]))
            click.echo(f"{stamp}.{int(line['t_s'] % 1 * 1000):03d} [{line['instance']}] {line['text']}")
