"""The micro-VM driver keeps to the sandbox port, with real guests."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest

from rewarm.errors import FunctionError, InstanceDied
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.facts.sandbox import SandboxState
from rewarm.sandbox.library import Library, Recipe, lang_name
from rewarm.sandbox.microvm import MicrovmDriver
from rewarm.snapshot.manifest import MANIFEST_NAME, Manifest, read_part, write_manifest
from rewarm.snapshot.restore import POLICIES
from rewarm.store.store import Store
from rewarm.testing import VM_CHECKS, check_sandbox_driver, held_by_process
from rewarm.testing.sandboxes import PROBE, call
from rewarm.testing.stage import Stage
from rewarm.vmm.publishing import copy_sparse

E = TypeVar("E", bound=m.Event)
State = SandboxState
WAIT_S = 120.0  # a guest takes long to boot on a busy machine
pytestmark = pytest.mark.slow

SPEC = FunctionSpec("probe", "handler", "probe:main", timeout_s=30.0, memory_bytes=128 << 20, isolation="microvm")
#: Beside what the port's checks ask for: something that clones of a snapshot must not have in common.
SLEEPER = """
import os
import random
import time

import rewarm

woken = []


@rewarm.after_restore
def note():
    woken.append(time.time())


def main(event, context):
    if event.get("do") == "draw":
        print("drawing on", os.uname().nodename)
        return {"system": os.urandom(8).hex(), "python": random.random(), "host": os.uname().nodename}
    if event.get("do") == "clock":
        return {"now": time.time(), "woken": woken}
    return event
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, give_guest: Callable[[Path], None]) -> Path:
    """A home with a guest, and with the Lang layer that all tests share."""
    path = tmp_path_factory.mktemp("microvm") / "home"
    give_guest(path)

    async def boot() -> None:
        with Store.open(path) as store:
            await Library(path, store.snapshots).lang(SPEC.lang_key)

    asyncio.run(boot())
    shutil.copytree(path / "snapshots", path.parent / "kept", copy_function=copy_file)
    return path


def copy_file(source: str, target: str) -> None:
    copy_sparse(Path(source), Path(target))
    shutil.copystat(source, target)


@pytest.fixture(scope="module")
def until_s() -> float:
    """Where time is limited (REWARM_TEST_MICROVM_S), what is not begun by then is skipped."""
    return time.monotonic() + float(os.environ.get("REWARM_TEST_MICROVM_S", "inf"))


@pytest.fixture
async def store(home: Path, until_s: float) -> AsyncIterator[Store]:
    """A test may drop the Lang layer: the next one need not boot for that."""
    if time.monotonic() > until_s:
        pytest.skip("the time for micro-VMs is over (REWARM_TEST_MICROVM_S)")
    for kept in (home.parent / "kept").iterdir():
        if not (home / "snapshots" / kept.name).exists():
            shutil.copytree(kept, home / "snapshots" / kept.name, copy_function=copy_file)
    with Store.open(home) as opened:
        yield opened


def folder(path: Path, text: str, version: int) -> Revision:
    path.mkdir()
    (path / "probe.py").write_text(text)
    return Revision(SPEC, f"{version:064}", version, str(path))


@pytest.fixture
def revisions(tmp_path: Path) -> tuple[Revision, Revision]:
    """A sound one and a broken one."""
    return folder(tmp_path / "good", PROBE, 1), folder(tmp_path / "bad", "import nonsense_that_is_not_there", 2)


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Revision:
    return folder(tmp_path_factory.mktemp("code") / "sleeper", SLEEPER, 3)


def maker(store: Store, policy: str = "auto") -> Callable[[], MicrovmDriver]:
    return lambda: MicrovmDriver(store.home.run_dir, Library(store.home.path, store.snapshots, policy))


def open_manifest(folder: Path) -> Manifest:
    return Manifest.loads((folder / MANIFEST_NAME).read_bytes())


def flip_a_byte(store: Store, revision: Revision) -> None:
    """In the memory of its snapshot, where there is something."""
    memory = store.snapshots.folder(revision.digest) / "memory"
    memory.chmod(0o600)
    with memory.open("r+b") as file:
        at = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        byte = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), at)


@pytest.mark.parametrize("name", VM_CHECKS)
async def test_port(name: str, store: Store, revisions: tuple[Revision, Revision]) -> None:
    await check_sandbox_driver(
        maker(store), *revisions, checks=VM_CHECKS, only=name, held=lambda: held_by_process(store.home.run_dir),
        timeout_s=WAIT_S, damage=lambda _, revision: flip_a_byte(store, revision),
    )  # fmt: skip


# ---------------------------------------------------------------- asleep


class Bed(Stage):
    """A stage for what is restored."""

    def __init__(self, driver: MicrovmDriver, library: Library, revision: Revision) -> None:
        super().__init__(driver, revision, revision, timeout_s=WAIT_S)
        self.library = library

    def wake(self) -> int:
        number = self.new_id()
        self.driver.carry_out(m.Restore(number, self.revision))
        return number

    async def awake(self) -> int:
        number = self.wake()
        await self.raised(number, [State.READY])
        return number

    async def spawned(self, number: int) -> int:
        """The pid of its machine, as soon as there is one."""
        async with asyncio.timeout(WAIT_S):
            while number not in self.driver.pids():
                await asyncio.sleep(0.001)
        return self.driver.pids()[number]

    async def answer(self, number: int, **event: object) -> Any:
        request = call(**event)
        self.run(number, request)
        await self.answered(request)
        status, _, _, _, body = self.sink.answers[request]
        assert status == 200, body
        return orjson.loads(body)


