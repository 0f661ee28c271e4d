"""The micro-VM driver on Firecracker, up to calls that are answered: `fake_firecracker.py` in its place."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rewarm import wire
from rewarm.errors import BadDefinition, InstanceDied, MicrovmUnavailable, SnapshotCorrupt
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.request import Request
from rewarm.facts.sandbox import SandboxState
from rewarm.guest.build import GuestFiles
from rewarm.sandbox.library import Asset, Library, Recipe
from rewarm.sandbox.microvm import MicrovmDriver
from rewarm.snapshot.restore import firecracker_means
from rewarm.store.store import Store
from rewarm.testing.stage import Stage
from rewarm.vmm.firecracker import Firecracker
from rewarm.vmm.kvm import Accel
from rewarm.vmm.publishing import UserOrder, publish_lang, publish_user
from rewarm.vmm.site import Images, Site

FAKE = Path(__file__).parents[1] / "vmm" / "fake_firecracker.py"
SPEC = FunctionSpec("probe", "handler", "probe:main", memory_bytes=128 << 20, isolation="microvm")
REVISION = Revision(SPEC, "1" * 64, 1, "code")
PAGE = 101  # of the guest's memory, which is asked for
ANSWER = hashlib.sha256(hashlib.sha256(b"%d" % PAGE).digest() * 128).hexdigest()
NO_UFFD = firecracker_means().why.get("userfaultfd")


class Shop(Library):
    """A library whose snapshots are made here, without Debian's packages."""

    folder: Path

    async def prepare(self, folder: Path, run_dir: Path) -> None:
        self.folder = folder
        for name in ("kernel", "initrd", "drive", "function"):
            (folder / name).touch()
        binary = folder / "firecracker"
        binary.write_text(f'#!/bin/sh\nexec {sys.executable} -S {FAKE} worker "$@"\n')
        binary.chmod(0o755)
        kernel, initrd, drive = (folder / name for name in ("kernel", "initrd", "drive"))
        guest = GuestFiles(
            folder, kernel, initrd, drive, "id", "3.11", "6.1", {"kernel": "", "initrd": "", "rootfs": ""}
        )
        vmm = Firecracker(binary, "1.17.0", run_dir)
        site = Site(guest, vmm, Accel("kvm", "a test"), firecracker_means(), counts=self.counts)
        blank = Images(drive, drive, 8 << 20)
        for name in ("lang", "user"):
            (folder / name).mkdir()
        lang = (await publish_lang(site, "python", blank, folder / "lang")).snapshot
        order = UserOrder(SPEC, {}, [(wire.KIND_JSON, b"", b"%d" % PAGE)])
        images = blank._replace(function=folder / "function")
        user = (await publish_user(site, lang, "digest@1", images, order, folder / "user")).snapshot
        self._site = site
        self.assets = {"lang": Asset(site, lang, images), "user": Asset(site, user, images)}

    async def lang(self, key: LangKey) -> Asset:
        return self.assets["lang"]

    async def lang_for(self, recipe: Recipe) -> Asset:
        return self.assets["lang"]

    async def user(self, recipe: Recipe) -> Asset:
        await self.site()  # has a pager
        return self.assets["user"]


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    with Store.open(tmp_path / "home") as store:
        library = Shop(store.home.path, store.snapshots)
        (tmp_path / "shop").mkdir()
        await library.prepare(tmp_path / "shop", store.home.run_dir)
        yield library


@pytest.fixture
async def stage(shop: Shop, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(MicrovmDriver(tmp_path / "home" / "run", shop), REVISION, REVISION)
    yield stage
    await stage.driver.close()
    assert not stage.sink.wrong
    assert list((tmp_path / "home" / "run").iterdir()) == []


def request(page: int = PAGE) -> Request:
    return Request("probe", 0.0, 0.0, wire.Item(wire.KIND_JSON, b"", b"%d" % page))


async def answers(stage: Stage, node: int) -> None:
    asked = request()
    stage.run(node, asked)
    await stage.answered(asked)
    status, _, _, _, body = stage.sink.answers[asked]
    assert (status, bytes(body)) == (200, b'"%s"' % ANSWER.encode())


async def test_it_wakes_and_answers(stage: Stage, shop: Shop) -> None:
    shop.counts.policies.clear()
    stage.driver.carry_out(m.Restore(1, REVISION))
    await stage.raised(1, [SandboxState.READY])
    assert shop.counts.policies == {"uffd" if NO_UFFD is None else "prefetch": 1}
    await answers(stage, 1)
    await stage.sink.until(lambda: stage.sink.logged == b"log\n", "what it logged")
    stage.driver.carry_out(m.Destroy(1, "test"))
    assert (await stage.gone(1)).error is None


async def test_by_way_of_its_runtime(stage: Stage) -> None:
    await stage.zygote()
    node = await stage.climb(SandboxState.READY)
    await answers(stage, node)


async def test_one_that_ends_in_a_call(stage: Stage) -> None:
    stage.driver.carry_out(m.Restore(1, REVISION))
    await stage.raised(1, [SandboxState.READY])
    stage.run(1, request(-1))
    error = (await stage.gone(1)).error
    assert isinstance(error, InstanceDied) and "exit status 5" in error.message


async def test_one_that_is_killed(stage: Stage) -> None:
    stage.driver.carry_out(m.Restore(1, REVISION))
    await stage.raised(1, [SandboxState.READY])
    os.kill(stage.driver.pids()[1], signal.SIGKILL)
    assert isinstance((await stage.gone(1)).error, InstanceDied)


@pytest.mark.skipif(NO_UFFD is not None, reason=str(NO_UFFD))
async def test_a_pager_that_dies(stage: Stage, shop: Shop) -> None:
    """Its machines end with it, and the next have another."""
    stage.driver.carry_out(m.Restore(1, REVISION))
    await stage.raised(1, [SandboxState.READY])
    pager = (await shop.site()).pager
    assert pager is not None and pager.pid is not None
    os.kill(pager.pid, signal.SIGKILL)
    error = (await stage.gone(1)).error
    assert isinstance(error, InstanceDied) and "fills its memory" in error.message
    stage.driver.carry_out(m.Restore(2, REVISION))
    await stage.raised(2, [SandboxState.READY])


async def test_a_snapshot_that_it_cannot_load(stage: Stage, shop: Shop) -> None:
    state = shop.assets["user"].snapshot.state
    state.unlink()
    state.write_bytes(b"nonsense")
    shop.assets["user"].site.means = shop.assets["user"].site.means._replace(userfaultfd=False)
    stage.driver.carry_out(m.Restore(1, REVISION))
    assert isinstance((await stage.gone(1)).error, SnapshotCorrupt)
    assert isinstance((await stage.heard(m.SleepLost, REVISION.digest)).error, SnapshotCorrupt)


def test_a_monitor_that_nobody_knows(tmp_path: Path) -> None:
    with (
        Store.open(tmp_path / "home") as store,
        pytest.raises(BadDefinition, match="REWARM_VMM is auto, qemu, firecracker, not 'xen'"),
    ):
        Library(store.home.path, store.snapshots, vmm="xen")


async def test_a_library_surveys_what_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with Store.open(tmp_path / "home") as store:
        library = Library(store.home.path, store.snapshots, vmm="firecracker")
        with pytest.raises(MicrovmUnavailable, match="REWARM_VMM is firecracker"):
            await asyncio.wait_for(library.site(), 20)
        await library.close()
