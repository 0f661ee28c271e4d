"""Micro-VMs on the live server, as far as it goes without one: what is swept when, and the figures."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rewarm.config import ServerConfig
from rewarm.control.executor import Executor
from rewarm.control.models import ModelDesk
from rewarm.control.plane import ControlPlane
from rewarm.control.sleepers import SleepDesk
from rewarm.core.node import Node
from rewarm.errors import RewarmError
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.obs.logs import LogStore
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.sandbox.library import Library
from rewarm.store.store import Store
from rewarm.testing import FakeDriver, Seconds

KEY = LangKey(("json",), vm_bytes=256 << 20)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    with Store.open(tmp_path / "home") as store:
        models = ModelDesk(store)
        driver = FakeDriver(asyncio.get_running_loop().call_later, Seconds())
        node = Node(1 << 30, FixedKeepalive(), 1 << 30)
        executor = Executor(node, driver, LogStore(1 << 20, lambda: 0.0), models=models)
        library = Library(store.home.path, store.snapshots)
        yield ControlPlane(ServerConfig(store.home.path), store, executor, models, SleepDesk(library), "1")


def drive(plane: ControlPlane) -> Path:
    """What a deploy, a twin or a killed server may leave."""
    path = plane.store.home.path / "microvm" / f"function-{'2' * 64}.img"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    return path


async def test_a_deploy_that_fails_leaves_no_drive(plane: ControlPlane, tmp_path: Path) -> None:
    left = drive(plane)
    (tmp_path / "upload").write_bytes(b"no archive")
    with pytest.raises(RewarmError):
        await plane.deploy(tmp_path / "upload")
    assert not left.exists()


async def test_a_start_removes_what_a_killed_server_left(plane: ControlPlane) -> None:
    left = drive(plane)
    plane.restore()
    await plane.settle()
    assert not left.exists()


async def test_the_end_of_profiling_removes_the_drive_of_the_twin(plane: ControlPlane) -> None:
    plane.revisions["f"] = Revision(FunctionSpec("f", "handler", "f:main"), "1" * 64, 1, "code")
    plane.profiles.begin("f", {"max_size": 1})
    left = drive(plane)
    plane.profiles.end("f")
    async with asyncio.timeout(10.0):
        while left.exists():
            await asyncio.sleep(0.01)


async def test_what_is_on_disk_is_in_the_figures(plane: ControlPlane) -> None:
    def figures() -> dict[tuple[str, ...], float]:
        return {(name, *labels.values()): value for name, _, labels, value in plane.gauges()}

    assert not [name for name, *_ in figures() if "disk" in name]
    spec = FunctionSpec("f", "handler", "f:main")
    node = plane.node
    node.handle(m.Deployed(Revision(spec, "1", 1, "code")), 1.0)
    node.handle(m.Deployed(Revision(dataclasses.replace(spec, name="g"), "2", 1, "code")), 1.0)
    node.handle(m.Slept("1", SnapshotFacts("1", 100 << 20, 0.25, 2.0)), 2.0)
    node.handle(m.LangFound(KEY, 50 << 20), 3.0)
    found = figures()
    assert found["rewarm_disk_held_bytes",] == 150 << 20 and found["rewarm_disk_budget_bytes",] == 1 << 30
    assert found["rewarm_snapshots", "function"] == found["rewarm_snapshots", "runtime"] == 1
    assert found["rewarm_restore_seconds", "f"] == 0.25
    assert found["rewarm_runtimes",] == 0, "no process"
