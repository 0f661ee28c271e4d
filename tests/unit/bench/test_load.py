"""The generator against real servers on loopback, among them one that stalls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from rewarm.bench.load import CLIENT_CONNECTION, CLIENT_OVERLOAD, CLIENT_TIMEOUT, Plan, Sample, run_load
from rewarm.bench.local_server import free_port

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/invoke/f", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/invoke/f"
    finally:
        await runner.cleanup()


def every(gap_s: float, count: int) -> list[float]:
    return [index * gap_s for index in range(count)]


async def test_answers_are_recorded_with_their_timing_headers_in_order() -> None:
    async def answer(request: web.Request) -> web.Response:
        headers = {"Rewarm-Start": "lang", "Rewarm-Queue-Ms": "1.5", "Rewarm-Init-Ms": "40", "Rewarm-Run-Ms": "2",
                   "Rewarm-Batch-Size": "3"}  # fmt: skip
        return web.Response(body=await request.read(), headers=headers)

    bodies: dict[int, bytes] = {}

    def keep(sample: Sample, body: bytes) -> None:
        bodies[sample.index] = body

    async with serving(answer) as url:
        result = await run_load(Plan(url, every(0.01, 6), [b"0", b"1", b"2"]), on_sample=keep)
    assert [sample.index for sample in result.samples] == list(range(6))
    assert [bodies[index] for index in range(6)] == [b"0", b"1", b"2", b"0", b"1", b"2"]
    assert all(sample.ok and sample.status == 200 for sample in result.samples)
    timing = result.samples[0].timing
    assert (timing.start, timing.queue_ms, timing.init_ms, timing.run_ms, timing.batch_size) == ("lang", 1.5, 40, 2, 3)
    assert result.starts() == {"lang": 6}
    assert result.batch_sizes() == {3: 6}
    assert not result.errors()


async def test_a_server_that_stalls_cannot_hide_it() -> None:
    """One stall of 1 s in a load of 20/s: every request due during it must show the wait, not only the first."""
    stall_s = 1.0
    gate = asyncio.Lock()
    seen = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        stalls = seen == 5
        async with gate:  # one at a time, as a server with one worker
            if stalls:
                await asyncio.sleep(stall_s)
        return web.Response(body=b"1")

    async with serving(answer) as url:
        result = await run_load(Plan(url, every(0.05, 30), [b"{}"]))
    latencies_s = result.latencies_s()
    assert len(latencies_s) == 30
    # Due 0, 50, … 950 ms into the stall: latencies of 1.0, 0.95, … 0.05 s. A closed loop would show one slow request.
    assert sum(latency > 0.4 for latency in latencies_s) >= 11
    assert latencies_s[4] == pytest.approx(stall_s, abs=0.3)
    assert latencies_s[14] == pytest.approx(stall_s / 2, abs=0.3)
    assert max(sample.lag_s for sample in result.samples) < 0.3


async def test_requests_over_the_cap_are_errors_and_are_not_sent() -> None:
    release = asyncio.Event()
    seen = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal seen
        seen += 1
        await release.wait()
        return web.Response(body=b"1")

    async def open_gate() -> None:
        release.set()

    async with serving(answer) as url:
        result = await run_load(Plan(url, every(0.01, 8), [b"{}"], in_flight_max=3), on_input_end=open_gate)
    assert result.errors() == {CLIENT_OVERLOAD: 5}
    assert seen == 3


async def test_error_answers_count_by_their_code() -> None:
    async def answer(request: web.Request) -> web.Response:
        if await request.read() == b"plain":
            return web.Response(status=500, text="no json")
        return web.json_response({"error": "full", "code": "queue_full"}, status=429)

    async with serving(answer) as url:
        result = await run_load(Plan(url, every(0.01, 4), [b"{}", b"plain"]))
    assert result.errors() == {"queue_full": 2, "http_500": 2}
    assert result.latencies_s() == []


async def test_no_answer_in_time_and_no_server_are_errors_of_the_client() -> None:
    async def never(_: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.Response()

    async with serving(never) as url:
        began = time.monotonic()
        result = await run_load(Plan(url, [0.0], [b"{}"], timeout_s=0.1))
        assert time.monotonic() - began < 2
    assert result.errors() == {CLIENT_TIMEOUT: 1}
    refused = await run_load(Plan(f"http://127.0.0.1:{free_port()}/invoke/f", [0.0], [b"{}"]))
    assert refused.errors() == {CLIENT_CONNECTION: 1}


async def test_the_end_of_input_is_told_while_answers_are_outstanding_and_its_failure_is_raised() -> None:
    release = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        await release.wait()
        return web.Response(body=b"1")

    async def flush() -> None:
        release.set()
        raise RuntimeError("flush failed")

    async with serving(answer) as url:
        with pytest.raises(RuntimeError, match="flush failed"):
            await run_load(Plan(url, [0.0], [b"{}"]), on_input_end=flush)
