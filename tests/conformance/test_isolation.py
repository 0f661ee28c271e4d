"""What sets an instance of the process driver apart: its memory cgroup and its namespaces, and both switched off."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from rewarm.errors import OutOfMemory
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.facts.sandbox import SandboxState as State
from rewarm.sandbox import cgroup
from rewarm.sandbox.isolation import NONE, Isolation, probe
from rewarm.sandbox.process import ProcessDriver
from rewarm.testing import check_sandbox_driver, held_by_process
from rewarm.testing import sandboxes as suite
from rewarm.testing.sandboxes import SANDBOX_CHECKS, call
from rewarm.testing.stage import Stage

MEMORY_BYTES = 128 << 20
NOTHING = Isolation(cgroups=False, namespaces=False)
SHM_KEY = 0x72657761

PROBE = """
import ctypes, mmap, os, subprocess

libc = ctypes.CDLL(None, use_errno=True)


def main(event, context):
    what = event["do"]
    if what == "eats":
        held = mmap.mmap(-1, event["bytes"])  # shared memory, which RLIMIT_DATA does not count
        for at in range(0, len(held), mmap.PAGESIZE):
            held[at] = 1
        return len(held)
    if what == "leaves":
        return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    if what == "renames":
        return libc.sethostname(b"another", 7)
    if what == "shares":
        return libc.shmget(event["key"], 4096, 0o1600)
    if what == "writes":
        with open(os.path.join(os.path.dirname(__file__), "mark"), "w") as file:
            file.write("x")
    return os.getpid()
