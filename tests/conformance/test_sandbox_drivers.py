"""Every driver we ship keeps to the sandbox port."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.errors import SandboxFailed, StartFailed
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.sandbox.port import SandboxDriver
from rewarm.sandbox.process import ProcessDriver
from rewarm.testing import VM_CHECKS, FakeDriver, Seconds, check_sandbox_driver, held_by_process
from rewarm.testing.sandboxes import CONSUMED_CHECKS, PROBE, SANDBOX_CHECKS, behave
from rewarm.testing.stage import Stage

SPEC = FunctionSpec("probe", "handler", "probe:main", timeout_s=30.0)
QUICK = Seconds(
    bare=0.001, zygote=0.01, zygote_fork=0.005, fork=0.002, user=0.005, ready=0.001, run=0.005, row=0.0, exit=0.002,
    restore=0.002, sleep=0.01,
)  # fmt: skip
AT_ONCE = Seconds(bare=0.0, zygote=0.0, zygote_fork=0.0, fork=0.0, user=0.0, ready=0.0, run=0.0, row=0.0, exit=0.0)


def folder(path: Path, text: str, version: int) -> Revision:
    path.mkdir()
    (path / "probe.py").write_text(text)
    return Revision(SPEC, f"{version:064}", version, str(path))


def fake(seconds: Seconds) -> Callable[[], FakeDriver]:
    """A FakeDriver with the code of revision 2 broken."""

    def make() -> FakeDriver:
        loop = asyncio.get_running_loop()
        return FakeDriver(
            loop.call_later, seconds, behave,
            starts=lambda revision: StartFailed("does not import") if revision.version == 2 else None,
        )  # fmt: skip

    return make


@pytest.mark.parametrize("name", SANDBOX_CHECKS)
async def test_process_driver(name: str, tmp_path: Path) -> None:
    revision = folder(tmp_path / "good", PROBE, 1)
    broken = folder(tmp_path / "bad", "import nonsense_that_is_not_there", 2)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    await check_sandbox_driver(
        lambda: ProcessDriver(run_dir), revision, broken, only=name, held=lambda: held_by_process(run_dir)
    )


@pytest.mark.parametrize("seconds", [QUICK, AT_ONCE], ids=["quick", "at once"])
@pytest.mark.parametrize("name", SANDBOX_CHECKS)
async def test_fake_driver(name: str, seconds: Seconds) -> None:
    revision, broken = Revision(SPEC, "1", 1, "good"), Revision(SPEC, "2", 2, "bad")
    if seconds is AT_ONCE and name == "destroy_ends_every_step":
        pytest.skip("its steps are over before anything can come between")
    await check_sandbox_driver(fake(seconds), revision, broken, only=name)


@pytest.mark.parametrize("seconds", [QUICK, AT_ONCE], ids=["quick", "at once"])
@pytest.mark.parametrize("name", CONSUMED_CHECKS)
async def test_fake_driver_with_runtimes_that_do_not_fork(name: str, seconds: Seconds) -> None:
    if seconds is AT_ONCE and name == "destroy_ends_what_a_runtime_became":
        pytest.skip("its steps are over before anything can come between")
    spec = dataclasses.replace(SPEC, runtime="nodejs")
    revision, broken = Revision(spec, "1", 1, "good"), Revision(spec, "2", 2, "bad")
    await check_sandbox_driver(fake(seconds), revision, broken, checks=CONSUMED_CHECKS, only=name)


@pytest.mark.parametrize("name", VM_CHECKS)
async def test_fake_driver_with_micro_vms(name: str) -> None:
    def damage(driver: SandboxDriver, revision: Revision) -> None:
        assert isinstance(driver, FakeDriver)
        driver.damaged.add(revision.digest)

    spec = dataclasses.replace(SPEC, isolation="microvm")
    revision, broken = Revision(spec, "1", 1, "good"), Revision(spec, "2", 2, "bad")
    await check_sandbox_driver(fake(QUICK), revision, broken, checks=VM_CHECKS, only=name, damage=damage)


@pytest.mark.parametrize("parent", [False, True], ids=["from nothing", "forked"])
async def test_a_runtime_whose_packages_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent: bool) -> None:
    """It can be dropped while it imports, whether or not it was forked from another."""
    (tmp_path / "hangs_at_import.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    run_dir = tmp_path / "run"
    before = held_by_process(run_dir)
    stage = Stage(ProcessDriver(run_dir), Revision(SPEC, "1", 1, ""), Revision(SPEC, "2", 2, ""))
    ancestor = await stage.zygote() if parent else None
    key = LangKey(("hangs_at_import",))
    stage.driver.carry_out(m.RaiseLang(key, ancestor))
    await asyncio.sleep(0.3)
    assert stage.sink.of(key) == []
    stage.driver.carry_out(m.DropLang(key, "start timeout"))
    assert (await stage.heard(m.LangExited, key)).error is None
    await stage.driver.close()
    assert not held_by_process(run_dir) - before


async def test_a_runtime_whose_packages_are_missing(tmp_path: Path) -> None:
    stage = Stage(ProcessDriver(tmp_path / "run"), Revision(SPEC, "1", 1, ""), Revision(SPEC, "2", 2, ""))
    for ancestor in (None, await stage.zygote()):
        key = LangKey(("nonsense_that_is_not_there", "a" if ancestor else "b"))
        stage.driver.carry_out(m.RaiseLang(key, ancestor))
        error = (await stage.heard(m.LangExited, key)).error
        assert isinstance(error, StartFailed)
        assert "No module named" in error.message
    await stage.driver.close()


async def test_no_descriptors_left(tmp_path: Path) -> None:
    """A start that the machine refuses fails like any other and leaves nothing."""
    run_dir = tmp_path / "run"
    stage = Stage(ProcessDriver(run_dir), Revision(SPEC, "1", 1, ""), Revision(SPEC, "2", 2, ""))
    before = held_by_process(run_dir)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    for spare in range(4):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
        try:
            stage.driver.carry_out(m.RaiseBare(spare))
            stage.driver.carry_out(m.RaiseLang(LangKey((f"x{spare}",)), None)) if spare < 2 else None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (end,) = stage.sink.of(spare)
        assert isinstance(end, m.Exited) and isinstance(end.error, SandboxFailed)
        assert held_by_process(run_dir) == before
    ends = [event for event in stage.sink.events if isinstance(event, m.LangExited)]
    assert [type(end.error) for end in ends] == [SandboxFailed, SandboxFailed]
    await stage.driver.close()


async def test_all_at_once() -> None:
    """`check_sandbox_driver` without a name takes a driver through everything."""
    await check_sandbox_driver(fake(QUICK), Revision(SPEC, "1", 1, "good"), Revision(SPEC, "2", 2, "bad"))


async def test_the_suite_notices() -> None:
    """A driver that answers in the wrong order, to see that the suite is not blind."""

    class Backwards(FakeDriver):
        def attach(self, sink: object) -> None:
            class Turned:
                post = sink.post  # type: ignore[attr-defined]
                log = sink.log  # type: ignore[attr-defined]

                def answer(self, requests: list, answers: list, run_us: int) -> None:
                    sink.answer(requests[::-1], answers[::-1], run_us)  # type: ignore[attr-defined]

            super().attach(Turned())

    with pytest.raises(AssertionError, match="another order"):
        await check_sandbox_driver(
            lambda: Backwards(asyncio.get_running_loop().call_later, QUICK, behave),
            Revision(SPEC, "1", 1, "good"), Revision(SPEC, "2", 2, "bad"), only="runs_are_answered_in_order",
        )  # fmt: skip
