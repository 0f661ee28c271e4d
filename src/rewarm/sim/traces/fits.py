"""ServeGen's fits (Xiang et al., arXiv 2505.09999): for each client and ten minutes a rate and a distribution of gaps.

Columns: `client, window_start_s, rate_per_s, iat_dist` (Gamma or Weibull), `shape, scale`; `iat_cv` may be there. A
client is a function. As ServeGen does, gaps are drawn from the fit and stretched to fill the window, so that it has as
many calls as were counted. Requests have no run time there: `Options.run_s` is used.

Memory holds the fits, 40 bytes for each, and the calls of one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rewarm.sim.traces.base import Chunk, Options, Rows, TracedFunction, bad, busiest, rows

COLUMNS = ("client", "window_start_s", "rate_per_s", "iat_dist", "shape", "scale")
WINDOW_S = 600.0
_CALLS_MAX = 10_000_000  # in one window of one client: more is a rate in another unit
_FITS_MAX = 20_000_000


def fits(header: tuple[str, ...]) -> bool:
    return set(COLUMNS) <= set(header)


class FittedTrace:
    """Raises BadDefinition if the file can not be meant: all of it is looked at here."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.options = options
        names, table = self._read()
        calls = np.bincount(table["function"], table["calls"], len(names)) if len(table) else np.zeros(len(names))
        dropped = busiest(calls.tolist(), options.drop_busiest, path)
        keep = [index for index in range(len(names)) if index not in dropped]
        table = table[np.isin(table["function"], keep)]
        if not len(table):
            raise bad(path, None, "no client is left", "choose hours with calls in them, and clients of the trace")
        table["function"] = np.searchsorted(keep, table["function"])
        self.functions = [TracedFunction(names[index]) for index in keep]
        self._fits = table[np.lexsort((table["function"], table["start_s"]))]
        self.total = int(table["calls"].sum())
        self.end_s = min(float(table["start_s"].max()) + WINDOW_S, options.end_s)

    def _read(self) -> tuple[list[str], NDArray[np.void]]:
        """The clients, and one record for each fit that was asked for."""
        index: dict[str, int] = {}
        found: list[tuple[int, float, int, bool, float]] = []
        seen: set[tuple[str, float]] = set()
        wanted, start_s, end_s = self.options.functions, self.options.start_s, self.options.end_s
        with rows(self.path) as table:
            at = table.columns(*COLUMNS)
            for row in table:
                client, cells = row[at[0]], [row[position] for position in at[1:]]
                name, fit = _fit(table, client, cells)
                if (name, fit[0]) in seen:
                    raise table.bad(f"client {client!r} has this window twice", "remove one of the rows")
                seen.add((name, fit[0]))
                if len(seen) > _FITS_MAX:
                    raise table.bad(f"more than {_FITS_MAX:,} windows", "split the file")
                if start_s <= fit[0] < end_s and fit[1] and (wanted is None or name in wanted):
                    found.append((index.setdefault(name, len(index)), *fit))
        kinds = [("function", "i4"), ("start_s", "f8"), ("calls", "i8"), ("weibull", "?"), ("shape", "f8")]
        return list(index), np.array(found, dtype=kinds)

    def chunks(self) -> Iterator[Chunk]:
        rng = np.random.default_rng(self.options.seed)
        starts = self._fits["start_s"]
        for start_s in np.unique(starts):
            begin, end = np.searchsorted(starts, start_s), np.searchsorted(starts, start_s, "right")
            window = self._fits[begin:end]
            times_s = np.concatenate([start_s + _times_s(fit, rng) for fit in window])
            functions = np.repeat(window["function"], window["calls"])
            order = np.argsort(times_s, kind="stable")
            yield Chunk(times_s[order].tolist(), functions[order].tolist(), [self.options.run_s] * len(order))


def _times_s(fit: np.void, rng: np.random.Generator) -> NDArray[np.float64]:
    """When within its window the calls come. One gap more than calls: the last one reaches the end of the window."""
    count, shape = int(fit["calls"]) + 1, float(fit["shape"])
    gaps = rng.weibull(shape, count) if fit["weibull"] else rng.gamma(shape, 1.0, count)
    times_s = np.cumsum(gaps)
    if not 0 < times_s[-1] < np.inf:  # a shape so small that every gap came out as nothing
        return np.sort(rng.random(count - 1)) * WINDOW_S
    within_s: NDArray[np.float64] = np.minimum(times_s[:-1] * (WINDOW_S / times_s[-1]), np.nextafter(WINDOW_S, 0.0))
    return within_s


def _fit(table: Rows, client: str, cells: list[str]) -> tuple[str, tuple[float, int, bool, float]]:
    """The function's name, and of its window the start (s), the calls, whether it is Weibull, and the shape.

    The scale is read and checked, and then of no use: gaps are stretched to the window.
    """
    start_s, rate = table.number(cells[0], "window_start_s"), table.number(cells[1], "rate_per_s")
    shape, scale = table.number(cells[3], "shape"), table.number(cells[4], "scale")
    if start_s % WINDOW_S:
        raise table.bad(f"window_start_s {start_s:g} is no multiple of {WINDOW_S:g}", "use windows of ten minutes")
    if cells[2] not in ("Gamma", "Weibull"):
        raise table.bad(f"iat_dist is {cells[2][:40]!r}", "use Gamma or Weibull")
    if not shape or not scale:
        raise table.bad("shape and scale must be more than 0", "correct the row or remove it")
    if rate * WINDOW_S > _CALLS_MAX:
        raise table.bad(f"rate_per_s is {rate:g}", f"at most {_CALLS_MAX / WINDOW_S:,.0f} calls a second are read")
    return table.function(f"client-{client}"), (start_s, round(rate * WINDOW_S), cells[2] == "Weibull", shape)
