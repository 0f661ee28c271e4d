"""`rewarm deploy`: put a function on the server."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import duration_text, json_option, size_text, url_option
from rewarm.cli.output import console, emit_json, wants_progress
from rewarm.cli.payload import example
from rewarm.errors import BadDefinition, RewarmError, StartFailed, UsageError
from rewarm.units import counted, human_bytes, human_seconds

if TYPE_CHECKING:
    from rewarm.bench.api import Api
    from rewarm.bench.shipping import Shipment

WAIT_S = 600.0  # for the answer: the first micro-VM of a kind is booted, which may have to be tried again
ISOLATIONS = ("process", "microvm")


@click.command("deploy", short_help="Put a function on the server.")
@click.argument("path", metavar="PATH[:Name]")
@click.option("--handler", metavar="MODULE.ATTR", help="A plain handler(event, context), as on AWS Lambda; "
              "of a file or of a folder.")  # fmt: skip
@click.option("--name", help="The name to deploy under.")
@click.option("--memory", type=size_text, metavar="SIZE", help="Memory of an instance, such as 512MB.")
@click.option("--timeout", type=duration_text, metavar="DURATION", help="Longest run of a call, such as 60s.")
@click.option("--slo", type=duration_text, metavar="DURATION", help="Latency objective, such as 200ms.")
@click.option("--batching", metavar="POLICY", help="none, static:size=5, dynamic:max_size=5,max_wait=300ms, "
              "aimd, slo:mode=latency, slo:mode=cost; batch, mbs: after rewarm profile.")  # fmt: skip
@click.option("--keepalive", metavar="POLICY", help="none, fixed:ttl=10min, …; default: the server's.")
@click.option("--max-instances", type=click.IntRange(1, 1000), help="Instances at a time.")
@click.option("--preload", metavar="A,B", help="Packages imported in the Lang layer.")
@click.option(
    "--pin", metavar="SIZE", help="Weights that may stay in memory: auto, none, all, or a size such as 256MB."
)
@click.option(
    "--isolation",
    type=click.Choice(ISOLATIONS),
    help="What an instance is: a process, or a virtual machine, which can sleep on disk.",
)
@click.option(
    "--sample",
    multiple=True,
    metavar="FILE",
    help="JSON, the body of a call that warms a micro-VM up before it sleeps; may be repeated.",
)
@click.option("--env", multiple=True, metavar="K=V", help="An environment variable; may be repeated.")
@url_option
@json_option
def command(
    path: str, handler: str | None, name: str | None, preload: str | None, sample: tuple[str, ...],
    env: tuple[str, ...], url: str, as_json: bool, **plain: Any,
) -> None:  # fmt: skip
    """Deploy a .py, .mjs, .js or .cjs file, or a folder: one with a rewarm.toml, or with --handler.

    A file goes with the local modules it imports and its weights; a folder goes whole. Code and weights are copied:
    later changes need another deploy. Deploying the same again changes nothing. Options given here win over what the
    file says. JavaScript needs node on the PATH, here (to deploy a file) and on the server.

    \b
    Examples:
      rewarm deploy app.py
      rewarm deploy app.py:Digits --batching slo:mode=cost --slo 200ms
      rewarm deploy handler.py --handler handler.main --name hello --env GREETING=hi
      rewarm deploy ./my-function
      rewarm deploy app.mjs
      rewarm deploy app.py --isolation microvm --sample call.json
      rewarm deploy ./my-function --handler app.handler
    """
    from rewarm.bench.shipping import Wish, of_target

    overrides = {key: value for key, value in plain.items() if value is not None}
    if preload is not None:
        overrides["preload"] = [package.strip() for package in preload.split(",") if package.strip()]
    if env:
        overrides["env"] = dict(_pair(text) for text in env)
    try:
        shipment = of_target(path, Wish(handler, name, overrides, sample))
        with connect(url, timeout_s=WAIT_S) as api:
            done = _upload(api, shipment, as_json)
            body = None if as_json else _example(api, done["name"])
    except StartFailed as error:
        error.exit_code = UsageError.exit_code  # what does not import is not deployed: nothing failed in service
        raise
    if as_json:
        emit_json(done)
        return
    tell(done, body, url)


def _example(api: Api, name: str) -> str | None:
    with contextlib.suppress(RewarmError):  # it is deployed, and stays so
        return example(api.function(name)["spec"].get("inputs", ()))
    return None


def tell(done: Mapping[str, Any], body: str | None, url: str) -> None:
    """For a person: what was deployed, and how to call it."""
    verb = "unchanged" if done.get("unchanged") else "deployed"
    click.echo(f"{verb} {done['name']} version {done['version']} (sha256 {str(done['digest'])[:12]})")
    packed = done.get("weights")
    if packed:
        click.echo(_packed(packed))
    asleep = done.get("asleep")
    if asleep:
        click.echo(
            f"sleeps in {human_bytes(asleep['disk_bytes'])} on disk, wakes in {human_seconds(asleep['restore_s'])} "
            f"instead of {human_seconds(asleep['cold_s'])}"
        )
    call = f"rewarm invoke {shlex.quote(str(done['name']))} --data {'…' if body is None else shlex.quote(body)}"
    click.echo(f"next: {call}" + ("" if _default(url) else f" --url {url}"))


def _packed(weights: Mapping[str, Any]) -> str:
    if not weights["packed"]:
        return f"weights not packed: {weights['why']}"
    order = "in execution order" if weights["order"] == "traced" else "in the order of registration"
    return f"weights packed: {human_bytes(weights['bytes'])} in {counted(weights['layers'], 'layer')}, {order}"


def _upload(api: Api, shipment: Shipment, as_json: bool) -> dict[str, Any]:
    """The server answers once the function is published: weights packed, a guest booted and put to sleep."""
    from rewarm.bench.shipping import upload

    if not wants_progress(as_json):
        return upload(api, shipment)
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(err=True), transient=True) as progress:
        task = progress.add_task("uploading", total=shipment.size_bytes)

        def advance(count: int) -> None:
            progress.advance(task, count)
            if progress.finished:  # how long the rest takes nobody knows
                progress.update(task, visible=False)
                progress.add_task("publishing", total=None)

        return upload(api, shipment, advance)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadDefinition(f"--env takes KEY=VALUE, not {text!r}")
    return key, value


def _default(url: str) -> bool:
    from rewarm.bench.api import default_url

    return url.rstrip("/") == default_url().rstrip("/")
