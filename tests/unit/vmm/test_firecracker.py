"""Against a program that speaks Firecracker's API: `fake_firecracker.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import MicrovmUnavailable, SandboxFailed, SnapshotFailed
from rewarm.vmm.firecracker import FN_VSOCK_PORT, LOG_VSOCK_PORT, FirecrackerMachine, available, find_firecracker
from rewarm.vmm.kvm import obstacle
from rewarm.vmm.qemu import Hardware, Qemu, find_qemu
from rewarm.worker import ports

FAKE = Path(__file__).with_name("fake_firecracker.py")


@dataclass
class Plan:
    memory: Path
    env: dict[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()


class Bench:
    """A folder with a fake Firecracker and everything that a machine is made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / ("a long name " * 12)  # longer than a Unix socket's path may be
        self.run_dir.mkdir()
        self.binary = folder / "firecracker"
        self.use(f'exec {sys.executable} -S {FAKE} "$@"')
        for name in ("kernel", "initrd", "a", "b", "state", "memory"):
            (folder / name).touch()
        (folder / "state").write_text('{"vsock": "vsock.sock"}')
        self.state, self.memory = folder / "state", folder / "memory"
        drives = (folder / "a", folder / "b")
        no_qemu = Qemu(Path("/none"), (0, 0, 0))
        self.hw = Hardware(folder / "kernel", folder / "initrd", drives, 256 << 20, "kvm", no_qemu, packages=("numpy",))

    def use(self, script: str) -> None:
        self.binary.write_text(f"#!/bin/sh\n{script}\n")
        self.binary.chmod(0o755)

    def boot(self) -> FirecrackerMachine:
        return FirecrackerMachine.boot(self.binary, self.hw, self.memory, self.run_dir)

    def restore(self, **more: Any) -> FirecrackerMachine:
        plan: Any = Plan(self.memory)
        return FirecrackerMachine.restore(self.binary, self.hw, self.state, plan, self.run_dir, **more)

    def requests(self) -> list[list[Any]]:
        (log,) = self.run_dir.glob("*/requests")
        return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    before = len(os.listdir("/proc/self/fd"))
    found = Bench(tmp_path)
    yield found
    assert list(found.run_dir.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def say(machine: FirecrackerMachine, line: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(machine.fn, line)
    return await asyncio.wait_for(loop.sock_recv(machine.fn, 100), 10)


async def test_boot(bench: Bench) -> None:
    machine = bench.boot()
    try:
        await machine.running()
        assert await say(machine, b"hello\n") == b"HELLO\n"
        assert os.read(machine.log_fd, 100) == b"log\n"
        assert machine.last_words() == "up"
        folder = str(bench.folder)
        (_, _, boot), *others = bench.requests()
        assert " rewarm.packages=numpy" in boot.pop("boot_args")
        assert boot == {"kernel_image_path": f"{folder}/kernel", "initrd_path": f"{folder}/initrd"}
        assert others == [
            ["PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 256}],
            *(
                [
                    "PUT",
                    f"/drives/drive{number}",
                    {
                        "drive_id": f"drive{number}", "path_on_host": f"{folder}/{name}", "is_root_device": False,
                        "is_read_only": True,
                    },
                ]
                for number, name in enumerate("ab")
            ),
            ["PUT", "/vsock", {"guest_cid": 3, "uds_path": "vsock.sock"}],
            ["PUT", "/actions", {"action_type": "InstanceStart"}],
        ]  # fmt: skip
    finally:
        await machine.close()
    await machine.close()


@pytest.mark.parametrize("paged", [False, True])
async def test_restore(bench: Bench, paged: bool) -> None:
    pager = bench.folder / "pager.sock" if paged else None
    machine = bench.restore(pager_socket=pager)
    try:
        await machine.running()
        assert await say(machine, b"hello\n") == b"HELLO\n"
        backend = {"backend_type": "Uffd", "backend_path": str(pager)}
        if not paged:
            backend = {"backend_type": "File", "backend_path": str(bench.memory)}
        load = {"snapshot_path": str(bench.state), "mem_backend": backend, "resume_vm": False}
        changes = [{"drive_id": f"drive{n}", "path_on_host": str(bench.folder / name)} for n, name in enumerate("ab")]
        assert bench.requests() == [
            ["PUT", "/snapshot/load", load],
            ["PATCH", "/drives/drive0", changes[0]],
            ["PATCH", "/drives/drive1", changes[1]],
            ["PATCH", "/vm", {"state": "Resumed"}],
        ]
    finally:
        await machine.close()


async def test_snapshot_and_its_clones(bench: Bench) -> None:
    machine = bench.boot()
    try:
        await machine.running()
        await machine.snapshot(bench.folder / "second")
        assert machine.status is not None
    finally:
        await machine.close()
    assert bench.memory.read_bytes() == b"memory"
    bench.state = bench.folder / "second"
    clones = [bench.restore(), bench.restore()]
    try:
        for clone in clones:
            await clone.running()
        assert [await say(clone, b"%d a\n" % clone.pid) for clone in clones] == [
            b"%d A\n" % clone.pid for clone in clones
        ]
    finally:
        for clone in clones:
            await clone.close()


async def test_a_snapshot_of_a_clone_is_written_elsewhere(bench: Bench) -> None:
    machine = bench.restore(copy=bench.folder / "copy")
    try:
        await machine.running()
        await machine.snapshot(bench.folder / "second")
    finally:
        await machine.close()
    assert bench.memory.read_bytes() == b""
    assert (bench.folder / "copy").read_bytes() == b"memory"


async def test_what_it_refuses(bench: Bench) -> None:
    bench.state.unlink()
    machine = bench.restore()
    try:
        with pytest.raises(SandboxFailed, match=r"PUT /snapshot/load: No such file or directory: .*/state"):
            await machine.running()
        assert os.WTERMSIG(await asyncio.wait_for(machine.wait(), 10)) == signal.SIGKILL
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(machine.fn, 1), 10) == b""
        with pytest.raises(SnapshotFailed, match="PATCH /vm was not answered"):
            await machine.snapshot(bench.state)
    finally:
        await machine.close()


async def test_one_that_ends_at_once(bench: Bench) -> None:
    bench.use("echo no KVM; exit 1")
    machine = bench.boot()
    try:
        with pytest.raises(SandboxFailed, match=r"did not wake: .* no KVM"):
            await machine.running()
    finally:
        await machine.close()


async def test_what_cannot_be_spawned_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bench.folder))
    with pytest.raises(SandboxFailed, match=r"no process for a micro-VM: .*setpriv"):
        bench.boot()


