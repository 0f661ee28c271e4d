"""Is one more instance worth starting for this queue?

Ski rental: a queue that the present instances will have served before a new one could be ready is not worth a start.
Without a known run time, having waited as long as a start takes is the evidence.
"""

from __future__ import annotations

import math

from rewarm.core.state import FunctionState
from rewarm.core.timers import Timers

_ROUNDING_S = 1e-6  # a moment this near has come: a sum of floats on a clock of weeks is no finer


def wants_one(fn: FunctionState, timers: Timers, now: float) -> bool:
    """For a function with a queue and no idle instance. May arm the function's timer to be asked again."""
    live = fn.live
    if live == 0:
        return True
    if now < fn.retry_at_s:
        return False  # the last start failed; the instances that live go on with the queue
    size = fn.batching.max_size
    batches = math.ceil(len(fn.queue) / size)
    if fn.rising >= batches:
        return False
    run_s = fn.batching.expected_run_s(size)
    start_s = fn.start_s.value
    if run_s is not None and batches / live * run_s > start_s:
        return True
    if fn.rising:
        return False
    waited_s = now - fn.queue[0].arrived_s
    if waited_s >= start_s - _ROUNDING_S:
        return True
    timers.arm(fn, now + start_s - waited_s)
    return False
