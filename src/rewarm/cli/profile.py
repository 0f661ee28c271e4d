"""`rewarm profile`: measure run times by batch size, for the batching policies that plan with them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import body_options, json_option, url_option
from rewarm.cli.output import console, emit_json, show_table, wants_progress
from rewarm.cli.payload import body_of
from rewarm.errors import FunctionError, UsageError

if TYPE_CHECKING:
    from rewarm.bench.api import Api
    from rewarm.bench.profile import Measured, Progress, Settings


def _sizes(value: Any) -> tuple[int, ...]:
    from rewarm.facts.profile import SIZE_MAX

    parts = [part.strip() for part in str(value).split(",")]
    if not all(part.isdecimal() and len(part) < 9 and 1 <= int(part) <= SIZE_MAX for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of whole numbers from 1 to {SIZE_MAX}, such as 1,2,4,8,16")
    sizes = tuple(sorted({int(part) for part in parts}))
    if sizes[0] != 1:
        raise click.BadParameter(f"{value!r} does not have 1, which every profile begins with")
    return sizes


@click.command("profile", short_help="Measure run times by batch size.")
@click.argument("name")
@click.option("--sizes", type=_sizes, default="1,2,4,8,16", show_default=True, metavar="1,2,…",
              help="Batch sizes to measure; the largest is the largest that is ever planned.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(1, 1000), default=10, show_default=True, help="Batches of each size.")
@body_options
@click.option("--also-file", multiple=True, metavar="F",
              help="Another JSON body, of another length; may be repeated. For mbs.")  # fmt: skip
@click.option("--show", is_flag=True, help="Show what is kept and measure nothing.")
@click.option("--remove", is_flag=True, help="Forget what is kept and measure nothing.")
@url_option
@json_option
def command(
    name: str, sizes: tuple[int, ...], repeat: int, also_file: tuple[str, ...], show: bool, remove: bool,
    url: str, as_json: bool, **source: Any,
) -> None:  # fmt: skip
    """Measure how long NAME runs for batches of several sizes, and keep it on the server as its profile.

    It is measured on an instance of its own, so callers are not disturbed, but nothing else should keep the machine
    busy. The batching policies `batch` and `mbs` plan with the profile. It holds for this code, its weights and its
    memory: after a deploy that changes them it is stale. How NAME is batched and kept alive may change.

    \b
    Examples:
      rewarm profile digits --npz examples/digits/test_digits.npz:images[0] --divide 255
      rewarm profile speech --file short.json --also-file long.json --sizes 1,2,4,8 --repeat 20
      rewarm deploy app.py --batching batch --slo 200ms
    """
    if show and remove:
        raise UsageError("give --show or --remove, not both")
    with connect(url) as api:
        if remove or show:
            kept = api.remove_profile(name) if remove else api.profile(name)
            if as_json:
                emit_json(kept)
            elif remove:
                click.echo(f"removed the profile of {name}")
            else:
                _show_kept(kept)
        else:
            _measure(api, name, _settings(sizes, repeat, also_file, source), as_json)


def _settings(sizes: tuple[int, ...], repeat: int, also_file: tuple[str, ...], source: dict[str, Any]) -> Settings:
    from rewarm.bench.profile import Settings

    first = body_of(**source)
    bodies = [first, *(body_of(file=file) for file in also_file)]
    if any(body.content_type != first.content_type for body in bodies):
        raise UsageError("--also-file adds JSON bodies: give the first with --data, --file or --npz")
    by_length = {len(body.content): body.content for body in bodies}
    if len(by_length) < len(bodies):
        raise UsageError("bodies of the same length tell the same; each --also-file must be of another length")
    return Settings(sizes, [by_length[length] for length in sorted(by_length)], first.content_type, repeat)


def _measure(api: Api, name: str, settings: Settings, as_json: bool) -> None:
    from rewarm.bench.load import require_aiohttp
    from rewarm.bench.profile import measure

    require_aiohttp()
    with _bar(as_json) as progress:
        try:
            measured = measure(api, name, settings, progress)
        except FunctionError as error:  # the log of the instance that it was measured on is gone with it
            error.add_note(f"call it with rewarm invoke {name}, then rewarm logs {name} shows what it printed")
            raise
    kept = api.put_profile(name, {"digest": measured.digest, **measured.to_profile().to_json()})
    if as_json:
        emit_json({**kept, "rows": [asdict(row) for row in measured.rows]})
        return
    _show_measured(measured)
    click.echo()
    click.echo(f"kept as the profile of {name} version {kept['version']}")
    click.echo("next: rewarm deploy … --batching batch --slo 200ms")


@contextlib.contextmanager
def _bar(as_json: bool) -> Iterator[Progress]:
    if not wants_progress(as_json):
        yield lambda *_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(), TextColumn("{task.completed}/{task.total} batches"),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console(err=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def show(done: int, total: int, size: int) -> None:
            progress.update(task, completed=done, total=total, description=f"batches of {size}")

        yield show


def _show_measured(measured: Measured) -> None:
    titles = ["batch", "body bytes", "runs", "p50 ms", "p90 ms", "max ms", "ms per request"]
    rows = [
        [
            str(row.size), str(row.body_bytes), str(row.run_ms.count), f"{row.run_ms.p50:.3f}",
            f"{row.run_ms.p90:.3f}", f"{row.run_ms.max:.3f}", f"{row.run_ms.p50 / row.size:.3f}",
        ]
        for row in measured.rows
    ]  # fmt: skip
    show_table(titles, rows, right=titles)


def _show_kept(kept: dict[str, Any]) -> None:
    titles = ["batch", "body bytes", "p50 ms", "ms per request"]
    rows = [
        [str(size), str(body_bytes), f"{run_s * 1e3:.3f}", f"{run_s * 1e3 / size:.3f}"]
        for body_bytes, times_s in zip(kept["body_bytes"], kept["run_s"], strict=True)
        for size, run_s in zip(kept["sizes"], times_s, strict=True)
    ]
    show_table(titles, rows, right=titles)
    click.echo()
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(kept["measured_at"]))
    click.echo(f"measured of {kept['name']} version {kept['version']} at {when}")
    if kept["stale"]:
        click.echo(f"stale: what is deployed now is other code; measure it with: rewarm profile {kept['name']}")