@pytest.fixture
async def bed(store: Store, sleeper: Revision, request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    """Its snapshot is on disk: made by the first test that wants it. Afterwards nothing is left."""
    held = held_by_process(store.home.run_dir)
    library = Library(store.home.path, store.snapshots, getattr(request, "param", "auto"))
    bed = Bed(MicrovmDriver(store.home.run_dir, library, restore_deadline_s=8.0), library, sleeper)
    try:
        bed.driver.carry_out(m.Sleep(sleeper))
        facts = (await bed.heard(m.Slept, sleeper.digest)).facts
        assert facts.disk_bytes < 256 << 20 and facts.restore_s > 0.0 and facts.cold_s > 0.0, facts
        yield bed
    finally:
        await bed.driver.close()
    assert not bed.sink.wrong
    assert not held_by_process(store.home.run_dir) - held


@pytest.mark.parametrize("bed", POLICIES, indirect=True)
async def test_clones_are_unique(bed: Bed) -> None:
    """By each way of restoring, as far as this machine has the means."""
    clones = [await bed.awake(), await bed.awake()]
    for question in ("system", "python", "host"):
        answers = [(await bed.answer(clone, do="draw"))[question] for clone in clones]
        assert answers[0] != answers[1], f"two clones have the same {question}"
    for clone in clones:
        said = f"drawing on probe-{clone}".encode()
        await bed.sink.until(lambda said=said: said in bed.sink.logged, "what it prints is in the log")
    for clone in clones:
        clock = await bed.answer(clone, do="clock")
        assert abs(clock["now"] - time.time()) < 5.0
        assert len(clock["woken"]) == 1, "its hook was called once, after this restore"
    bed.driver.carry_out(m.Destroy(clones[0], "test"))
    assert (await bed.gone(clones[0])).error is None
    assert await bed.answer(clones[1], n=2) == {"n": 2}, "the other one lives on"


async def test_a_machine_that_is_killed(bed: Bed) -> None:
    """Told with a reason if it was ready, made good if it was on its way up."""
    number = await bed.awake()
    os.kill(bed.driver.pids()[number], signal.SIGKILL)
    assert isinstance((await bed.gone(number)).error, InstanceDied)
    number = bed.wake()
    os.kill(await bed.spawned(number), signal.SIGKILL)
    await bed.raised(number, [State.READY])
    assert await bed.answer(number, n=1) == {"n": 1}
    assert bed.library.counts.retries == 1


async def test_a_machine_that_hangs_on_its_way_up(bed: Bed) -> None:
    number = bed.wake()
    os.kill(await bed.spawned(number), signal.SIGSTOP)
    await bed.raised(number, [State.READY])
    assert await bed.answer(number, n=1) == {"n": 1}
    assert (bed.library.counts.hung, bed.library.counts.retries) == (1, 1)


async def test_it_knows_the_time_however_long_it_took(bed: Bed) -> None:
    number = bed.wake()
    pid = await bed.spawned(number)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(2.0)
    os.kill(pid, signal.SIGCONT)
    await bed.raised(number, [State.READY])
    assert abs((await bed.answer(number, do="clock"))["now"] - time.time()) < 1.0


async def test_a_runtime_that_qemu_cannot_load(store: Store, revisions: tuple[Revision, Revision]) -> None:
    """Its files are as they were written, and yet of no use: it is made anew, once, and nobody notices."""
    folder = store.snapshots.folder(lang_name(SPEC.lang_key))
    state = folder / "state"
    state.chmod(0o600)
    with state.open("r+b") as file:
        file.truncate(state.stat().st_size // 2)
    old = open_manifest(folder)
    parts = {**old.parts, "state": read_part(state)}
    write_manifest(folder, dataclasses.replace(old, parts=parts))
    library = Library(store.home.path, store.snapshots)
    stage = Stage(MicrovmDriver(store.home.run_dir, library), *revisions, timeout_s=WAIT_S)
    try:
        await stage.zygote()
        await stage.climb(State.READY)
    finally:
        await stage.driver.close()
    assert (library.counts.lost, library.counts.boots) == (1, 1)


async def test_destroyed_between_two_machines(bed: Bed) -> None:
    number = bed.wake()
    os.kill(await bed.spawned(number), signal.SIGKILL)
    while number in bed.driver.pids():
        await asyncio.sleep(0)
    bed.driver.carry_out(m.Destroy(number, "test"))
    assert (await bed.gone(number)).error is None


@pytest.mark.parametrize("bed", ["uffd"], indirect=True)
async def test_the_pager_is_killed(bed: Bed) -> None:
    """Its machines end, for they would stand still; the next one has another pager."""
    site = bed.library.known
    assert site is not None
    if site.pager is None or site.means.shim is None:
        pytest.skip(f"no userfaultfd here: {site.means.why}")
    number = await bed.awake()
    os.kill(site.pager.pid, signal.SIGKILL)
    assert isinstance((await bed.gone(number)).error, InstanceDied)
    assert await bed.answer(await bed.awake(), n=1) == {"n": 1}


async def test_a_sample_call_that_fails(store: Store, tmp_path: Path) -> None:
    """What the function said of it is what whoever deploys it reads."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "probe.py").write_text(PROBE)
    (code / "call.json").write_text('{"do": "error"}')
    spec = dataclasses.replace(SPEC, samples=("call.json",))
    library = Library(store.home.path, store.snapshots)
    with pytest.raises(FunctionError, match=r"sample call of 'probe' failed: .*asked for.*; mend the sample"):
        await library.publish(Recipe(spec, "4" * 64, 1, code, None))
    await library.close()
    assert not store.snapshots.folder("4" * 64).exists()
    assert list(store.home.tmp_dir.iterdir()) == []
