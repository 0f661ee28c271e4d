"""The process driver with runtimes that are consumed, not forked: node processes that wait for code."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from rewarm.errors import InstanceDied, RewarmError, SandboxFailed, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.sandbox import SandboxState as State
from rewarm.sandbox.process import ProcessDriver
from rewarm.testing import held_by_process
from rewarm.testing.sandboxes import call
from rewarm.testing.stage import SILENCE_S, Stage

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

SPEC = FunctionSpec("probe", "handler", "probe.mjs:main", timeout_s=30.0, runtime="nodejs")
KEY = LangKey(runtime="nodejs")
PROBE = """
export async function main(event) {
  if (event.do === "error") throw new RangeError("asked for");
  if (event.do === "exits") process.exit(0);
  if (event.do === "dies") process.abort();
  while (event.do === "hangs");
  return event;
}
"""


def folder(path: Path, text: str, version: int) -> Revision:
    path.mkdir()
    (path / "probe.mjs").write_text(text)
    return Revision(SPEC, f"{version:064}", version, str(path))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Everything is gone again when it closes."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    good, broken = folder(tmp_path / "good", PROBE, 1), folder(tmp_path / "bad", "import 'nonsense-not-there'", 2)
    before = held_by_process(run_dir)
    stage = Stage(ProcessDriver(run_dir), good, broken)
    try:
        yield stage
    finally:
        await stage.driver.close()
    assert not stage.sink.wrong
    assert not stage.driver.pids()
    assert not held_by_process(run_dir) - before


async def instance(stage: Stage, to: State = State.READY) -> int:
    """A sandbox with a runtime of its own."""
    raised = sum(isinstance(event, m.LangRaised) for event in stage.sink.of(KEY))
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    await stage.heard(m.LangRaised, KEY, raised + 1)
    return await stage.climb(to)


@needs_node
async def test_a_runtime_is_consumed_by_one_instance(stage: Stage) -> None:
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    await stage.heard(m.LangRaised, KEY)
    pid = stage.driver.pids()[KEY]
    node = await stage.climb(State.LANG)
    assert stage.driver.pids() == {node: pid}
    stage.driver.carry_out(m.RaiseLang(KEY, None))  # at once, as the port allows
    second = await stage.climb(State.BARE)
    stage.driver.carry_out(m.LoadUser(node, stage.revision))
    await stage.raised(node, [State.BARE, State.LANG, State.USER, State.READY])
    request = call(n=1)
    stage.run(node, request)
    await stage.answered(request)
    assert orjson.loads(stage.sink.answers[request][4]) == {"n": 1}
    await stage.heard(m.LangRaised, KEY, 2)
    stage.driver.carry_out(m.Fork(second, KEY, SPEC))
    await stage.raised(second, [State.BARE, State.LANG])
    third = await stage.climb(State.BARE)
    stage.driver.carry_out(m.Fork(third, KEY, SPEC))
    assert isinstance((await stage.gone(third)).error, SandboxFailed), "no runtime waits any more"
    for each in (node, second):
        stage.driver.carry_out(m.Destroy(each, "test"))
        assert (await stage.gone(each)).error is None
    assert not any(isinstance(event, m.LangExited) for event in stage.sink.events)


@needs_node
async def test_runs_are_answered_in_order(stage: Stage) -> None:
    node = await instance(stage)
    for size in (1, 5, 1):
        requests = [call(n=n) for n in range(size)]
        stage.run(node, *requests)
        await stage.answered(*requests)
        assert [orjson.loads(stage.sink.answers[r][4])["n"] for r in requests] == list(range(size))
    good, bad = call(n=1), call(do="error")
    stage.run(node, good, bad)
    await stage.answered(good, bad)
    assert [stage.sink.answers[request][0] for request in (good, bad)] == [200, 500]
    assert b"RangeError: asked for" in stage.sink.logged


@needs_node
@pytest.mark.parametrize(("how", "said"), [("exits", "exit status 0"), ("dies", "SIGABRT")])
async def test_a_death_has_a_reason(stage: Stage, how: str, said: str) -> None:
    node = await instance(stage)
    lost = [call(n=2), call(do=how)]
    stage.run(node, *lost)
    error = (await stage.gone(node)).error
    assert isinstance(error, InstanceDied) and said in error.message
    assert not any(request in stage.sink.answers for request in lost)


@needs_node
async def test_destroy_ends_every_step(stage: Stage) -> None:
    steps = [
        (State.BARE, lambda node: m.Fork(node, KEY, SPEC)),
        (State.LANG, lambda node: m.LoadUser(node, stage.revision)),
        (State.READY, lambda node: m.Run(node, [call(do="hangs")])),
    ]
    for state, step in steps:
        node = await instance(stage, state)
        stage.driver.carry_out(step(node))
        stage.driver.carry_out(m.Destroy(node, "test"))
        assert (await stage.gone(node)).error is None
    assert not stage.sink.answers


@needs_node
async def test_code_that_does_not_load(stage: Stage) -> None:
    node = await instance(stage, State.LANG)
    stage.driver.carry_out(m.LoadUser(node, stage.broken))
    error = (await stage.gone(node)).error
    assert isinstance(error, StartFailed) and "nonsense-not-there" in error.message


@needs_node
async def test_a_runtime_ends_when_told(stage: Stage) -> None:
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    await stage.heard(m.LangRaised, KEY)
    stage.driver.carry_out(m.DropLang(KEY, "test"))
    stage.driver.carry_out(m.DropLang(KEY, "test"))
    assert (await stage.heard(m.LangExited, KEY)).error is None
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    stage.driver.carry_out(m.DropLang(KEY, "while it rises"))
    await stage.heard(m.LangExited, KEY, 2)
    await asyncio.sleep(SILENCE_S)
    assert isinstance(stage.sink.of(KEY)[-1], m.LangExited)


@needs_node
async def test_a_fork_of_a_dropped_runtime_fails(stage: Stage) -> None:
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    await stage.heard(m.LangRaised, KEY)
    node = await stage.climb(State.BARE)
    stage.driver.carry_out(m.DropLang(KEY, "test"))
    stage.driver.carry_out(m.Fork(node, KEY, SPEC))
    assert isinstance((await stage.gone(node)).error, RewarmError)
    assert (await stage.heard(m.LangExited, KEY)).error is None


@needs_node
async def test_a_runtime_that_dies_while_it_waits(stage: Stage) -> None:
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    await stage.heard(m.LangRaised, KEY)
    os.kill(stage.driver.pids()[KEY], signal.SIGKILL)
    error = (await stage.heard(m.LangExited, KEY)).error
    assert isinstance(error, StartFailed) and "while it waited" in error.message


@needs_node
async def test_closing_ends_everything(stage: Stage) -> None:
    """At every stage at once; what is checked after `close` does the rest."""
    for state in (State.LANG, State.READY):
        node = await instance(stage, state)
    stage.run(node, call(do="hangs"))
    stage.driver.carry_out(m.RaiseLang(KEY, None))


async def test_a_machine_without_node(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    error = (await stage.heard(m.LangExited, KEY)).error
    assert isinstance(error, StartFailed) and "install Node.js" in error.message
