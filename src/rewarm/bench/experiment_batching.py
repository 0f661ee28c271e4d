"""The published batching experiment on the live platform.

Ten rows, {static, dynamic, slo-latency, slo-cost, none} × {uniform, bursty}, one after the other, each with the same
model (examples/digits), the same requests at the same intended times, and one instance at most. A row begins with no
instance: the function is deployed afresh, loaded once and unloaded, so that the interpreter with numpy and
onnxruntime (the Lang layer) is alive, the instance is not, and its start is inside the row's latencies and cost. Calls
and billed time come from the server's own counters, as their growth over the row.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewarm.bench import arrivals, billing, machine, shipping, stats
from rewarm.bench.api import Api
from rewarm.bench.arrivals import Burst
from rewarm.bench.load import LoadResult, Plan, Sample, run_load
from rewarm.bench.local_server import start_and_unload
from rewarm.errors import SystemFault

#: Name in the table → the batching that is deployed.
POLICIES: dict[str, str] = {
    "static": "static:size=5",
    "dynamic": "dynamic:max_size=5,max_wait=300ms",
    "slo-latency": "slo:mode=latency",
    "slo-cost": "slo:mode=cost",
    "none": "none",
}
WORKLOADS = ("uniform", "bursty")
_ACCURACY_MIN = 0.95  # the model has over 0.98: below this, answers went to the wrong callers
_FLUSH_EVERY_S = 0.25

Progress = Callable[[int, int, str], None]  # requests done, requests in all, the row running


@dataclass(frozen=True, slots=True)
class Settings:
    """What is published with the figures. Durations in seconds, rates per second."""

    duration_s: float = 60.0
    rate: float = 12.0
    burst: Burst = field(default_factory=lambda: Burst(on_rate=20.0, off_rate=4.0, on_s=2.0, off_s=2.0))
    seed: int = 1
    slo_s: float = 0.2
    memory_mb: int = 1024
    timeout_s: float = 60.0
    quick: bool = False

    def times_s(self, workload: str) -> list[float]:
        if workload == "uniform":
            return arrivals.uniform(self.rate, self.duration_s)
        return arrivals.bursty(self.burst, self.duration_s, self.seed)

    def to_json(self) -> dict[str, Any]:
        burst = self.burst
        return {
            "quick": self.quick, "duration_s": self.duration_s, "seed": self.seed, "slo_ms": self.slo_s * 1e3,
            "memory_mb": self.memory_mb, "timeout_s": self.timeout_s, "max_instances": 1, "policies": dict(POLICIES),
            "workloads": {
                "uniform": {"rate": self.rate, "arrivals": "evenly spaced"},
                "bursty": {
                    "on_rate": burst.on_rate, "on_s": burst.on_s, "off_rate": burst.off_rate, "off_s": burst.off_s,
                    "mean_rate": burst.mean_rate, "arrivals": "Poisson within each phase, beginning with a busy one",
                },
            },
            "start": "each row begins without an instance; the Lang layer (interpreter, numpy, onnxruntime) is alive",
            "latency": "completion minus intended send time, good answers only; percentiles are nearest-rank",
            "slo_pct": "of all requests: an error is a miss",
            "end_of_input": "a static batch that is not full is flushed 20 ms after the last request",
            "billing": billing.SOURCE,
        }  # fmt: skip


QUICK = Settings(duration_s=4.0, quick=True)


@dataclass(frozen=True, slots=True)
class Digits:
    """Requests on real test digits: body i is image i as JSON, and its label is `labels[i]`."""

    bodies: Sequence[bytes]
    labels: Sequence[int]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result; `to_json` has the published keys, the rest is detail."""

    policy: str
    workload: str
    requests: int
    errors: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    slo_pct: float
    init_ms: float
    mean_batch: float
    cost_usd: float
    calls: int
    billed_ms: float
    accuracy: float
    lag_ms_max: float
    batches: Mapping[int, int]  # rows in a call → calls
    starts: Mapping[str, int]
    error_codes: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "policy": self.policy, "workload": self.workload, "requests": self.requests, "errors": self.errors,
            "mean_ms": round(self.mean_ms, 3), "p50_ms": round(self.p50_ms, 3), "p99_ms": round(self.p99_ms, 3),
            "slo_pct": round(self.slo_pct, 3), "init_ms": round(self.init_ms, 3),
            "mean_batch": round(self.mean_batch, 3), "cost_usd": round(self.cost_usd, 9),
        }  # fmt: skip

    def detail(self) -> dict[str, Any]:
        return {
            "policy": self.policy, "workload": self.workload, "calls": self.calls, "billed_ms": self.billed_ms,
            "accuracy": round(self.accuracy, 4), "lag_ms_max": round(self.lag_ms_max, 3),
            "batches": {str(size): count for size, count in sorted(self.batches.items())},
            "starts": dict(self.starts), "error_codes": dict(self.error_codes),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    settings: Settings
    machine: Mapping[str, Any]
    rows: Sequence[Row]

    def row(self, policy: str, workload: str) -> Row:
        return next(row for row in self.rows if (row.policy, row.workload) == (policy, workload))


def run(api: Api, app: Path, settings: Settings, on_progress: Progress | None = None) -> Result:
    """All ten rows on the server behind `api`. `app` is the folder of the digits example."""
    digits = read_digits(app / "test_digits.npz")
    shipment = shipping.of_target(str(app / "app.py"), shipping.Wish())
    described = machine.describe()
    plan = [(policy, workload) for policy in POLICIES for workload in WORKLOADS]
    total = sum(len(settings.times_s(workload)) for _, workload in plan)
    rows: list[Row] = []
    done = 0
    for policy, workload in plan:
        label = f"{policy}, {workload}"

        def on_answer(answered: int, before: int = done, label: str = label) -> None:
            if on_progress is not None:
                on_progress(before + answered, total, label)

        on_answer(0)
        rows.append(_row(api, _Task(policy, workload, settings, shipment, digits, on_answer)))
        done += rows[-1].requests
    return Result(settings, described, rows)


def read_digits(path: Path) -> Digits:
    """The test digits: pixels 0 to 255 become 0 to 1 with four decimals."""
    import numpy as np

    try:
        with np.load(path) as data:
            images, labels = data["images"], data["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise SystemFault(f"cannot read the test digits {path}: {error}") from error
    rows = (images.reshape(len(images), -1) / 255.0).tolist()
    bodies = ["[" + ",".join(f"{pixel:.4f}" for pixel in row) + "]" for row in rows]
    return Digits([body.encode() for body in bodies], [int(label) for label in labels])


def predicted(body: bytes) -> int | None:
    """The digit that an answer names: the largest of its probabilities. None if it is no such answer."""
    try:
        scores = json.loads(body)
        return max(range(len(scores)), key=scores.__getitem__)
    except (ValueError, TypeError, KeyError):
        return None


# ---------------------------------------------------------------- one row


@dataclass(frozen=True, slots=True)
class _Task:
    """What one row needs to know."""

    policy: str
    workload: str
    settings: Settings
    shipment: shipping.Shipment
    digits: Digits
    on_answer: Callable[[int], None]

    @property
    def name(self) -> str:
        return f"batching-{self.policy}-{self.workload}"


def _row(api: Api, task: _Task) -> Row:
    _deploy(api, task)
    try:
        start_and_unload(api, task.name)
        before = api.stats(task.name)
        result, correct = _send(api, task)
        return _measure(task, result, correct, before, api.stats(task.name))
    finally:
        api.remove(task.name)


def _deploy(api: Api, task: _Task) -> None:
    settings = task.settings
    overrides = {
        "memory": f"{settings.memory_mb}MB",
        "timeout": f"{settings.timeout_s:g}s",
        "slo": f"{settings.slo_s * 1e3:g}ms",
        "batching": POLICIES[task.policy],
        "max_instances": 1,
    }
    manifest = {**task.shipment.manifest, "name": task.name, "overrides": overrides}
    shipping.upload(api, shipping.Shipment(task.shipment.files, manifest))


def _send(api: Api, task: _Task) -> tuple[LoadResult, int]:
    """The samples, and how many of the good answers named the right digit."""
    answered = correct = 0

    def on_sample(sample: Sample, body: bytes) -> None:
        nonlocal answered, correct
        answered += 1
        label = task.digits.labels[sample.index % len(task.digits.labels)]
        correct += sample.ok and predicted(body) == label
        task.on_answer(answered)

    async def at_end_of_input() -> None:
        # Only static needs it; for the others it comes too late to change a latency and is there so that no row hangs.
        await asyncio.sleep(0.02 if task.policy == "static" else 2.0)
        while True:
            await asyncio.to_thread(api.flush, task.name)
            await asyncio.sleep(_FLUSH_EVERY_S)

    plan = Plan(
        url=f"{api.url}/invoke/{task.name}",
        times_s=task.settings.times_s(task.workload),
        bodies=task.digits.bodies,
        timeout_s=task.settings.timeout_s + 10,
    )
    return asyncio.run(run_load(plan, on_sample=on_sample, on_input_end=at_end_of_input)), correct


def _measure(task: _Task, result: LoadResult, correct: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Row:
    settings, latencies_s = task.settings, result.latencies_s()
    requests, good = len(result.samples), len(latencies_s)
    accuracy = correct / good if good else 0.0
    if good and accuracy < _ACCURACY_MIN:
        raise SystemFault(f"{task.policy}, {task.workload}: only {correct} of {good} answers name the right digit")
    summary = stats.summarise([latency * 1e3 for latency in latencies_s])
    calls = int(after["calls"]) - int(before["calls"])
    billed_ms = float(after["billed_ms_total"]) - float(before["billed_ms_total"])
    batches = Counter({int(size): int(count) for size, count in after["rows_per_call"].items()})
    batches.subtract({int(size): int(count) for size, count in before["rows_per_call"].items()})
    batches = +batches
    return Row(
        policy=task.policy, workload=task.workload, requests=requests, errors=requests - good,
        mean_ms=summary.mean, p50_ms=summary.p50, p99_ms=summary.p99,
        slo_pct=stats.slo_percent(latencies_s, settings.slo_s, requests),
        init_ms=_new_init_ms(before, after),
        mean_batch=sum(size * count for size, count in batches.items()) / max(1, batches.total()),
        cost_usd=billing.cost_usd(calls, billed_ms, settings.memory_mb),
        calls=calls, billed_ms=billed_ms, accuracy=accuracy,
        lag_ms_max=max((sample.lag_s for sample in result.samples), default=0.0) * 1e3,
        batches=batches, starts=result.starts(), error_codes=result.errors(),
    )  # fmt: skip


def _new_init_ms(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Start-up time spent in the row: `init_ms` holds the latest starts, the newest last."""
    new = int(after["inits"]) - int(before["inits"])
    return float(sum(after["init_ms"][-new:])) if new > 0 else 0.0
