"""Traces with a row per call: the plain `t_s,function,duration_s`, and Azure Functions 2021.

Azure's rows are `app,func,end_timestamp,duration`: the call came at `end_timestamp - duration`. Its times are rounded,
so that an arrival may be a little before the one above it; it is then taken to come at the same time.

Rows are read one after the other and forgotten. What is kept is a count per function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rewarm.sim.traces.base import Chunk, Options, Rows, TracedFunction, bad, busiest, rows

PLAIN = ("t_s", "function", "duration_s")
AZURE_2021 = ("app", "func", "end_timestamp", "duration")
_CHUNK_ROWS = 4096
_FUNCTIONS_MAX = 1_000_000  # more are most likely columns in the wrong order
_ROUNDING_S = 0.01  # of Azure's end times and durations
_ID_CHARS = 24  # of Azure's hashes: app and function fit into one name

_Call = tuple[float, str, float]  # arrival, function, run time


def fits(header: tuple[str, ...]) -> bool:
    return set(PLAIN) <= set(header) or set(AZURE_2021) <= set(header)


class CallTrace:
    """Rows are checked as they are read. `total` is known if the file had to be read for its busiest functions."""

    total: int | None = None

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.options = options
        self.functions: list[TracedFunction] = []
        self.end_s = options.start_s
        self._dropped: frozenset[str] = frozenset()
        if options.drop_busiest:
            self._dropped = self._find_busiest(options.drop_busiest)

    def _find_busiest(self, count: int) -> frozenset[str]:
        calls: dict[str, int] = {}
        for _, function, _ in self._calls():
            calls[function] = calls.get(function, 0) + 1
        names = list(calls)
        dropped = busiest([float(calls[name]) for name in names], count, self.path)
        self.total = sum(calls[name] for index, name in enumerate(names) if index not in dropped)
        return frozenset(names[index] for index in dropped)

    def chunks(self) -> Iterator[Chunk]:
        self.functions, end_s = [], self.options.start_s
        index: dict[str, int] = {}
        chunk = Chunk([], [], [])
        for at_s, name, run_s in self._calls():
            function = index.get(name)
            if function is None:
                if chunk.times_s:  # else it would be known before its first call, as no policy can know it
                    yield chunk
                    chunk = Chunk([], [], [])
                function = index[name] = len(index)
                self.functions.append(TracedFunction(name))
            chunk.times_s.append(at_s)
            chunk.functions.append(function)
            chunk.runs_s.append(run_s)
            end_s = max(end_s, at_s + run_s)
            if len(chunk.times_s) == _CHUNK_ROWS:
                yield chunk
                chunk = Chunk([], [], [])
        if not index:
            raise bad(self.path, None, "no call is left", "choose hours with calls in them, and functions of the trace")
        self.end_s = min(end_s, self.options.end_s)
        yield chunk

    def _calls(self) -> Iterator[_Call]:
        """The calls that were asked for, checked."""
        wanted, dropped, start_s, end_s = (
            self.options.functions,
            self._dropped,
            self.options.start_s,
            self.options.end_s,
        )
        known: set[str] = set()
        before_s = 0.0
        with rows(self.path) as table:
            parse, slack_s = _parser(table)
            for row in table:
                at_s, name, run_s = parse(row)
                if at_s < before_s:
                    if before_s - at_s > slack_s:
                        what = f"a call at {at_s:g} s comes after one at {before_s:g} s"
                        raise table.bad(what, "sort the rows by the time at which calls came")
                    at_s = before_s
                before_s = at_s
                if name not in known:
                    known.add(table.function(name))
                    if len(known) > _FUNCTIONS_MAX:
                        what = f"more than {_FUNCTIONS_MAX:,} functions"
                        raise table.bad(what, "is the order of the columns that of the header?")
                if start_s <= at_s < end_s and name not in dropped and (wanted is None or name in wanted):
                    yield at_s, name, run_s


def _parser(table: Rows) -> tuple[Callable[[list[str]], _Call], float]:
    """How a row is read, and by how much its time may go back."""
    number = table.number
    if set(PLAIN) <= set(table.header):
        time_at, function_at, run_at = table.columns(*PLAIN)
        return lambda row: (number(row[time_at], "t_s"), row[function_at], number(row[run_at], "duration_s")), 0.0
    app_at, func_at, end_at, run_at = table.columns(*AZURE_2021)

    def azure(row: list[str]) -> _Call:
        run_s = number(row[run_at], "duration")
        at_s = number(row[end_at], "end_timestamp") - run_s
        return at_s, f"{row[app_at][:_ID_CHARS]}.{row[func_at][:_ID_CHARS]}", run_s

    return azure, _ROUNDING_S
