"""`rewarm invoke`: call a function."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rewarm.cli.client import connect
from rewarm.cli.options import body_options, duration, json_option, url_option
from rewarm.cli.output import emit_json
from rewarm.cli.payload import body_of
from rewarm.errors import BadRequest, FunctionError

if TYPE_CHECKING:
    from rewarm.bench.api import Answer


@click.command("invoke", short_help="Call a function.")
@click.argument("name")
@body_options
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="Call so often, one after another.")
@click.option("--headers", is_flag=True, help="Show where the time went, on standard error.")
@click.option("--timeout", type=duration, help="Give up if it has not been started after that long.")
@url_option
@json_option
def command(
    name: str, count: int, headers: bool, timeout: float | None, url: str, as_json: bool, **source: Any
) -> None:
    """Call NAME and print its answer.

    A function on arrays takes one row: JSON such as [0.1, 0.2], {"NAME": […]} for several inputs, or raw bytes. A
    handler takes its event. Without a body the event is {}. With --json each answer is one line
    {"status", "start", "queue_ms", "init_ms", "run_ms", "batch_size", "body"}.

    \b
    Examples:
      rewarm invoke hello --data '{"name": "Ada"}'
      rewarm invoke digits --npz examples/digits/test_digits.npz:images[7] --divide 255
      rewarm invoke digits --file image.json --count 5 --headers
      cat event.json | rewarm invoke hello --file -
    """
    body = body_of(**source)
    with connect(url) as api:
        for _ in range(count):
            try:
                answer = api.invoke(name, body.content, body.content_type, timeout)
            except FunctionError as error:
                error.add_note(f"rewarm logs {name} shows what it printed")
                raise
            except BadRequest as error:
                if not any(source.values()):
                    error.add_note(f"give a body: rewarm invoke {name} --data JSON")
                raise
            if as_json:
                emit_json(_described(answer), compact=True)
            else:
                _show(answer, headers)


def _show(answer: Answer, headers: bool) -> None:
    if headers:
        for key, value in sorted(answer.headers.items()):
            if key.startswith("rewarm-"):
                click.echo(f"{key.title()}: {value}", err=True)
    if _is_json(answer):
        click.echo(answer.body.decode(errors="replace").rstrip("\n"))
    elif sys.stdout.isatty():
        click.echo(f"{len(answer.body)} bytes, not text; send them to a file or a pipe to have them", err=True)
    else:
        click.echo(answer.body, nl=False)


def _described(answer: Answer) -> dict[str, Any]:
    from rewarm.bench.api import Timing

    body: Any
    if _is_json(answer):
        try:
            body = json.loads(answer.body) if answer.body else None
        except ValueError:
            body = answer.body.decode(errors="replace")
    else:
        import base64

        # Bytes have no form in JSON; base64 is the usual one.
        body = {"base64": base64.b64encode(answer.body).decode()}
    return {"status": answer.status, **asdict(Timing.of(answer.headers)), "body": body}


def _is_json(answer: Answer) -> bool:
    kind = answer.headers.get("content-type", "application/json").partition(";")[0].strip()
    return kind != "application/octet-stream"
