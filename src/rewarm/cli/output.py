"""How results are shown: JSON for programs, tables for people."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from rewarm.bench.report import Verdict

#: A table is not squeezed into a terminal that is too narrow for it, or the 80 columns of a pipe: its lines wrap whole.
TABLE_COLUMNS = 200
_WORD = 24  # longer ones may be broken


def emit_json(value: Any, *, compact: bool = False) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if compact else 2))


def console(*, err: bool = False, columns: int = TABLE_COLUMNS) -> Console:
    from rich.console import Console

    return Console(file=sys.stderr if err else sys.stdout, width=None if err else columns, highlight=False)


def show_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = (), columns: int | None = None
) -> None:
    """`right`: the titles of columns that hold figures. Words are wrapped to fit into `columns`, figures never.

    None: as wide as the terminal, if there is one and the table can be read in it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if columns is None:
        columns = _columns(titles, rows, right)
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(titles),
        collapse_padding=columns < TABLE_COLUMNS,  # where room is scarce, two spaces between columns instead of three
    )  # fmt: skip
    for title in titles:
        figures = title in right
        table.add_column(title, justify="right" if figures else "left", overflow="fold", no_wrap=figures)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: what users named is never read as markup
    console(columns=columns).print(table)


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> int:
    """The terminal's, unless a figure, or a word that is no path, would have to be broken."""
    if not sys.stdout.isatty():
        return TABLE_COLUMNS
    columns = shutil.get_terminal_size().columns
    least = 2 * (len(titles) - 1)
    for number, title in enumerate(titles):
        cells = [title, *(row[number] for row in rows)]
        least += max(
            len(cell) if title in right else min(_WORD, max(map(len, cell.split()), default=0)) for cell in cells
        )
    return columns if least <= columns < TABLE_COLUMNS else TABLE_COLUMNS


def show_verdicts(verdicts: Iterable[Verdict]) -> None:
    """A line for each expectation of an experiment."""
    for verdict in verdicts:
        click.echo(f"{'holds ' if verdict.holds else 'FAILS '} {verdict.claim}: {verdict.measured}")


def wants_progress(as_json: bool) -> bool:
    """A bar only where a person looks: standard error is a terminal and nobody asked for JSON."""
    return not as_json and sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(as_json: bool, what: str = "") -> Iterator[Callable[[int, int, str], None] | None]:
    """Takes steps done, steps in all (`what` they are) and what is under way. None where nobody looks."""
    if not wants_progress(as_json):
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(),
               TextColumn("{task.completed}/{task.total} " + what), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, step: bar.update(task, completed=done, total=total, description=step)