"""
NODE_PROBE = "export const main = async () => process.pid;"


def unavailable() -> str:
    try:
        cgroup.find()
    except OSError as error:
        return str(error)
    return ""


needs_cgroups = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
needs_namespaces = pytest.mark.skipif(probe().mode == NONE, reason=f"no namespaces: {probe().refused}")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def revision(path: Path, name: str, text: str, runtime: Any = "python") -> Revision:
    path.mkdir()
    (path / name).write_text(text)
    entry = f"{name}:main" if runtime == "nodejs" else "probe:main"
    spec = FunctionSpec("probe", "handler", entry, timeout_s=30.0, memory_bytes=MEMORY_BYTES, runtime=runtime)
    return Revision(spec, "1" * 64, 1, str(path))


async def staged(folder: Path, code: Revision, isolation: Isolation) -> AsyncIterator[Stage]:
    """Everything is gone again when it closes, the cgroups of its run directory too."""
    run_dir = folder / "run"
    run_dir.mkdir()
    before = held_by_process(run_dir)
    stage = Stage(ProcessDriver(run_dir, isolation=isolation), code, code)
    try:
        yield stage
    finally:
        await stage.driver.close()
    assert not stage.sink.wrong
    assert not held_by_process(run_dir) - before
    assert unavailable() or not cgroups_of(run_dir).exists()


def cgroups_of(run_dir: Path) -> Path:
    """Below which a driver makes its cgroups."""
    return cgroup.find().folder / cgroup.name_for(run_dir)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async for stage in staged(tmp_path, revision(tmp_path / "code", "probe.py", PROBE), Isolation()):
        yield stage


@pytest.fixture
async def bare_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async for stage in staged(tmp_path, revision(tmp_path / "code", "probe.py", PROBE), NOTHING):
        yield stage


@pytest.fixture
async def node_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    code = revision(tmp_path / "code", "probe.mjs", NODE_PROBE, "nodejs")
    async for stage in staged(tmp_path, code, Isolation()):
        yield stage


async def ask(stage: Stage, node: int, **event: object) -> tuple[int, Any]:
    request = call(**event)
    stage.run(node, request)
    await stage.answered(request)
    answer = stage.sink.answers[request]
    return answer[0], orjson.loads(answer[4])


def group_of(pid: int) -> cgroup.Place:
    return cgroup.locate(Path(f"/proc/{pid}/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())


def namespaces_of(pid: int) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("ipc", "uts", "mnt", "net", "pid")}


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while os.path.exists(f"/proc/{pid}"):
            await asyncio.sleep(0.02)


# ---------------------------------------------------------------- cgroups


@needs_cgroups
async def test_a_cgroup_holds_an_instance_and_its_limit(stage: Stage) -> None:
    key = await stage.zygote()
    node = await stage.climb(State.READY)
    pid = stage.driver.pids()[node]
    place = group_of(pid)
    assert place.folder.name == f"sandbox-{node}"
    assert (place.folder / "cgroup.procs").read_text().split() == [str(pid)]
    assert int((place.folder / place.files.limit).read_text()) == MEMORY_BYTES
    assert group_of(stage.driver.pids()[key]) == group_of(os.getpid()), "a zygote is not limited"
    stage.driver.carry_out(m.Destroy(node, "test"))
    await stage.gone(node)
    assert not place.folder.exists()


@needs_cgroups
async def test_memory_beyond_the_limit_ends_that_instance_only(stage: Stage) -> None:
    await stage.zygote()
    greedy, other = await stage.climb(State.READY), await stage.climb(State.READY)
    assert await ask(stage, greedy, do="eats", bytes=MEMORY_BYTES // 2) == (200, MEMORY_BYTES // 2)
    stage.run(greedy, call(do="eats", bytes=2 * MEMORY_BYTES))
    assert isinstance((await stage.gone(greedy)).error, OutOfMemory)
    assert (await ask(stage, other, do="nothing"))[0] == 200


@pytest.mark.parametrize("how", ["destroyed", "killed"])
async def test_what_left_the_process_group_ends_with_the_instance(stage: Stage, how: str) -> None:
    await stage.zygote()
    node = await stage.climb(State.READY)
    _, daemon = await ask(stage, node, do="leaves")
    assert os.getpgid(daemon) == daemon
    if how == "destroyed":
        stage.driver.carry_out(m.Destroy(node, "test"))
    else:
        os.kill(stage.driver.pids()[node], 9)
    await stage.gone(node)
    await gone(daemon)


@needs_cgroups
async def test_a_bare_has_its_cgroup_ahead(stage: Stage, tmp_path: Path) -> None:
    node = await stage.climb(State.BARE)
    folder = cgroups_of(tmp_path / "run") / f"sandbox-{node}"
    assert (folder / "cgroup.procs").read_text() == ""
    stage.driver.carry_out(m.Destroy(node, "test"))
    await stage.gone(node)
    assert not folder.exists()


# ---------------------------------------------------------------- namespaces


@needs_namespaces
async def test_an_instance_leaves_the_namespaces_that_it_does_not_need(stage: Stage) -> None:
    await stage.zygote()
    nodes = [await stage.climb(State.READY) for _ in range(2)]
    first, second = (namespaces_of(stage.driver.pids()[node]) for node in nodes)
    ours = namespaces_of(os.getpid())
    for kind in ("ipc", "uts", "mnt"):
        assert len({ours[kind], first[kind], second[kind]}) == 3
    for kind in ("net", "pid"):
        assert ours[kind] == first[kind] == second[kind], "functions call out, and are reaped by pid"


@needs_namespaces
async def test_names_and_shared_memory_stay_inside(stage: Stage) -> None:
    await stage.zygote()
    node = await stage.climb(State.READY)
    before = socket.gethostname()
    await ask(stage, node, do="renames")  # root may, others may not
    assert socket.gethostname() == before
    status, segment = await ask(stage, node, do="shares", key=SHM_KEY)
    assert status == 200 and segment >= 0
    assert str(SHM_KEY) not in Path("/proc/sysvipc/shm").read_text()


@needs_namespaces
@pytest.mark.skipif(bool(probe().refused), reason=f"code stays writable here: {probe().refused}")
async def test_the_code_of_an_instance_is_read_only(stage: Stage) -> None:
    await stage.zygote()
    node = await stage.climb(State.READY)
    status, answer = await ask(stage, node, do="writes")
    assert status == 500 and "Read-only file system" in answer["error"]
    Path(stage.revision.code_dir, "from outside").write_text("x")
    assert not Path(stage.revision.code_dir, "mark").exists()


# ---------------------------------------------------------------- runtimes that are consumed


@needs_node
async def test_a_runtime_brings_its_isolation_along(node_stage: Stage) -> None:
    key = await node_stage.zygote()
    pid = node_stage.driver.pids()[key]
    node = await node_stage.climb(State.READY)
    assert node_stage.driver.pids()[node] == pid
    if probe().mode != NONE:
        ours, theirs = namespaces_of(os.getpid()), namespaces_of(pid)
        assert [kind for kind in ours if ours[kind] != theirs[kind]] == ["ipc", "uts", "mnt"]
    if not unavailable():
        place = group_of(pid)
        assert place.folder.name == "runtime-1"
        limit_bytes = int((place.folder / place.files.limit).read_text())
        assert MEMORY_BYTES < limit_bytes < 4 * MEMORY_BYTES, "beyond what node itself had"
        assert list(place.folder.parent.glob("sandbox-*")) == [], "its sandbox needs no other"


# ---------------------------------------------------------------- without


async def test_isolation_can_be_switched_off(bare_stage: Stage) -> None:
    await bare_stage.zygote()
    node = await bare_stage.climb(State.READY)
    pid = bare_stage.driver.pids()[node]
    assert namespaces_of(pid) == namespaces_of(os.getpid())
    if not unavailable():
        assert group_of(pid) == group_of(os.getpid())
    _, daemon = await ask(bare_stage, node, do="leaves")
    bare_stage.driver.carry_out(m.Destroy(node, "test"))
    await bare_stage.gone(node)
    await gone(daemon)


@pytest.mark.parametrize("name", SANDBOX_CHECKS)
async def test_a_driver_without_isolation(name: str, tmp_path: Path) -> None:
    good = revision(tmp_path / "good", "probe.py", suite.PROBE)
    broken = revision(tmp_path / "bad", "probe.py", "import nonsense_that_is_not_there")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    await check_sandbox_driver(
        lambda: ProcessDriver(run_dir, isolation=NOTHING), good, broken, only=name,
        held=lambda: held_by_process(run_dir),
    )  # fmt: skip
