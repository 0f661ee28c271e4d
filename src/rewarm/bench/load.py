"""An open-loop load generator.

Every request is sent at its intended time, whatever became of the ones before it, and its latency counts from that
intended time. A closed loop would stop asking while the server stalls and so would hide the stall; here each request
that was due during a stall shows how long its caller would have waited. Only a cap on the requests in flight keeps a
dead server from filling the memory: a request over it is not sent and counts as the error `client_overload`.

asyncio wakes about a millisecond late at worst; that lag is part of the latency and also told apart (`lag_s`).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewarm.bench.api import JSON_TYPE, Timing
from rewarm.errors import SystemFault

if TYPE_CHECKING:
    import aiohttp

OK = "ok"
CLIENT_OVERLOAD = "client_overload"
CLIENT_TIMEOUT = "client_timeout"
CLIENT_CONNECTION = "client_connection"
_LEAD_S = 0.05  # between now and the first intended time, so that the first request is not late


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send where. `times_s` are offsets from the start; request i has the body `bodies[i % len(bodies)]`."""

    url: str
    times_s: Sequence[float]
    bodies: Sequence[bytes]
    content_type: str = JSON_TYPE
    connections: int = 1024
    in_flight_max: int = 10_000
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request. `status` 0 and a code `client_…`: no answer came."""

    index: int
    intended_s: float  # offset from the start of the load
    lag_s: float  # how long after that it was really sent
    latency_s: float  # completion − intended send
    status: int
    code: str  # "ok" or the code of the error
    timing: Timing

    @property
    def ok(self) -> bool:
        return self.code == OK


@dataclass(frozen=True, slots=True)
class LoadResult:
    """All samples, in the order of their intended times. `elapsed_s` runs to the last answer."""

    samples: list[Sample] = field(default_factory=list)
    elapsed_s: float = 0.0

    def latencies_s(self) -> list[float]:
        """Of good answers only; errors are counted, not timed."""
        return [sample.latency_s for sample in self.samples if sample.ok]

    def errors(self) -> Counter[str]:
        return Counter(sample.code for sample in self.samples if not sample.ok)

    def starts(self) -> Counter[str]:
        return Counter(sample.timing.start or "?" for sample in self.samples if sample.ok)

    def batch_sizes(self) -> Counter[int]:
        """Batch size → requests that travelled in one of that size."""
        return Counter(sample.timing.batch_size for sample in self.samples if sample.ok)


OnSample = Callable[[Sample, bytes], None]
OnInputEnd = Callable[[], Awaitable[None]]


async def run_load(
    plan: Plan, *, on_sample: OnSample | None = None, on_input_end: OnInputEnd | None = None
) -> LoadResult:
    """Sends the plan and waits for every answer.

    `on_sample` is told of each sample with the body of its answer. `on_input_end` runs beside the last answers once
    everything has been sent, and is cancelled when nothing is outstanding.
    """
    aiohttp = require_aiohttp()
    connector = aiohttp.TCPConnector(limit=plan.connections)
    timeout = aiohttp.ClientTimeout(total=plan.timeout_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await _Generator(plan, session, on_sample or (lambda *_: None)).run(on_input_end)


class _Generator:
    def __init__(self, plan: Plan, session: aiohttp.ClientSession, on_sample: OnSample) -> None:
        self._plan = plan
        self._session = session
        self._on_sample = on_sample
        self._now = asyncio.get_running_loop().time
        self._start_s = 0.0
        self._samples: list[Sample] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, on_input_end: OnInputEnd | None) -> LoadResult:
        self._start_s = self._now() + _LEAD_S
        ending: asyncio.Future[None] | None = None
        try:
            await self._send_all()
            if on_input_end is not None:
                ending = asyncio.ensure_future(on_input_end())
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            await _cancel([*self._tasks, *([] if ending is None else [ending])])
        if ending is not None and not ending.cancelled():
            ending.result()  # a failed flush is the caller's to know
        self._samples.sort(key=lambda sample: sample.index)
        return LoadResult(self._samples, self._now() - self._start_s)

    async def _send_all(self) -> None:
        for index, offset_s in enumerate(self._plan.times_s):
            # Also when late: yield once, so that the tasks made so far start and answers are read.
            await asyncio.sleep(max(0.0, self._start_s + offset_s - self._now()))
            if len(self._tasks) >= self._plan.in_flight_max:
                self._record(index, offset_s, self._now() - self._start_s, 0, CLIENT_OVERLOAD, {}, b"")
                continue
            task = asyncio.create_task(self._send(index, offset_s))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, index: int, offset_s: float) -> None:
        plan = self._plan
        sent_s = self._now() - self._start_s
        status, code, body = 0, OK, b""
        headers: Mapping[str, str] = {}
        try:
            async with self._session.post(
                plan.url, data=plan.bodies[index % len(plan.bodies)], headers={"content-type": plan.content_type}
            ) as response:
                body = await response.read()
                status, headers = response.status, response.headers
                code = OK if status < 400 else _code_of(body, status)
        except TimeoutError:
            code = CLIENT_TIMEOUT
        except (OSError, require_aiohttp().ClientError):
            code = CLIENT_CONNECTION
        self._record(index, offset_s, sent_s, status, code, headers, body)

    def _record(
        self,
        index: int,
        offset_s: float,
        sent_s: float,
        status: int,
        code: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> None:
        latency_s = self._now() - self._start_s - offset_s
        sample = Sample(index, offset_s, max(0.0, sent_s - offset_s), latency_s, status, code, Timing.of(headers))
        self._samples.append(sample)
        self._on_sample(sample, body)


async def _cancel(tasks: Sequence[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _code_of(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return f"http_{status}"


def require_aiohttp() -> Any:
    """The module, or a SystemFault that says how to get it."""
    try:
        import aiohttp
    except ImportError as error:
        raise SystemFault("sending load needs aiohttp; get it with: pip install 'rewarm[bench]'") from error
    return aiohttp
