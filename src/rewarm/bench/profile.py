"""Run times of a function by batch size, measured through the HTTP server.

On a twin of the function (control.profiles), one batch at a time: its requests are sent at once, and told to leave
once all of them wait. What an answer says of its batch, its size and run time, is what counts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewarm.bench.api import JSON_TYPE, Api
from rewarm.bench.load import Plan, Sample, run_load
from rewarm.bench.stats import Summary, summarise
from rewarm.errors import RewarmError, SystemFault, from_code
from rewarm.facts.profile import Profile

_WARM_UP = 2  # batches of each size that are not counted
_READY_S_MAX = 300.0
_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class Settings:
    """`bodies` differ in their length, `sizes` begin with 1; both rise."""

    sizes: Sequence[int]
    bodies: Sequence[bytes]
    content_type: str = JSON_TYPE
    repeat: int = 10


@dataclass(frozen=True, slots=True)
class Row:
    """Batches of `size` requests whose bodies have `body_bytes`: run times in ms."""

    size: int
    body_bytes: int
    run_ms: Summary


@dataclass(frozen=True, slots=True)
class Measured:
    rows: list[Row]
    digest: str  # of what was measured
    version: int

    def to_profile(self) -> Profile:
        """Medians: a pause of the machine is no property of the function."""
        sizes = tuple(dict.fromkeys(row.size for row in self.rows))
        bodies = tuple(dict.fromkeys(row.body_bytes for row in self.rows))
        p50_s = {(row.body_bytes, row.size): max(row.run_ms.p50, 0.001) / 1e3 for row in self.rows}
        return Profile(sizes, bodies, tuple(tuple(p50_s[body, size] for size in sizes) for body in bodies))


Progress = Callable[[int, int, int], None]  # batches done, of all, the size of the next


def measure(api: Api, name: str, settings: Settings, progress: Progress = lambda *_: None) -> Measured:
    """Raises what the server answers, also to a call of the function; SystemFault if no instance is ready in time."""
    twin = api.begin_twin(name, settings.sizes[-1])
    total = len(settings.bodies) * len(settings.sizes) * (settings.repeat + _WARM_UP)
    rows: list[Row] = []
    done = 0
    try:
        _have_ready(api, twin["twin"])
        for body in settings.bodies:
            for size in settings.sizes:
                run_ms = []
                for number in range(settings.repeat + _WARM_UP):
                    progress(done, total, size)
                    ran_ms = asyncio.run(_batch(api, twin["twin"], size, body, settings.content_type))
                    done += 1
                    if number >= _WARM_UP:
                        run_ms.append(ran_ms)
                rows.append(Row(size, len(body), summarise(run_ms)))
    finally:
        api.end_twin(name)
    progress(done, total, settings.sizes[-1])
    return Measured(rows, twin["digest"], twin["version"])


def _have_ready(api: Api, twin: str) -> None:
    until_s = time.monotonic() + _READY_S_MAX
    api.load(twin)
    while not any(one["function"] == twin and one["state"] == "ready" for one in api.instances()["instances"]):
        found = api.function(twin)
        if found["last_error"]:
            raise from_code("start_failed", str(found["last_error"]))
        if time.monotonic() > until_s:
            raise SystemFault(f"{twin} is not ready {_READY_S_MAX:g} s after it was told to start")
        time.sleep(_POLL_S)


async def _batch(api: Api, twin: str, size: int, body: bytes, content_type: str) -> float:
    """Runs one batch → its run time in ms."""
    failed: list[RewarmError] = []

    def on_sample(sample: Sample, answer: bytes) -> None:
        if not sample.ok:
            failed.append(_error_of(sample, answer))

    async def leave_together() -> None:
        while True:
            queued = (await asyncio.to_thread(api.function, twin))["queued"]
            if queued >= size:
                await asyncio.to_thread(api.flush, twin)
            await asyncio.sleep(_POLL_S)

    plan = Plan(f"{api.url}/invoke/{twin}", [0.0] * size, [body], content_type)
    result = await run_load(plan, on_sample=on_sample, on_input_end=leave_together)
    if failed:
        raise failed[0]
    sizes = {sample.timing.batch_size for sample in result.samples}
    if sizes != {size}:
        raise SystemFault(f"{size} requests left in batches of {sorted(sizes)} instead of one; measure again")
    return result.samples[0].timing.run_ms


def _error_of(sample: Sample, answer: bytes) -> RewarmError:
    try:
        said: Any = json.loads(answer)
        return from_code(sample.code, str(said["error"]), str(said.get("error_type", "Error")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return SystemFault(f"a request was not answered: {sample.code}")
