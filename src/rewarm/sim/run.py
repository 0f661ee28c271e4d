"""Runs one policy, or several at once in processes of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass, field
from typing import Any

from rewarm.facts.function import PolicySpec
from rewarm.policy import registry
from rewarm.policy.keepalive.base import KeepalivePolicy
from rewarm.sim.costs import DEFAULTS, Costs
from rewarm.sim.machine import Machine
from rewarm.sim.report import Report, report
from rewarm.sim.traces.base import Options
from rewarm.sim.traces.catalogue import open_trace
from rewarm.sim.workers import SPAWN, Workers

UNLIMITED_BYTES = 1 << 60
_PROGRESS_S = 0.1  # between two messages of a process

#: Index of the policy, calls that came so far, and how many there will be if the trace tells.
Progress = Callable[[int, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything about a run but the policy. Picklable: processes of their own read the trace themselves."""

    trace: str
    options: Options = field(default_factory=Options)
    costs: Costs = DEFAULTS
    budget_bytes: int = UNLIMITED_BYTES
    max_instances: int = 100  # of a function, at most; the core starts no more than pay


def simulate(
    settings: Settings,
    spec: PolicySpec,
    keepalive: KeepalivePolicy | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Report:
    """One policy over one trace: `keepalive` if given (`spec` is its name then), else what the registry makes of
    `spec`. Raises BadDefinition for a trace, policy or parameter that can not be meant."""
    rule = keepalive if keepalive is not None else registry.keepalive(spec)
    began_s = time.perf_counter()
    trace = open_trace(settings.trace, settings.options)
    machine = Machine(
        rule, trace, settings.costs, budget_bytes=settings.budget_bytes, max_instances=settings.max_instances,
        seed=settings.options.seed, whole_minutes=settings.options.whole_minutes,
    )  # fmt: skip
    done, told_s = 0, 0.0

    def step(calls: int) -> None:
        nonlocal done, told_s
        done += calls
        now_s = time.perf_counter()
        if now_s - told_s >= _PROGRESS_S:
            told_s = now_s
            progress(done, trace.total)

    tally = machine.run(step)
    progress(done, trace.total)
    return report(spec, tally, time.perf_counter() - began_s)


def simulate_all(
    settings: Settings,
    specs: Sequence[PolicySpec],
    *,
    jobs: int | None = None,
    progress: Progress = lambda index, done, total: None,
) -> list[Report]:
    """Each policy over the trace, `jobs` at a time (None: as many as there are cores), in processes of their own if
    that is more than one. The answers are in the order of `specs`, and do not depend on `jobs` but for their speed."""
    for spec in specs:
        registry.keepalive(spec)  # what is wrong with one is told before the others have run
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(specs))
    if jobs <= 1:
        return [
            simulate(settings, spec, progress=lambda done, total, index=index: progress(index, done, total))  # type: ignore[misc]
            for index, spec in enumerate(specs)
        ]
    queue = SPAWN.SimpleQueue()
    with Workers(jobs, _initialise, queue) as pool:
        futures = [pool.submit(_work, index, settings, spec) for index, spec in enumerate(specs)]
        left = set(futures)
        while left:
            ended, left = wait(left, _PROGRESS_S, FIRST_EXCEPTION)
            while not queue.empty():
                progress(*queue.get())
            for future in ended:
                future.result()  # the first mistake ends the others
        return [future.result() for future in futures]


_queue: Any = None  # of the process that was started for `_work`


def _initialise(queue: Any) -> None:
    global _queue
    _queue = queue


def _work(index: int, settings: Settings, spec: PolicySpec) -> Report:
    return simulate(settings, spec, progress=lambda done, total: _queue.put((index, done, total)))
