"""Which monitor is used, and all that is done with a snapshot, in Firecracker: `fake_firecracker.py`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rewarm import wire
from rewarm.errors import MicrovmUnavailable, SnapshotFailed, SnapshotMismatch
from rewarm.facts.function import FunctionSpec
from rewarm.guest.build import GuestFiles
from rewarm.snapshot.manifest import Snapshot, open_snapshot, verify
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.restore import firecracker_means
from rewarm.vmm import kvm
from rewarm.vmm.firecracker import Firecracker, usable
from rewarm.vmm.publishing import UserOrder, check_room, publish_lang, publish_user, restored
from rewarm.vmm.qemu import Qemu, find_qemu
from rewarm.vmm.site import Images, Site, survey

FAKE = Path(__file__).with_name("fake_firecracker.py")
SPEC = FunctionSpec("f", "handler", "app:handler", memory_bytes=256 << 20, isolation="microvm")
CALL: wire.AnyItem = (wire.KIND_JSON, b"", b"101")
NO_UFFD = firecracker_means().why.get("userfaultfd")
needs_device = pytest.mark.skipif(kvm.obstacle() is not None, reason=str(kvm.obstacle()))


def program(folder: Path, script: str = f'exec {sys.executable} -S {FAKE} worker "$@"') -> Path:
    path = folder / "firecracker"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


class Place:
    """A site, and what lies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("kernel", "initrd", "root", "packages", "function", "blank"):
            (folder / name).touch()
        (folder / "run").mkdir()
        sha256 = {"kernel": "k" * 64, "initrd": "i" * 64, "rootfs": "r" * 64}
        kernel, initrd, root = (folder / name for name in ("kernel", "initrd", "root"))
        guest = GuestFiles(folder, kernel, initrd, root, "id", "3.11", "6.1", sha256)
        vmm = Firecracker(program(folder), "1.17.0", folder / "run")
        self.site = Site(guest, vmm, kvm.Accel("kvm", "a test"), firecracker_means())
        self.blank = Images(folder / "packages", folder / "blank", 8 << 20, ("numpy",))
        self.loaded = self.blank._replace(function=folder / "function")

    async def lang(self) -> Snapshot:
        (self.folder / "lang").mkdir()
        return (await publish_lang(self.site, "python", self.blank, self.folder / "lang")).snapshot

    async def user(self) -> Snapshot:
        (self.folder / "user").mkdir()
        order = UserOrder(SPEC, {"spec": SPEC.to_json()}, [CALL])
        return (
            await publish_user(self.site, await self.lang(), "digest@1", self.loaded, order, self.folder / "user")
        ).snapshot


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    before = len(os.listdir("/proc/self/fd"))
    found = Place(tmp_path)
    found.site.pager = PagerClient(lambda: None)
    yield found
    await found.site.pager.close()
    assert list((tmp_path / "run").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_snapshot_is_made_and_wakes_in_every_way(place: Place) -> None:
    snapshot = await place.user()
    site, told = place.site, snapshot.manifest
    assert told.platform.vmm == "Firecracker 1.17.0"
    assert snapshot.disk_bytes < 2 << 20, "the zeros that were written are holes"
    assert told.loading is not None and told.loading.touched_pages >= 1
    layout = snapshot.read_layout()
    assert layout is not None and any(region.first_page <= 101 < sum(region) for region in layout.loading)
    verify(open_snapshot(snapshot.folder, site.platform(place.loaded)))
    policies = {"lazy": "lazy", "prefetch": "prefetch", "layered": "prefetch", "uffd": "uffd", "auto": "uffd"}
    for policy, used in policies.items():
        if used == "uffd" and NO_UFFD is not None:
            used = "prefetch"
        site.counts.policies.clear()
        async with restored(site, snapshot, place.loaded, "clone", policy) as (_, talk):
            assert site.counts.policies == {used: 1}, policy
            for page in (101, 3, 50, 2047):
                ((status, _, _, _, answer),) = await talk.run([(wire.KIND_JSON, b"", b"%d" % page)], 10.0)
                content = snapshot.memory.read_bytes()[page * 4096 : (page + 1) * 4096]
                assert (status, json.loads(answer)) == (200, hashlib.sha256(content).hexdigest()), policy
    assert (site.counts.hung, site.counts.retries) == (0, 0)


async def test_each_monitor_refuses_what_the_other_made(place: Place) -> None:
    snapshot = await place.lang()
    qemu = replace(place.site, vmm=Qemu(Path("/none"), (10, 0, 2)))
    with pytest.raises(SnapshotMismatch, match=r"vmm Firecracker 1\.17\.0, not QEMU 10\.0\.2; .*made again"):
        open_snapshot(snapshot.folder, qemu.platform(place.blank))
    newer = replace(place.site, vmm=Firecracker(Path("/none"), "1.18.0", place.folder))
    with pytest.raises(SnapshotMismatch, match=r"vmm Firecracker 1\.17\.0, not Firecracker 1\.18\.0"):
        open_snapshot(snapshot.folder, newer.platform(place.blank))


async def test_a_memory_that_has_no_room(place: Place) -> None:
    """It is written whole."""
    images = place.blank._replace(memory_bytes=1 << 60)
    check_room(place.folder, 4096)
    with pytest.raises(SnapshotFailed, match="no space for a snapshot"):
        await publish_lang(place.site, "python", images, place.folder)


# ---------------------------------------------------------------- which one


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With a guest that was built, as far as its kernel says the right words."""
    folder = tmp_path / "home" / "microvm" / "guest"
    folder.mkdir(parents=True)
    for part in ("kernel", "initrd", "rootfs.img"):
        (folder / part).write_text("Run /init as init process" if part == "kernel" else "")
    sha256 = {"kernel": "k", "initrd": "i", "rootfs": "r"}
    facts = {"format": 1, "guest_id": "id", "python": "3.11", "kernel_version": "6.1", "sha256": sha256}
    (folder / "guest.json").write_text(json.dumps(facts))
    return tmp_path / "home"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a Firecracker where programs are looked for."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return lambda *script: program(tmp_path / "bin", *script)


@needs_device
@pytest.mark.parametrize("wanted", ["auto", "firecracker"])
def test_it_is_used_where_a_guest_boots_in_it(home: Path, install: Callable[..., Path], wanted: str) -> None:
    binary = install()
    site = survey(home, vmm=wanted)
    assert site.vmm == Firecracker(binary, "1.17.0", home / "run")
    assert (site.accel.name, site.means) == ("kvm", firecracker_means())
    note = json.loads((home / "microvm" / "accel-firecracker.json").read_bytes())
    assert (note["firecracker"], note["kernel"], note["name"]) == ("1.17.0", "k", "kvm")
    (home / "microvm" / "guest" / "kernel").write_text("")  # it is not tried again
    assert usable(home).path == binary


@needs_device
def test_a_guest_that_does_not_boot_in_it(home: Path, install: Callable[..., Path]) -> None:
    install('[ "$1" = --version ] && exec echo Firecracker v1.17.0; echo the vCPU cannot; exit 1')
    why = r"Firecracker needs KVM: /dev/kvm is there .*a guest ended at once: the vCPU cannot"
    with pytest.raises(MicrovmUnavailable, match=f"REWARM_VMM is firecracker, and that cannot be: {why}"):
        survey(home, vmm="firecracker")
    assert usable_reason(home).startswith("Firecracker needs KVM")


def usable_reason(home: Path) -> str:
    with pytest.raises(MicrovmUnavailable) as caught:
        usable(home)
    return caught.value.message


def test_forced_where_there_is_none(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MicrovmUnavailable, match=r"REWARM_VMM is firecracker, .*there is no firecracker; "):
        survey(home, vmm="firecracker")
    with pytest.raises(MicrovmUnavailable, match="qemu"):
        survey(home)


def test_without_a_guest_it_says_so(tmp_path: Path, install: Callable[..., Path]) -> None:
    install()
    assert usable_reason(tmp_path) == "no guest was built; run: rewarm microvm build"


@needs_device
def test_otherwise_it_is_qemu(home: Path, install: Callable[..., Path]) -> None:
    """One that does not do is no obstacle, nor is one that is not wanted."""
    try:
        qemu = find_qemu()
    except MicrovmUnavailable as error:
        pytest.skip(error.message)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = {"boot": boot, "qemu": qemu.version_text, "kernel": "k", "name": "tcg", "why": "that is how it went"}
    (home / "microvm" / "accel.json").write_text(json.dumps(note))
    install("echo Firecracker v1.16.0")
    assert survey(home).vmm == qemu
    install()
    assert survey(home, vmm="qemu").vmm == qemu
