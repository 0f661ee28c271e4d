"""Options that several commands share, and the words a person may use in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from rewarm.config import DEFAULT_HOST, DEFAULT_PORT
from rewarm.errors import BadDefinition
from rewarm.units import seconds, size_bytes

F = TypeVar("F", bound=Callable[..., Any])


# Plain functions as option types: click shows their names in --help and says which option a BadParameter is about.


def duration(value: Any) -> float:
    """ "200ms", "10min" or a number of seconds → seconds."""
    try:
        return seconds(value)
    except BadDefinition as error:
        raise click.BadParameter(error.message) from None


def size(value: Any) -> int:
    """ "512MB" or a number of bytes → bytes."""
    try:
        return size_bytes(value)
    except BadDefinition as error:
        raise click.BadParameter(error.message) from None


def duration_text(value: str) -> str:
    """Checked here and sent as written: the server reads it again."""
    duration(value)
    return value


def size_text(value: str) -> str:
    """Checked here and sent as written: the server reads it again."""
    size(value)
    return value


def url_option(command: F) -> F:
    return click.option(
        "--url",
        envvar="REWARM_URL",
        default=f"http://{DEFAULT_HOST}:{DEFAULT_PORT}",
        show_default=True,
        show_envvar=True,
        help="The server to talk to.",
    )(command)


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")(command)


def body_options(command: F) -> F:
    """--data, --file, --raw-file, --npz, --divide; see `rewarm.cli.payload`."""
    for option in reversed(
        [
            click.option("--data", metavar="JSON", help="The body, as JSON text."),
            click.option("--file", "file", metavar="F", help="A file with the JSON body; - is standard input."),
            click.option("--raw-file", metavar="F", help="A file with the declared dtype's raw little-endian bytes."),
            click.option("--npz", metavar="F:KEY[I]", help="Row I of array KEY in a .npz file, sent as JSON."),
            click.option("--divide", type=float, metavar="X", help="With --npz: divide every value by X."),
        ]
    ):
        command = option(command)
    return command
