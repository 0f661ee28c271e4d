"""The minute format of Azure Functions 2019: a row per function, a column per minute of the day with its calls.

Needed: `HashFunction` and `1`, `2`, … ; used if there: `Average` (run time in ms, without cold starts) and `divvied`
(MB of the application's memory per function of it, FaasCache's convention). A call runs for the average.
Where in its minute a call comes is drawn uniformly with the seed, or spaced evenly: n calls 60/n s apart from the start
of the minute, as FaasCache's simulator does.

Only minutes with calls are held in memory, and calls are made one minute at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewarm.sim.traces.base import Chunk, Options, Rows, TracedFunction, bad, busiest, rows
from rewarm.units import MB

MINUTE_S = 60.0
_Ints = NDArray[np.int64]


def fits(header: tuple[str, ...]) -> bool:
    return "HashFunction" in header and "1" in header


class MinuteTrace:
    """Raises BadDefinition if the file can not be meant: all of it is looked at here."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.options = options
        self.functions: list[TracedFunction] = []
        self._run_s: list[float] = []
        counts = self._read()
        dropped = busiest([float(calls.sum()) for _, calls in counts], options.drop_busiest, path)
        keep = [index for index in range(len(counts)) if index not in dropped]
        if not keep:
            raise bad(path, None, "no function is left", "choose hours with calls in them, and functions of the trace")
        self.functions = [self.functions[index] for index in keep]
        self._run_s = [self._run_s[index] for index in keep]
        self._sort([counts[index] for index in keep])

    def _read(self) -> list[tuple[_Ints, _Ints]]:
        """For each function the minutes with calls, and how many. Sets what else is known of it."""
        counts: list[tuple[_Ints, _Ints]] = []
        names: set[str] = set()
        wanted = self.options.functions
        with rows(self.path) as table:
            header = table.header
            (name_at,) = table.columns("HashFunction")
            first, minutes = self._minutes(table)
            self.end_s = min(minutes * MINUTE_S, self.options.end_s)
            for row in table:
                name = table.function(row[name_at])
                if name in names:
                    raise table.bad(f"the function {name!r} comes twice", "merge its rows, or read one day at a time")
                names.add(name)
                if wanted is not None and name not in wanted:
                    continue
                memory = table.number(row[header.index("divvied")], "divvied") if "divvied" in header else None
                average = table.number(row[header.index("Average")], "Average") if "Average" in header else None
                self.functions.append(TracedFunction(name, None if memory is None else round(memory * MB)))
                self._run_s.append(self.options.run_s if average is None else average / 1e3)
                counts.append(self._sparse(_counts(table, row[first : first + minutes])))
        return counts

    def _minutes(self, table: Rows) -> tuple[int, int]:
        """The column of minute 1, and how many follow one another from it."""
        first = table.header.index("1")
        minutes = 0
        while first + minutes < len(table.header) and table.header[first + minutes] == str(minutes + 1):
            minutes += 1
        return first, minutes

    def _sparse(self, calls: _Ints) -> tuple[_Ints, _Ints]:
        active = np.flatnonzero(calls)
        times_s = active * MINUTE_S
        active = active[(times_s >= self.options.start_s) & (times_s < self.options.end_s)]
        return active, calls[active]

    def _sort(self, counts: list[tuple[_Ints, _Ints]]) -> None:
        minutes = np.concatenate([active for active, _ in counts])
        functions = np.repeat(np.arange(len(counts)), [len(active) for active, _ in counts])
        order = np.argsort(minutes, kind="stable")
        self._minute, self._function = minutes[order], functions[order]
        self._calls = np.concatenate([calls for _, calls in counts])[order]
        self.total = len(minutes) if self.options.whole_minutes else int(self._calls.sum())

    def chunks(self) -> Iterator[Chunk]:
        rng = np.random.default_rng(self.options.seed)
        runs_s = np.array(self._run_s)
        for minute in np.unique(self._minute):
            begin, end = np.searchsorted(self._minute, (minute, minute + 1))
            functions, calls = self._function[begin:end], self._calls[begin:end]
            start_s = float(minute) * MINUTE_S
            if self.options.whole_minutes:
                yield Chunk([start_s] * len(functions), functions.tolist(), [MINUTE_S] * len(functions))
                continue
            which = np.repeat(functions, calls)
            if self.options.even:
                starts = np.repeat(np.cumsum(calls) - calls, calls)
                within = (np.arange(len(which)) - starts) / np.repeat(calls, calls)
            else:
                within = rng.random(len(which))
            order = np.argsort(within, kind="stable")
            which = which[order]
            yield Chunk((start_s + MINUTE_S * within[order]).tolist(), which.tolist(), runs_s[which].tolist())


def _counts(table: Rows, cells: list[str]) -> _Ints:
    try:
        calls: Any = np.array(list(map(int, cells)), np.int64)  # quicker than numpy's own reading of text
    except (ValueError, OverflowError):
        calls = None
    if calls is None or (calls < 0).any():
        minute = next(minute for minute, cell in enumerate(cells, 1) if not _is_count(cell))
        what = f"minute {minute} has {cells[minute - 1][:40]!r} calls"
        raise table.bad(what, "write a whole number that is 0 or more")
    counts: _Ints = calls
    return counts


def _is_count(text: str) -> bool:
    try:
        return 0 <= int(text) < 1 << 63
    except ValueError:
        return False
