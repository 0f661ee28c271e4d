"""Sixty functions of three runtimes in memory for about a fifth of them: keep-alive policies on the live platform.

The functions are deployed once. A server with memory for all of them loads them all, and what it then holds makes the
budget: a share of what the instances hold, and what the runtimes below them hold. Then each policy has a server of its
own with this budget, beginning with nothing alive, and the same calls at the same intended times. Idle memory is what
the server's own meter says at the end; what is still idle then counts as wasted, as in the simulator.

Time is compressed, and start-ups are not. So that a policy decides as it would at the trace's own speed, each of its
parameters that is a duration is divided by the compression, and each price of a MB·s is multiplied by it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.bench import density_arrivals, density_functions, machine, shipping, stats
from rewarm.bench.api import Api
from rewarm.bench.density_arrivals import Calls
from rewarm.bench.density_functions import DensityFunction
from rewarm.bench.load import Plan, Sample, run_load
from rewarm.bench.local_server import local_server
from rewarm.errors import SystemFault
from rewarm.facts.sandbox import StartKind
from rewarm.policy import registry
from rewarm.units import MB

_PRICE = 2e-5  # hazard's default, start-up seconds per MB·s
_ALPHA = 0.996  # RainbowCake's
_BUDGET_BYTES_MIN = 64 * MB  # of a server
_WAIT_S, _POLL_S = 120.0, 0.1
_SETTLE_S = 2.5  # memory is measured once a second
_CONNECTIONS = 64

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is under way


@dataclass(frozen=True, slots=True)
class Settings:
    """What is published with the figures. `duration_s` is that of the load for each policy."""

    functions: int = 60
    duration_s: float = 100.0
    compression: float = 60.0
    budget_share: float = 0.2
    seed: int = 1
    quick: bool = False
    also: tuple[str, ...] = ()  # further policies, just as they are written

    def policies(self) -> dict[str, str]:
        """Name in the table → what the server is told."""
        speed = self.compression
        price = _PRICE * speed
        return {
            "fixed-lru": f"fixed:ttl_s={600 / speed:g},bare_s={60 / speed:g},evict=lru",
            "rainbowcake": f"rainbowcake:alpha={_alpha(speed * (1 - _ALPHA) / _ALPHA):.6g},floor_s={60 / speed:g}",
            "rainbowcake-at-price": f"rainbowcake:alpha={_alpha(price):.6g},floor_s={60 / speed:g}",
            "hazard": f"hazard:price={price:g}",
            **{text: text for text in self.also},
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "quick": self.quick, "functions": self.functions, "duration_s": self.duration_s, "seed": self.seed,
            "compression": self.compression, "budget_share": self.budget_share, "policies": self.policies(),
            "trace": density_arrivals.TRACE, "from_hour": density_arrivals.FROM_HOUR,
            "calls_min": density_arrivals.CALLS_MIN, "calls_per_hour_max": density_arrivals.PER_HOUR_MAX,
            "held_mb": list(density_functions.HELD_MB),
            "start_s": list(density_functions.START_S), "max_instances": 1,
            "startup": "Rewarm-Init-Ms of good answers; 0 for a request that found a warm instance",
            "wasted": "idle memory that ended unused or was idle at the end; MB of 2**20 bytes",
        }  # fmt: skip


QUICK = Settings(functions=48, duration_s=25.0, quick=True)


def _alpha(price: float) -> float:
    """RainbowCake's alpha that says the same as a price: (1 - alpha) / alpha."""
    return 1.0 / (1.0 + price)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy. Milliseconds, and MB·s of 2**20 bytes; shares are percent of the good answers."""

    policy: str
    keepalive: str
    requests: int
    errors: int
    startup: stats.Summary
    latency: stats.Summary
    starts: Mapping[str, int]
    used_mb_s: float
    wasted_mb_s: float
    evictions: int
    held_mb_max: float
    lag_ms_max: float
    error_codes: Mapping[str, int]

    def share_pct(self, start: StartKind) -> float:
        return 100.0 * self.starts.get(start.value, 0) / max(1, self.requests - self.errors)

    def to_json(self) -> dict[str, Any]:
        times = {
            f"{what}_ms_{name}": round(getattr(summary, name), 3)
            for what, summary in (("startup", self.startup), ("latency", self.latency))
            for name in ("mean", "p50", "p99")
        }
        return {
            "policy": self.policy, "keepalive": self.keepalive, "requests": self.requests, "errors": self.errors,
            **times, **{f"{kind.value}_pct": round(self.share_pct(kind), 3) for kind in StartKind},
            "used_mb_s": round(self.used_mb_s, 1), "wasted_mb_s": round(self.wasted_mb_s, 1),
            "evictions": self.evictions, "held_mb_max": round(self.held_mb_max, 1),
            "lag_ms_max": round(self.lag_ms_max, 3), "error_codes": dict(self.error_codes),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    settings: Settings
    machine: Mapping[str, Any]
    runtimes: tuple[str, ...]
    note: str | None  # why Node.js is not among them
    all_warm_bytes: int  # what the instances of all functions hold together
    budget_bytes: int
    rows: tuple[Row, ...]

    def row(self, policy: str) -> Row:
        return next(row for row in self.rows if row.policy == policy)


def run(settings: Settings, on_progress: Progress | None = None) -> Result:
    """Deploys, measures what all functions hold, and runs each policy. Raises SystemFault, BadDefinition."""
    described = machine.describe()
    kinds, note = density_functions.runtimes()
    calls = density_arrivals.replay(settings.functions, settings.duration_s, settings.compression, settings.seed)
    functions = density_functions.make([one.run_s for one in calls], kinds, settings.seed)
    policies = settings.policies()
    for text in policies.values():
        registry.keepalive(registry.parse(text))  # a misspelt one is told before minutes of measuring
    requests = sum(len(one.times_s) for one in calls)
    total = len(functions) + len(policies) * requests
    rows: list[Row] = []

    def step(done: int, what: str) -> None:
        if on_progress is not None:
            on_progress(done, total, what)

    with tempfile.TemporaryDirectory(prefix="rewarm-density-") as folder:
        home = Path(folder, "home")
        user_bytes, lang_bytes = _deploy(home, Path(folder, "sources"), functions, lambda done: step(done, "deploying"))
        budget_bytes = max(round(user_bytes * settings.budget_share) + lang_bytes, _BUDGET_BYTES_MIN)
        for place, (policy, keepalive) in enumerate(policies.items()):

            def answered(done: int, before: int = len(functions) + place * requests, policy: str = policy) -> None:
                step(before + done, policy)

            task = _Task(policy, keepalive, budget_bytes, list(zip(functions, calls, strict=True)))
            rows.append(_row(home, task, answered))
    names = tuple(kind.name for kind in kinds)
    return Result(settings, described, names, note, user_bytes, budget_bytes, tuple(rows))


@contextmanager
def _server(home: Path, memory_bytes: int, keepalive: str) -> Iterator[Api]:
    options = ("--home", str(home), "--memory", str(memory_bytes), "--keepalive", keepalive)
    with local_server(options) as url, Api(url) as api:
        yield api


# ---------------------------------------------------------------- what all of them hold


def _deploy(
    home: Path, sources: Path, functions: Sequence[DensityFunction], on_done: Callable[[int], None]
) -> tuple[int, int]:
    """Bytes that the instances of all functions and the runtimes below them hold, once all are deployed and loaded.

    One after the other: a server looks into one upload at a time. Each loads while the next is deployed.
    """
    with _server(home, machine.memory_bytes(), "fixed:ttl=1h") as api:
        for done, function in enumerate(functions):
            on_done(done)
            shipping.upload(api, function.shipment(sources))
            api.load(function.name)
        _until_ready(api, len(functions))
        time.sleep(_SETTLE_S)
        by_layer = api.ps()["ledger"]["by_layer"]
        return int(by_layer["user"]), int(by_layer["lang"])


def _until_ready(api: Api, count: int) -> None:
    until_s = time.monotonic() + _WAIT_S
    while sum(one["state"] == "ready" for one in api.instances()["instances"]) < count:
        if time.monotonic() > until_s:
            raise SystemFault(
                f"not all {count} functions could be loaded within {_WAIT_S:g} s; is there memory for it?"
            )
        time.sleep(_POLL_S)


# ---------------------------------------------------------------- one policy


@dataclass(frozen=True, slots=True)
class _Task:
    policy: str
    keepalive: str
    budget_bytes: int
    load: Sequence[tuple[DensityFunction, Calls]]


def _row(home: Path, task: _Task, on_answer: Callable[[int], None]) -> Row:
    with _server(home, task.budget_bytes, task.keepalive) as api:
        samples, held_bytes_max = asyncio.run(_drive(api, task, on_answer))
        meter = api.ps()["meter"]
    good = [sample for sample in samples if sample.ok]
    return Row(
        policy=task.policy, keepalive=task.keepalive, requests=len(samples), errors=len(samples) - len(good),
        startup=stats.summarise([sample.timing.init_ms for sample in good]),
        latency=stats.summarise([sample.latency_s * 1e3 for sample in good]),
        starts=Counter(sample.timing.start for sample in good),
        used_mb_s=float(meter["used_mb_s"]), wasted_mb_s=float(meter["wasted_mb_s"]) + float(meter["open_mb_s"]),
        evictions=int(meter["evictions"]), held_mb_max=held_bytes_max / MB,
        lag_ms_max=max(sample.lag_s for sample in samples) * 1e3,
        error_codes=Counter(sample.code for sample in samples if not sample.ok),
    )  # fmt: skip


async def _drive(api: Api, task: _Task, on_answer: Callable[[int], None]) -> tuple[list[Sample], int]:
    """All samples, and the most that the ledger held, looked at twice a second."""
    answered = held_bytes_max = 0

    def on_sample(sample: Sample, body: bytes) -> None:
        nonlocal answered
        answered += 1
        on_answer(answered)

    async def watch() -> None:
        nonlocal held_bytes_max
        while True:
            held_bytes_max = max(held_bytes_max, int((await asyncio.to_thread(api.server))["held_bytes"]))
            await asyncio.sleep(0.5)

    watching = asyncio.create_task(watch())
    results = await asyncio.gather(*(
        run_load(
            Plan(f"{api.url}/invoke/{function.name}", calls.times_s, [function.runtime.body], connections=_CONNECTIONS),
            on_sample=on_sample,
        )
        for function, calls in task.load
    ))  # fmt: skip
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return [sample for result in results for sample in result.samples], held_bytes_max
