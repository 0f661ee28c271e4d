"""The sentences in which the core says no."""

from __future__ import annotations

import math

from rewarm.core.state import FunctionState
from rewarm.errors import Busy, DeadlineExceeded, FunctionTimeout, NotFound, OverBudget, StartFailed, Unavailable
from rewarm.facts.request import Request


def unknown(name: str) -> NotFound:
    return NotFound(f"there is no function {name!r}; deploy it, or see what there is with: rewarm ls")


def draining() -> Unavailable:
    return Unavailable("the server is shutting down; try again in a moment")


def full(fn: FunctionState) -> Busy:
    """With when to come back: how long the present queue is expected to take."""
    size = fn.batching.max_size
    per_batch_s = fn.batching.expected_run_s(size) or 0.1
    wait_s = math.ceil(len(fn.queue) / size) * per_batch_s / max(1, len(fn.sandboxes))
    limit = fn.revision.spec.queue_max
    text = f"the queue of {fn.name!r} is full ({limit} requests); try again later or raise queue_max"
    return Busy(text, retry_after_s=float(max(1, math.ceil(wait_s))))


def late(request: Request, now: float, *, starting: bool = False) -> DeadlineExceeded:
    """`starting`: there was no instance yet, only such on their way up."""
    waited_ms = (now - request.arrived_s) * 1e3
    what = ", while an instance was still starting" if starting else ""
    return DeadlineExceeded(f"the deadline passed after {waited_ms:.0f} ms in the queue{what}; the work was not run")


def over_budget(fn: FunctionState, need_bytes: int, budget_bytes: int) -> OverBudget:
    return OverBudget(
        f"an instance of {fn.name!r} needs about {need_bytes >> 20} MB and the memory budget is "
        f"{budget_bytes >> 20} MB; start the server with a larger --memory"
    )


def start_timeout(fn: FunctionState, took_s: float) -> StartFailed:
    return StartFailed(f"{fn.name!r} was not ready after {took_s:.0f} s and was stopped")


def timeout(fn: FunctionState, limit_s: float) -> FunctionTimeout:
    return FunctionTimeout(f"{fn.name!r} ran longer than its timeout of {limit_s:g} s and was stopped")
