"""How the demo looks in a terminal: a digit in half blocks, its probabilities, and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from demo_traffic import Floats, Moment, Shot
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from rewarm.units import human_bytes

SIDE = 28
COLOURS = {"cold": "#d55e00", "lang": "#0072b2", "warm": "#009e73"}
WORDS = {"cold": "nothing alive", "lang": "living Lang layer", "warm": "warm instance"}
_SHADES = " ░▒▓█"


def digit(console: Console, pixels: npt.NDArray[np.uint8]) -> Text:
    """28 x 28 pixels as 14 lines: half blocks with two greys each, or shades where there is no colour."""
    rows = pixels.reshape(SIDE, SIDE)
    colours = console.color_system in ("truecolor", "256")
    picture = Text()
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for top, bottom in zip(upper.tolist(), lower.tolist(), strict=True):
            if colours:
                picture.append("▀", f"rgb({top},{top},{top}) on rgb({bottom},{bottom},{bottom})")
            else:
                picture.append(_SHADES[(top + bottom) * (len(_SHADES) - 1) // 510])
        picture.append("\n")
    picture.rstrip()
    return picture


def answer(console: Console, pixels: npt.NDArray[np.uint8], probabilities: Floats) -> None:
    """The picture and, beside it, the ten probabilities."""
    best = int(probabilities.argmax())
    bars = Text("\n\n")
    for value, share in enumerate(probabilities.tolist()):
        style = "bold green" if value == best else "dim"
        bars.append(f"{value}  {'█' * round(share * 24) or '·':<24} {share:7.2%}\n", style)
    grid = Table.grid(padding=(0, 4))
    grid.add_row(digit(console, pixels), bars)
    console.print(grid)


def batch_sizes(console: Console, shots: Sequence[Shot]) -> None:
    """How many requests shared a call of the function with how many others."""
    counts = Counter(shot.batch_size for shot in shots)
    widest = max(counts.values())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("batch of", justify="right")
    table.add_column("requests", justify="right")
    table.add_column("")
    for size, count in sorted(counts.items()):
        table.add_row(str(size), str(count), Text("█" * max(1, round(30 * count / widest)), COLOURS["warm"]))
    console.print(table)


def ladder(console: Console, rungs: Sequence[tuple[str, float, int]]) -> None:
    """(start kind, latency in ms, samples): what a caller waits for, by what the request found."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="one digit, as its caller sees it", title_justify="left")
    table.add_column("the request found")
    table.add_column("Rewarm-Start")
    table.add_column("answer after", justify="right")
    table.add_column("to warm", justify="right")
    table.add_column("samples", justify="right")
    warm_ms = rungs[-1][1]
    for kind, latency_ms, samples in rungs:
        times = f"{latency_ms / warm_ms:.0f} x"
        table.add_row(Text(WORDS[kind], COLOURS[kind]), kind, f"{latency_ms:.2f} ms", times, str(samples))
    console.print(table)


def alive(moment: Moment) -> str:
    """One line of what there is."""
    held = human_bytes(moment.instance_bytes + moment.zygote_bytes)
    return f"{moment.instances} instances, {moment.zygotes} zygotes, {held} held"


@contextmanager
def bar(console: Console, text: str, total: float) -> Iterator[tuple[Progress, TaskID]]:
    """A progress bar that goes away when it is done; nothing where nobody looks."""
    columns = (TextColumn("  {task.description}"), BarColumn(40), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress, progress.add_task(text, total=total)
