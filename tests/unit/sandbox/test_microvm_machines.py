"""The micro-VM driver and machines that behave badly: `fake_qemu.py` in their place."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rewarm.errors import InstanceDied, OutOfMemory, RewarmError, SandboxFailed, SnapshotCorrupt
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.sandbox import SandboxState
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.guest.build import GuestFiles
from rewarm.sandbox.library import Asset, Library, Recipe, lang_name
from rewarm.sandbox.microvm import MicrovmDriver
from rewarm.sandbox.waking import worker_status
from rewarm.snapshot.manifest import Snapshot, describe, open_snapshot, write_manifest
from rewarm.snapshot.restore import Means
from rewarm.store.store import Store
from rewarm.testing.stage import Stage
from rewarm.vmm.kvm import Accel
from rewarm.vmm.qemu import Qemu
from rewarm.vmm.site import Images, Site
from rewarm.vmm.user import obstacle

FAKE = Path(__file__).with_name("fake_qemu.py")
#: Root's QEMU is run by somebody else, who may not get at root's own Python.
PYTHON = sys.executable if obstacle() is not None else "/usr/bin/python3"
pytestmark = pytest.mark.skipif(not Path(PYTHON).exists(), reason=f"there is no {PYTHON}")
SPEC = FunctionSpec("probe", "handler", "probe:main", memory_bytes=128 << 20, isolation="microvm")
REVISION = Revision(SPEC, "1" * 64, 1, "code")


class Shop(Library):
    """It always has one snapshot, and machines that do as `does` says."""

    does = "wakes"

    def __init__(self, store: Store, folder: Path, policy: str = "auto") -> None:
        super().__init__(store.home.path, store.snapshots, policy)
        self.folder = folder
        self.refused: list[RewarmError] = []
        self.images = Images(folder / "drive", folder / "drive", 256 << 20)
        for name in ("kernel", "initrd", "drive", "state", "memory"):
            (folder / name).write_bytes(bytes(4096))
        os.truncate(folder / "memory", self.images.memory_bytes)
        self.snapshot = write_manifest(folder, describe(folder, "user", "s", self.site_now().platform(self.images), {}))

    def site_now(self) -> Site:
        binary = self.folder / "qemu"
        binary.write_text(f'#!/bin/sh\nexec {PYTHON} -S {self.folder}/fake.py "{self.does}" "$@"\n')
        binary.chmod(0o755)
        (self.folder / "fake.py").write_bytes(FAKE.read_bytes())
        kernel, initrd, rootfs = (self.folder / name for name in ("kernel", "initrd", "drive"))
        sha256 = {"kernel": "k" * 64, "initrd": "i" * 64, "rootfs": "r" * 64}
        guest = GuestFiles(self.folder, kernel, initrd, rootfs, "id", "3.11", "6.1", sha256)
        means = Means(None, False, {})
        return Site(guest, Qemu(binary, (10, 0, 0)), Accel("tcg", "a test"), means, counts=self.counts)

    async def lang(self, key: LangKey) -> Asset:
        return Asset(self.site_now(), self.snapshot, self.images)

    async def lang_for(self, recipe: Recipe) -> Asset:
        return await self.lang(recipe.spec.lang_key)

    async def user(self, recipe: Recipe) -> Asset:
        return await self.lang(recipe.spec.lang_key)

    async def publish(self, recipe: Recipe) -> SnapshotFacts:
        raise ValueError("what nobody thought of")

    def refuse(self, key: LangKey, refused: Snapshot, error: RewarmError) -> None:
        self.refused.append(error)


class Surveyed(Shop):
    """Its machine has userfaultfd."""

    async def _survey(self) -> Site:
        site = self._site = self.site_now()
        site.means = Means(Path("/nowhere/shim.so"), True, {})
        return site


class Broken(Shop):
    async def lang(self, key: LangKey) -> Asset:
        raise ValueError("what nobody thought of")


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., tuple[Shop, Stage]]]:
    with Store.open(tmp_path / "home") as store, tempfile.TemporaryDirectory(prefix="rewarm-test-") as folder:
        os.chmod(folder, 0o777)  # as root, a QEMU runs as somebody else
        stages: list[Stage] = []

        def made(does: str = "wakes", shop: type[Shop] = Shop) -> tuple[Shop, Stage]:
            library = shop(store, Path(folder))
            library.does = does
            stages.append(Stage(MicrovmDriver(store.home.run_dir, library), REVISION, REVISION))
            return library, stages[-1]

        yield made
        for stage in stages:
            await stage.driver.close()
            assert not stage.sink.wrong


Make = Callable[..., tuple[Shop, Stage]]


async def end_of(stage: Stage) -> RewarmError | None:
    stage.driver.carry_out(m.Restore(1, REVISION))
    return (await stage.gone(1)).error


async def test_it_wakes_and_knows_the_time(make: Make) -> None:
    """The fake fails where it is told a time of before its state was loaded."""
    _, stage = make()
    stage.driver.carry_out(m.Restore(1, REVISION))
    await stage.raised(1, [SandboxState.READY])
    stage.driver.carry_out(m.Destroy(1, "test"))
    assert (await stage.gone(1)).error is None


async def test_nothing_but_resumed_makes_it_ready(make: Make) -> None:
    _, stage = make("loaded")
    error = await end_of(stage)
    assert isinstance(error, InstanceDied) and "socket that belongs to the server" in error.message
    assert not any(isinstance(event, m.Raised) for event in stage.sink.events)


async def test_a_snapshot_that_cannot_be_loaded_is_tried_once(make: Make) -> None:
    shop, stage = make("corrupt")
    assert isinstance(await end_of(stage), SnapshotCorrupt)
    assert isinstance((await stage.heard(m.SleepLost, REVISION.digest)).error, SnapshotCorrupt)
    assert (shop.counts.restores, shop.counts.retries, shop.counts.lost) == (1, 0, 1)


async def test_one_of_a_runtime_is_made_anew_once(make: Make) -> None:
    shop, stage = make("corrupt")
    await stage.zygote()
    node = await stage.climb(SandboxState.LANG)
    stage.driver.carry_out(m.LoadUser(node, REVISION))
    assert isinstance((await stage.gone(node)).error, SnapshotCorrupt)
    assert (shop.counts.restores, shop.counts.retries, len(shop.refused)) == (2, 1, 2)


@pytest.mark.parametrize(
    ("told", "kind", "said"),
    [
        ("ended: 3", InstanceDied, "exit status 3"),
        ("ended: 139", InstanceDied, "crashed with SIGSEGV"),
        ("ended: 137, out of memory", OutOfMemory, "memory ran out"),
    ],
)
async def test_how_its_worker_ended(make: Make, told: str, kind: type[RewarmError], said: str) -> None:
    _, stage = make(told)
    error = await end_of(stage)
    assert type(error) is kind and said in error.message


@pytest.mark.parametrize(
    ("console", "status"),
    [("", 0), ("rewarm: the worker ended: 200", 200 << 8), ("rewarm: the worker ended: 999999", 0), ("ended: 3", 0)],
)
def test_what_a_guest_does_not_tell(console: str, status: int) -> None:
    assert worker_status(0, console) == status
    assert worker_status(9, console) == 9, "it was killed from outside"


async def test_what_nobody_expected_is_answered(make: Make) -> None:
    _, stage = make(shop=Broken)
    stage.driver.carry_out(m.Sleep(REVISION))
    error = (await stage.heard(m.SleepLost, REVISION.digest)).error
    assert isinstance(error, SandboxFailed) and "what nobody thought of" in error.message
    stage.driver.carry_out(m.RaiseLang(SPEC.lang_key, None))
    assert isinstance((await stage.heard(m.LangExited, SPEC.lang_key)).error, SandboxFailed)


async def test_a_pager_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is restored in another way, until it does."""
    with Store.open(tmp_path / "home") as store:
        (tmp_path / "shop").mkdir()
        library = Surveyed(store, tmp_path / "shop", "uffd")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nowhere/python")
            assert (await library.site()).pager is None
        assert (await library.site()).pager is not None
        await library.close()


async def test_what_is_refused_goes_and_what_took_its_place_stays(tmp_path: Path) -> None:
    with Store.open(tmp_path / "home") as store:
        (tmp_path / "shop").mkdir()
        made = Shop(store, tmp_path / "shop").snapshot
        library = Library(store.home.path, store.snapshots)
        staged = store.snapshots.stage()
        for path, _ in made.files():
            os.link(path, staged / path.name)
        write_manifest(staged, made.manifest.with_seconds(publish=2.0))
        folder = store.snapshots.place(staged, lang_name(SPEC.lang_key))
        library.refuse(SPEC.lang_key, made, SnapshotCorrupt("another"))
        assert folder.is_dir()
        library.refuse(SPEC.lang_key, open_snapshot(folder), SnapshotCorrupt("this one"))
        assert not folder.exists()
        library.refuse(SPEC.lang_key, made, SnapshotCorrupt("none"))
        assert library.counts.lost == 1
        await library.close()
