"""The keep-alive experiment: fronts of start-up time against idle memory, over shipped traces, in the simulator.

Two halves of the functions. Every setting of every policy runs over the tuned half; what goes over the held-out half
is in `keepalive_sweeps`. All policies, the bounds among them, go through the same simulator with the same costs. Each
run is a process's work of its own, and the figures do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rewarm.bench import fronts, machine
from rewarm.bench import keepalive_sweeps as sweeps
from rewarm.bench.keepalive_rules import Optimum, Watched
from rewarm.bench.keepalive_sweeps import Job
from rewarm.facts.function import PolicySpec
from rewarm.policy import registry
from rewarm.policy.keepalive.base import KeepalivePolicy
from rewarm.policy.keepalive.lru import LeastRecentlyUsed
from rewarm.sim.report import Report
from rewarm.sim.run import Settings, simulate
from rewarm.sim.traces.base import Options
from rewarm.sim.traces.catalogue import open_trace
from rewarm.sim.workers import Workers

Progress = Callable[[int, int, str], None]  # runs done, runs in all, what is running

#: Classes of functions by the coefficient of variation of their gaps between calls, [from, to).
CV_CLASSES = {
    "< 0.5": (0.0, 0.5),
    "0.5–1": (0.5, 1.0),
    "1–2": (1.0, 2.0),
    "2–4": (2.0, 4.0),
    "≥ 4": (4.0, float("inf")),
}
FEW = "< 3 calls"  # which have no variation to speak of
_FRONT_MIN = 8


@dataclass(frozen=True, slots=True)
class Share:
    """What the functions of one class have in a run."""

    functions: int
    calls: int
    startup_s: float  # of all their calls together
    idle_gb_h: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run and its figures; `to_json` has the published keys. `classes` is known for costs "user" only."""

    job: Job
    startup_s_mean: float
    startup_s_p99: float
    cold_pct: float
    cold_pct_p75_function: float
    idle_gb_h: float
    wasted_gb_h: float
    wait_s_mean: float
    refused: int
    classes: Mapping[str, Share]

    @property
    def point(self) -> fronts.Point:
        return self.idle_gb_h, self.startup_s_mean

    def to_json(self) -> dict[str, Any]:
        figures = ("startup_s_mean", "startup_s_p99", "cold_pct", "cold_pct_p75_function", "idle_gb_h", "wasted_gb_h")
        return {
            "policy": self.job.policy, "params": dict(self.job.params), "trace": self.job.trace,
            "split": self.job.split, **{name: float(f"{getattr(self, name):.6g}") for name in figures},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    quick: bool
    machine: Mapping[str, Any]
    outcomes: Sequence[Outcome]

    def of(self, costs: str, trace: str, split: str, policy: str | None = None) -> list[Outcome]:
        wanted = (costs, trace, split)
        return [
            outcome
            for outcome in self.outcomes
            if (outcome.job.costs, outcome.job.trace, outcome.job.split) == wanted
            and policy in (None, outcome.job.policy)
        ]


# ---------------------------------------------------------------- one run


def run_job(job: Job) -> Outcome:
    """One policy over one half of one trace."""
    options = sweeps.options(job.trace, job.split, job.quick)
    trace = open_trace(job.trace, options)
    rule = Watched(_rule(job, options), trace.end_s)
    settings = Settings(
        job.trace, options, sweeps.COSTS[job.costs], job.budget_bytes, sweeps.MAX_INSTANCES[job.costs]
    )  # fmt: skip
    found = simulate(settings, PolicySpec(job.policy, job.params), rule)
    user_only = job.costs == "user"
    # With one layer, a call that needs a start found nothing: layers of no cost are none.
    cold_pct = 100.0 * found.started / max(1, found.invocations) if user_only else found.cold_pct
    return Outcome(
        job, found.startup_s_mean, found.startup_s_p99, cold_pct,
        found.start_pct_p75_function if user_only else found.cold_pct_p75_function,
        found.idle_gb_h, found.wasted_gb_h, found.wait_s_mean, sum(found.rejected.values()) + found.unserved,
        _shares(found, rule.idle_gb_h(), _classes(job.trace, options)) if user_only else {},
    )  # fmt: skip


def _rule(job: Job, options: Options) -> KeepalivePolicy:
    if job.policy == "optimum":
        return Optimum(job.params["price"], arrivals_s(job.trace, options))
    if job.policy == "never-unload":
        return LeastRecentlyUsed()  # and there is no budget
    params = {key: value for key, value in job.params.items() if key != "memory_gb"}
    return registry.keepalive(PolicySpec(job.policy, params))


def arrivals_s(trace: str, options: Options) -> dict[str, list[float]]:
    """When each function is called, in order."""
    opened = open_trace(trace, options)
    found: list[list[float]] = []
    for chunk in opened.chunks():
        found += [[] for _ in range(len(opened.functions) - len(found))]
        for at_s, function, _ in zip(*chunk, strict=True):
            found[function].append(at_s)
    return {function.name: times for function, times in zip(opened.functions, found, strict=True)}


def cv_class(times_s: Sequence[float]) -> str:
    """The class of a function that was called at these times, by standard deviation over mean of the gaps."""
    if len(times_s) < 3:
        return FEW
    gaps = [after - before for before, after in pairwise(times_s)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    cv = variance**0.5 / mean if mean > 0 else 0.0
    return next(name for name, (first, last) in CV_CLASSES.items() if first <= cv < last)


def _classes(trace: str, options: Options) -> dict[str, str]:
    return {function: cv_class(times_s) for function, times_s in arrivals_s(trace, options).items()}


def _shares(found: Report, idle_gb_h: Mapping[str, float], classes: Mapping[str, str]) -> dict[str, Share]:
    shares = {}
    for name in (FEW, *CV_CLASSES):
        members = [function for function in found.functions if classes[function.name] == name]
        if members:
            shares[name] = Share(
                len(members),
                sum(function.calls for function in members),
                sum(function.startup_s for function in members),
                sum(idle_gb_h.get(function.name, 0.0) for function in members),
            )
    return shares


# ---------------------------------------------------------------- all runs


def run(quick: bool, on_progress: Progress | None = None, jobs: int | None = None) -> Result:
    """Everything, on all cores (or in `jobs` processes)."""
    tell = on_progress or (lambda done, total, label: None)
    described = machine.describe()
    first = [Job("user", trace, "whole", "never-unload", {}) for trace in sweeps.TRACES] + sweeps.comparison(quick)
    first += [job for trace in sweeps.TRACES for job in tuning(trace, quick)]
    searched = sum(job.policy in sweeps.SEARCHED for job in first)
    expected = 2 * len(first) - searched  # nearly: what is carried over is not known yet
    tell(0, expected, "starting")
    with Workers(jobs or machine.usable_cores()) as pool:
        tuned = _work(pool, first, lambda done, job: tell(done, expected, _label(job)))
        held_out = [job for trace in sweeps.TRACES for job in carried(trace, tuned)]
        total = len(first) + len(held_out)
        rest = _work(pool, held_out, lambda done, job: tell(len(first) + done, total, _label(job)))
    return Result(quick, described, [*tuned, *rest])


def _work(pool: Workers, todo: Sequence[Job], tell: Callable[[int, Job], None]) -> list[Outcome]:
    """The outcomes in the order of `todo`. Raises what the first run that fails raises."""
    futures = [pool.submit(run_job, job) for job in todo]
    for done, future in enumerate(as_completed(futures), 1):
        tell(done, future.result().job)
    return [future.result() for future in futures]


def _label(job: Job) -> str:
    return f"{job.trace}, {job.split}, {job.policy}"


def tuning(trace: str, quick: bool) -> list[Job]:
    return [Job("user", trace, "tuned", policy, params, quick) for policy, params in sweeps.sweeps(trace, quick)]


def carried(trace: str, tuned: Iterable[Outcome]) -> list[Job]:
    """What goes to the held-out half: of a searched grid its front, of the others every setting."""
    ours = [one for one in tuned if (one.job.costs, one.job.trace, one.job.split) == ("user", trace, "tuned")]
    keep = [one for one in ours if one.job.policy not in sweeps.SEARCHED]
    for policy in sweeps.SEARCHED:
        grid = [one for one in ours if one.job.policy == policy]
        keep += fronts.at_least(grid, lambda one: one.point, _FRONT_MIN)
    return [Job("user", trace, "heldout", one.job.policy, one.job.params, one.job.quick) for one in keep]
