"""How results are shown: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_COLUMNS = 200  # tables into a pipe are not cut at the 80 columns of no terminal


def emit_json(value: Any, *, compact: bool = False) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if compact else 2))


def console(*, err: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else _PIPE_COLUMNS
    return Console(file=stream, width=width, highlight=False)


def show_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """`right`: the titles of columns that hold figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: what users named is never read as markup
    console().print(table)


def wants_progress(as_json: bool) -> bool:
    """A bar only where a person looks: standard error is a terminal and nobody asked for JSON."""
    return not as_json and sys.stderr.isatty()
