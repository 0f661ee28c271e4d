"""Why an instance ended is said in the server's log, and in the function's where its code is to blame."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from rewarm.clock import system_clock
from rewarm.control.executor import Executor
from rewarm.core.node import Node
from rewarm.errors import RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.facts.request import Request
from rewarm.obs.logs import LogStore
from rewarm.policy import registry
from rewarm.testing import FakeDriver, Outcome, Seconds
from rewarm.wire import AnyAnswer

AT_ONCE = Seconds(zygote=0.0, zygote_fork=0.0, fork=0.0, user=0.0, ready=0.0, run=0.0, row=0.0, exit=0.0)


def revision(version: int = 1, timeout_s: float = 60.0) -> Revision:
    spec = FunctionSpec("f", "handler", "f:main", timeout_s=timeout_s)
    return Revision(spec, str(version) * 64, version, "code")


class Caller:
    def __init__(self) -> None:
        self.errors: list[RewarmError] = []

    def answer(self, requests: list[Request], answers: list[AnyAnswer], run_us: int) -> None: ...

    def reject(self, request: Request, error: RewarmError) -> None:
        self.errors.append(error)


class Stage:
    """A function with one instance, which has answered."""

    def __init__(self, keepalive: str = "fixed", timeout_s: float = 60.0) -> None:
        driver = FakeDriver(asyncio.get_running_loop().call_later, AT_ONCE, lambda request: request.payload)
        node = Node(1 << 30, registry.keepalive(registry.parse(keepalive)))
        self.executor = Executor(node, driver, LogStore(1 << 20, lambda: 0.0))
        self.caller = Caller()
        self.executor.start(self.caller)
        self.executor.post(m.Deployed(revision(timeout_s=timeout_s)))
        self.call(Outcome.OK)

    def call(self, outcome: Outcome) -> None:
        now = system_clock()
        self.executor.submit(Request("f", now, now + 60.0, outcome))

    @property
    def lines(self) -> list[str]:
        return [line.text for line in self.executor.logs.of("f").tail(10)]


async def told(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """What the server's log says of the first end."""
    async with asyncio.timeout(10.0):
        while True:
            for record in caplog.records:
                if record.getMessage().startswith("instance 1 of f ended"):
                    return record
            await asyncio.sleep(0.01)


ASKED: dict[str, tuple[str, Callable[[Stage], None]]] = {
    "unload": ("unloaded", lambda s: s.executor.post(m.Unload("f"))),
    "deploy": ("replaced by a newer revision", lambda s: s.executor.post(m.Deployed(revision(2)))),
    "remove": ("its function was removed", lambda s: s.executor.post(m.Removed("f"))),
}


@pytest.mark.parametrize("what", ASKED)
async def test_an_end_that_was_asked_for(caplog: pytest.LogCaptureFixture, what: str) -> None:
    caplog.set_level(logging.INFO)
    stage = Stage()
    why, ask = ASKED[what]
    ask(stage)
    record = await told(caplog)
    assert record.getMessage() == f"instance 1 of f ended: {why}" and record.levelno == logging.INFO
    assert stage.lines == []
    await stage.executor.close()


async def test_an_instance_that_idled_and_one_that_the_end_of_the_server_met(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage = Stage("none")
    assert (await told(caplog)).getMessage() == "instance 1 of f ended: it was idle for long enough"
    await stage.executor.close()
    caplog.clear()
    await Stage().executor.close()
    assert (await told(caplog)).getMessage() == "instance 1 of f ended: the server shuts down"


async def test_a_crash(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.call(Outcome.DIES)
    record = await told(caplog)
    (error,) = stage.caller.errors
    assert record.getMessage() == f"instance 1 of f ended: {error.message}" and record.levelno == logging.WARNING
    assert stage.lines == [f"(ended: {error.message})"]
    await stage.executor.close()


async def test_a_run_that_took_too_long(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(timeout_s=0.05)
    stage.call(Outcome.HANGS)
    assert (await told(caplog)).levelno == logging.WARNING
    assert stage.lines == ["(ended: its run took longer than the function's timeout)"]
    await stage.executor.close()


async def test_what_was_removed_gets_no_log_again(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.call(Outcome.HANGS)
    stage.executor.post(m.Removed("f"))
    stage.executor.logs.forget("f")
    stage.executor.driver.kill(1)  # type: ignore[attr-defined]
    await told(caplog)
    assert stage.lines == []
    await stage.executor.close()
