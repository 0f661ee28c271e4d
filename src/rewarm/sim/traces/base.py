"""What every trace is to the simulator, and how its files are opened and complained about."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rewarm.errors import BadDefinition
from rewarm.facts.function import check_name

HOUR_S = 3600.0
_GZIP_MAGIC = b"\x1f\x8b"
_FIELD_CHARS_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Options:
    """Which part of a trace, and how what it leaves open is filled in. The same for all formats.

    `hours` is [from, to); times stay those of the trace. `drop_busiest` counts calls within these hours, after
    `functions` was applied. `run_s` is the run time of a call where the trace has none. `even`: calls that are known
    by the minute only are spaced evenly instead of drawn uniformly with the seed. `whole_minutes`: one call per
    function and active minute, which lasts the minute.
    """

    seed: int = 1
    hours: tuple[float, float] = (0.0, math.inf)
    drop_busiest: int = 0
    functions: frozenset[str] | None = None
    run_s: float = 1.0
    even: bool = False
    whole_minutes: bool = False

    @property
    def start_s(self) -> float:
        return self.hours[0] * HOUR_S

    @property
    def end_s(self) -> float:
        return self.hours[1] * HOUR_S


@dataclass(frozen=True, slots=True)
class TracedFunction:
    name: str
    memory_bytes: int | None = None  # None: the trace does not say


class Chunk(NamedTuple):
    """Some calls in order of time: arrival (s), index of the function, run time (s)."""

    times_s: list[float]
    functions: list[int]
    runs_s: list[float]


class Trace(Protocol):
    """Calls in order of time. `functions` may grow while chunks are read: an index is known before it is used."""

    @property
    def functions(self) -> Sequence[TracedFunction]: ...

    @property
    def total(self) -> int | None:
        """Calls, where the format tells without reading them all."""

    @property
    def end_s(self) -> float:
        """Idle time is counted up to here; known once the chunks are read."""

    def chunks(self) -> Iterator[Chunk]:
        """From the beginning, each time it is called. Raises BadDefinition at the first row that can not be meant."""


def bad(path: Path, row: int | None, what: str, remedy: str) -> BadDefinition:
    """`row` counts lines of the file from 1, the header among them."""
    where = f"{path}, row {row}" if row is not None else str(path)
    return BadDefinition(f"{where}: {what}; {remedy}")


@contextmanager
def rows(path: Path) -> Iterator[Rows]:
    """The rows of a CSV file, gzip-compressed or not, one at a time."""
    csv.field_size_limit(_FIELD_CHARS_MAX)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            with gzip.open(raw) if packed else raw as plain, io.TextIOWrapper(plain, "utf-8-sig", newline="") as text:
                yield Rows(path, csv.reader(text))
    except FileNotFoundError:
        raise bad(path, None, "no such file", "name a trace file, or one of those that are shipped") from None
    except OSError as error:  # gzip.BadGzipFile among them
        raise bad(path, None, f"cannot be read: {error.strerror or error}", "name a readable trace file") from None
    except (EOFError, zlib.error) as error:
        raise bad(path, None, f"the compressed file is damaged: {error}", "fetch it again") from None
    except UnicodeDecodeError:
        raise bad(path, None, "not a text file", "traces are CSV in UTF-8, plain or compressed with gzip") from None


class Rows:
    """A csv.reader that knows the header and complains with row numbers."""

    def __init__(self, path: Path, reader: Any) -> None:  # a csv.reader, whose type has no public name
        self.path = path
        self._reader = reader
        self.header = tuple(name.strip() for name in next(self, []))

    @property
    def row(self) -> int:
        return int(self._reader.line_num)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        """The next row that is not empty, of the header's width."""
        while True:
            try:
                row: list[str] = next(self._reader)
            except csv.Error as error:
                raise self.bad(f"not CSV: {error}", "write one row a line, with commas") from None
            if not row:
                continue
            header = getattr(self, "header", None)
            if header is not None and len(row) != len(header):
                what = f"{len(row)} columns where the header has {len(header)}"
                raise self.bad(what, "write every row in full, or remove it")
            return row

    def bad(self, what: str, remedy: str) -> BadDefinition:
        return bad(self.path, self.row, what, remedy)

    def columns(self, *names: str) -> list[int]:
        """Where these columns are. Raises BadDefinition for one that is missing."""
        missing = [name for name in names if name not in self.header]
        if missing:
            raise bad(self.path, 1, f"no column {missing[0]!r}", f"the header must have {', '.join(names)}")
        return [self.header.index(name) for name in names]

    def function(self, name: str) -> str:
        """A name that the core takes."""
        try:
            return check_name(name)
        except BadDefinition as error:
            raise self.bad(str(error), "rename it in the trace") from None

    def number(self, text: str, column: str) -> float:
        """A finite number that is 0 or more."""
        try:
            value = float(text)
        except ValueError:
            raise self.bad(f"{column} is {text[:40]!r}, not a number", "correct the row or remove it") from None
        if not 0 <= value < math.inf:
            what = "is negative" if value < 0 else "is not finite"
            raise self.bad(f"{column} {what}: {text}", "correct the row or remove it")
        return value


def busiest(calls: Sequence[float], count: int, path: Path) -> set[int]:
    """The indices of the `count` functions with most calls; between equals, those that come first."""
    if count and count >= len(calls):
        raise bad(path, None, f"{len(calls)} functions, and the {count} busiest are to be dropped", "drop fewer")
    return set(sorted(range(len(calls)), key=lambda index: -calls[index])[:count])
