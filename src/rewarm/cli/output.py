"""How results are shown: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

_TABLE_COLUMNS = 200  # a table is not squeezed into a narrow terminal or the 80 columns of a pipe: its lines wrap whole


def emit_json(value: Any, *, compact: bool = False) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if compact else 2))


def console(*, err: bool = False) -> Console:
    from rich.console import Console

    return Console(file=sys.stderr if err else sys.stdout, width=None if err else _TABLE_COLUMNS, highlight=False)


def show_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """`right`: the titles of columns that hold figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(titles))
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: what users named is never read as markup
    console().print(table)


def wants_progress(as_json: bool) -> bool:
    """A bar only where a person looks: standard error is a terminal and nobody asked for JSON."""
    return not as_json and sys.stderr.isatty()