async def test_one_that_never_listens(bench: Bench) -> None:
    bench.use("echo busy; exec sleep 100")
    machine = bench.boot()
    try:
        with pytest.raises(SandboxFailed, match=r"within 0.3 s: busy"):
            await machine.running(0.3)
    finally:
        await machine.close()


async def test_a_guest_that_ends_is_heard(bench: Bench) -> None:
    machine = bench.boot()
    ended: list[int] = []
    machine.when_ended(ended.append)
    try:
        await machine.running()
        fn, log_fd = machine.detach()
        await asyncio.get_running_loop().sock_sendall(fn, b"die\n")
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(fn, 1), 10) == b""
        assert os.waitstatus_to_exitcode(await asyncio.wait_for(machine.wait(), 10)) == 3
        assert ended == [machine.status]
    finally:
        await machine.close()
    fn.close()  # it was ours
    os.close(log_fd)


# ---------------------------------------------------------------- is there one


def test_found(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert find_firecracker(str(bench.binary)) == bench.binary


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo Firecracker v1.16.3", "is v1.16.3, and v1.17 is needed"),
        ("echo hi", "does not tell"),
        ("exit 1", "not start"),
    ],
)
def test_one_that_will_not_do(tmp_path: Path, script: str, why: str) -> None:
    bench = Bench(tmp_path)
    bench.use(script)
    with pytest.raises(MicrovmUnavailable, match=f"{why}.*QEMU is used"):
        find_firecracker(str(bench.binary))
    usable, told = available(tmp_path, str(bench.binary))
    assert not usable
    assert why in told


def test_it_connects_to_where_the_guest_listens() -> None:
    assert (FN_VSOCK_PORT, LOG_VSOCK_PORT) == (ports.FRAMES_VSOCK_PORT, ports.LOG_VSOCK_PORT)


@pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))
@pytest.mark.parametrize(("name", "usable"), [("kvm", True), ("tcg", False)])
def test_kvm_has_to_have_booted_a_guest(tmp_path: Path, name: str, usable: bool) -> None:
    """The verdict is on record, for a guest that was built."""
    bench = Bench(tmp_path)
    bench.use("echo Firecracker v1.17.0")
    assert available(tmp_path, str(bench.binary)) == (False, "no guest was built; run: rewarm microvm build")
    folder = tmp_path / "microvm" / "guest"
    folder.mkdir(parents=True)
    for part in ("kernel", "initrd", "rootfs.img"):
        (folder / part).touch()
    sha256 = {"kernel": "k", "initrd": "i", "rootfs": "r"}
    facts = {"format": 1, "guest_id": "id", "python": "3.11", "kernel_version": "6.1", "sha256": sha256}
    (folder / "guest.json").write_text(json.dumps(facts))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = {"boot": boot, "qemu": find_qemu().version_text, "kernel": "k", "name": name, "why": "that is how it went"}
    (tmp_path / "microvm" / "accel.json").write_text(json.dumps(note))
    told = str(bench.binary) if usable else "it needs KVM: that is how it went"
    assert available(tmp_path, str(bench.binary)) == (usable, told)


def test_none_at_all(tmp_path: Path) -> None:
    assert available(tmp_path, "firecracker-of-nobody") == (
        False, "there is no firecracker-of-nobody; it is not packaged by Debian, QEMU is used",
    )  # fmt: skip
