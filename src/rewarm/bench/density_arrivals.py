"""A piece of the shipped Azure trace with its time compressed: the same calls for every policy of the experiment."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rewarm.errors import BadDefinition
from rewarm.sim.traces.base import HOUR_S, Options
from rewarm.sim.traces.catalogue import open_trace

TRACE = "azure-2019"
FROM_HOUR = 8.0
CALLS_MIN = 2  # of a function within the piece: fewer teach nothing
PER_HOUR_MAX = 12.0  # of trace: more, and a function is always warm or always waits for itself
_DROP_BUSIEST = 20
_RUN_S = (0.001, 0.2)  # a compressed run time is cut to this


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one function: offsets from the start of the load (s, sorted), and what each runs (s)."""

    times_s: tuple[float, ...]
    run_s: float


def replay(functions: int, duration_s: float, compression: float, seed: int) -> list[Calls]:
    """`functions` of those that qualify, drawn with the seed; each second of load is `compression` seconds of trace.

    Raises BadDefinition if fewer qualify.
    """
    options = Options(
        seed=seed, hours=(FROM_HOUR, FROM_HOUR + duration_s * compression / HOUR_S), drop_busiest=_DROP_BUSIEST
    )
    found: dict[int, list[float]] = {}
    runs_s: dict[int, float] = {}
    for chunk in open_trace(TRACE, options).chunks():
        for at_s, index, run_s in zip(chunk.times_s, chunk.functions, chunk.runs_s, strict=True):
            offset_s = (at_s - options.start_s) / compression
            if offset_s < duration_s:  # the last minute may go beyond the end
                found.setdefault(index, []).append(offset_s)
                runs_s[index] = min(max(run_s / compression, _RUN_S[0]), _RUN_S[1])
    calls_max = 1 + int(PER_HOUR_MAX * duration_s * compression / HOUR_S)  # a timer may meet both ends of the piece
    fit = sorted(index for index, times_s in found.items() if CALLS_MIN <= len(times_s) <= calls_max)
    if len(fit) < functions:
        raise BadDefinition(
            f"{len(fit)} functions of {TRACE} have {CALLS_MIN} to {calls_max} calls in {duration_s:g} s at "
            f"{compression:g} times the speed, not {functions}; take fewer functions or a longer load"
        )
    chosen = sorted(random.Random(seed).sample(fit, functions))
    return [Calls(tuple(sorted(found[index])), runs_s[index]) for index in chosen]
