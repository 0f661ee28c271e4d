"""The micro-VM driver where there can be no micro-VM: everybody is told what to do, nobody waits."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rewarm.errors import BadDefinition, MicrovmUnavailable, SandboxFailed
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.sandbox import SandboxState
from rewarm.sandbox.library import Library, Recipe, lang_name
from rewarm.sandbox.microvm import MicrovmDriver
from rewarm.store.store import Store
from rewarm.testing.stage import Stage

SPEC = FunctionSpec("probe", "handler", "probe:main", isolation="microvm")
REVISION = Revision(SPEC, "1" * 64, 1, "code")


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Of a home for which no guest was built."""
    with Store.open(tmp_path / "home") as store:
        library = Library(store.home.path, store.snapshots)
        stage = Stage(MicrovmDriver(store.home.run_dir, library), REVISION, REVISION)
        yield stage
        await stage.driver.close()
        assert not stage.sink.wrong
        assert list(store.home.run_dir.iterdir()) == list(store.home.tmp_dir.iterdir()) == []


async def test_a_runtime_says_what_is_missing(stage: Stage) -> None:
    stage.driver.carry_out(m.RaiseLang(SPEC.lang_key, None))
    error = (await stage.heard(m.LangExited, SPEC.lang_key)).error
    assert isinstance(error, MicrovmUnavailable)
    assert "make system-deps" in error.message or "rewarm microvm build" in error.message


async def test_a_runtime_of_processes_is_none_of_its(stage: Stage) -> None:
    stage.driver.carry_out(m.RaiseLang(LangKey(), None))
    assert isinstance((await stage.heard(m.LangExited, LangKey())).error, SandboxFailed)


async def test_what_sleeps_is_not_lost_for_that(stage: Stage) -> None:
    """The snapshot is as good as ever, once there is a machine for it."""
    stage.driver.carry_out(m.Restore(1, REVISION))
    assert isinstance((await stage.gone(1)).error, MicrovmUnavailable)
    assert not stage.sink.of(REVISION.digest)


async def test_what_is_to_sleep_cannot(stage: Stage) -> None:
    stage.driver.carry_out(m.Sleep(REVISION))
    assert isinstance((await stage.heard(m.SleepLost, REVISION.digest)).error, MicrovmUnavailable)


async def test_a_bare_that_is_nobodys(stage: Stage) -> None:
    """It is made and ended; a function that comes to it without a runtime ends it with a reason."""
    node = await stage.climb(SandboxState.BARE)
    stage.driver.carry_out(m.Destroy(node, "test"))
    assert (await stage.gone(node)).error is None
    node = await stage.climb(SandboxState.BARE)
    stage.driver.carry_out(m.Fork(node, SPEC.lang_key, SPEC))
    assert isinstance((await stage.gone(node)).error, SandboxFailed)


def test_a_way_of_restoring_that_nobody_knows(tmp_path: Path) -> None:
    with Store.open(tmp_path / "home") as store, pytest.raises(BadDefinition, match="REWARM_RESTORE is auto, lazy"):
        Library(store.home.path, store.snapshots, "eager")


def test_names() -> None:
    """One snapshot of a Lang layer for each key; of a function one for each version, which its instances know."""
    keys = [LangKey(), LangKey(vm_bytes=256 << 20), LangKey(vm_bytes=512 << 20), LangKey(("json",), vm_bytes=256 << 20)]
    assert len({lang_name(key) for key in keys}) == len(keys)
    recipe = Recipe.of(dataclasses.replace(REVISION, weights_path="/w/digits.onnx"))
    assert recipe.subject == f"{'1' * 64}@1" and recipe.weights == Path("/w/digits.onnx")
