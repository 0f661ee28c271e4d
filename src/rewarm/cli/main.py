"""The group `rewarm`: finds a command's module by its name and turns every failure into one line and an exit code.

Exit codes: 0 well, 1 a fault on our side, 2 the caller's input, 3 busy, 4 deadline passed, 5 the function failed,
130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from rewarm import __version__
from rewarm.errors import RewarmError, SystemFault, UsageError

#: Command → the module in this room whose attribute `command` it is.
COMMANDS = {
    "serve": "serve",
    "deploy": "deploy",
    "invoke": "invoke",
    "ls": "ls",
    "ps": "ps",
    "logs": "logs",
    "rm": "rm",
    "versions": "versions",
    "rollback": "rollback",
    "load": "load",
    "pack": "pack",
    "profile": "profile",
    "experiment": "experiment",
    "sim": "sim",
    "microvm": "microvm",
    "doctor": "doctor",
}
#: What click raises for a group without a command: its message is the whole help. Before 8.2 click shows it by itself.
_HELP_ERROR: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
#: What to do where the message itself does not say it. A command that knows more adds it as a note to the error.
_HINTS = {
    "queue_full": "the queue is full; send less, or deploy with more --max-instances",
    "over_memory_budget": "rewarm ps shows what holds memory; rewarm serve --memory sets the budget",
    "function_timeout": "deploy with a longer --timeout if it needs the time",
    "out_of_memory": "deploy with more --memory",
}


class LazyGroup(click.Group):
    """Commands are imported by name when they are needed; errors are ours to show."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = importlib.import_module(f"rewarm.cli.{module}").command
        assert isinstance(found, click.Command)
        return found

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        given = list(sys.argv[1:] if args is None else args)
        # Asked of the raw words, since a failure to parse them must be told as JSON too.
        as_json = "--json" in given
        extra["standalone_mode"] = False
        try:
            code = super().main(given, *rest, **extra)
            sys.stdout.flush()
        except BaseException as error:  # the one place where nothing may pass
            sys.exit(_report(error, as_json))
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: BaseException, as_json: bool) -> int:
    """Shows `error` to a person (and as JSON to a program) and returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        # Whoever read our output has gone. What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, _HELP_ERROR):
        error.show()
        return UsageError.exit_code
    known, hint = _known(error)
    click.echo(f"error: {' '.join(known.message.splitlines())}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
    if as_json:
        click.echo(json.dumps(known.to_json(), ensure_ascii=False))
    return known.exit_code


def _known(error: BaseException) -> tuple[RewarmError, str | None]:
    """Any error as one of ours, with what to do about it."""
    if isinstance(error, RewarmError):
        hint = _HINTS.get(error.code, next(iter(getattr(error, "__notes__", ())), None))
        if hint is None and error.retry_after_s is not None:
            hint = f"try again in {error.retry_after_s:g} s"
        return error, hint
    if isinstance(error, click.ClickException):
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "rewarm"
        return UsageError(error.format_message()), f"{where} --help"
    if isinstance(error, OSError):
        return SystemFault(str(error)), None
    if os.environ.get("REWARM_DEBUG"):
        raise error
    return SystemFault(f"a bug in rewarm: {type(error).__name__}: {error}"), "REWARM_DEBUG=1 shows where"


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rewarm")
def rewarm() -> None:
    """Serverless inference that scales to zero and comes back before the caller notices.

    \b
    Examples:
      rewarm serve                          start a server
      rewarm deploy app.py                  put a function on it
      rewarm invoke digits --file one.json  call the function
      rewarm ps                             see what is alive and what it holds
    """


def main() -> NoReturn:
    """The entry point of the `rewarm` script."""
    rewarm.main()
