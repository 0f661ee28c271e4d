"""Against a program that speaks Firecracker's API: `fake_firecracker.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import MicrovmUnavailable, SandboxFailed, SnapshotCorrupt, SnapshotFailed
from rewarm.vmm.firecracker import FN_VSOCK_PORT, LOG_VSOCK_PORT, FirecrackerMachine, find_firecracker, host_cpu
from rewarm.vmm.qemu import Hardware
from rewarm.worker import ports

FAKE = Path(__file__).with_name("fake_firecracker.py")
STATE = {"uds_path": "vsock.sock", "mem_size_mib": 1, "drives": {"drive0": "drive0"}, "loaded": False}


@dataclass
class Plan:
    memory: Path
    env: dict[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    listen: Any = None


class Bench:
    """A folder with a fake Firecracker and everything that a machine is made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / ("a long name " * 12)  # longer than a Unix socket's path may be
        self.run_dir.mkdir()
        self.binary = folder / "firecracker"
        self.use(f'exec {sys.executable} -S {FAKE} shout "$@"')
        for name in ("kernel", "initrd", "a", "b"):
            (folder / name).touch()
        self.state, self.memory = folder / "state", folder / "memory"
        self.state.write_text(json.dumps(STATE))
        self.memory.write_bytes(bytes(1 << 20))
        drives = (folder / "a", folder / "b")
        self.hw = Hardware(
            folder / "kernel", folder / "initrd", drives, 1 << 20, "kvm", self.binary, packages=("numpy",)
        )

    def use(self, script: str) -> None:
        self.binary.write_text(f"#!/bin/sh\n{script}\n")
        self.binary.chmod(0o755)

    def boot(self) -> FirecrackerMachine:
        return FirecrackerMachine.boot(self.hw, self.memory, self.run_dir)

    def restore(self, copy: Path | None = None) -> FirecrackerMachine:
        plan: Any = Plan(self.memory)
        return FirecrackerMachine.restore(self.hw, self.state, plan, self.run_dir, copy)

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


async def logged(machine: FirecrackerMachine) -> bytes:
    """What it has written, once it has."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(machine.log_fd, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), 10)
    finally:
        loop.remove_reader(machine.log_fd)
    return os.read(machine.log_fd, 100)


async def test_boot(bench: Bench) -> None:
    machine = bench.boot()
    try:
        await machine.running()
        assert await say(machine, b"hello\n") == b"HELLO\n"
        assert await logged(machine) == b"log\n"
        assert machine.last_words() == "up"
        folder = str(bench.folder)
        (_, _, boot), *others = bench.requests()
        assert " rewarm.packages=numpy" in boot.pop("boot_args")
        assert boot == {"kernel_image_path": f"{folder}/kernel", "initrd_path": f"{folder}/initrd"}
        assert others == [
            ["PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 1}],
            *(
                [
                    "PUT",
                    f"/drives/drive{number}",
                    {
                        "drive_id": f"drive{number}", "path_on_host": f"drive{number}", "is_root_device": False,
                        "is_read_only": True,
                    },
                ]
                for number in range(2)
            ),
            ["PUT", "/vsock", {"guest_cid": 3, "uds_path": "vsock.sock"}],
            ["PUT", "/actions", {"action_type": "InstanceStart"}],
        ]  # fmt: skip
        (drive,) = bench.run_dir.glob("*/drive1")
        assert drive.resolve() == bench.folder / "b"
    finally:
        await machine.close()
    await machine.close()


async def test_restore(bench: Bench) -> None:
    machine = bench.restore()
    try:
        await machine.running()
        assert await say(machine, b"hello\n") == b"HELLO\n"
        backend = {"backend_type": "File", "backend_path": str(bench.memory)}
        load = {"snapshot_path": str(bench.state), "mem_backend": backend, "resume_vm": True}
        assert bench.requests() == [["PUT", "/snapshot/load", load]]
    finally:
        await machine.close()


async def test_its_files_are_found_wherever_it_works(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.folder)
    bench.state, bench.memory = Path("state"), Path("memory")
    bench.hw = replace(bench.hw, kernel=Path("kernel"), initrd=Path("initrd"), drives=(Path("a"),))
    for start in (bench.boot, bench.restore):
        machine = start()
        try:
            await machine.running()
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
    assert len(bench.memory.read_bytes().strip(b"\0")) > 4096
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
    assert bench.memory.read_bytes() == (bench.folder / "copy").read_bytes() == bytes(1 << 20)


async def test_a_snapshot_that_it_cannot_load(bench: Bench) -> None:
    bench.state.unlink()
    machine = bench.restore()
    try:
        with pytest.raises(SnapshotCorrupt, match=r"state is damaged .*PUT /snapshot/load: .*No such file.*/state"):
            await machine.running()
        assert machine.last_words().startswith(str(bench.state))
        await asyncio.wait_for(machine.wait(), 10)
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(machine.fn, 1), 10) == b""
        with pytest.raises(SnapshotFailed, match="PATCH /vm was not answered"):
            await machine.snapshot(bench.state)
    finally:
        await machine.close()


async def test_a_drive_that_is_gone(bench: Bench) -> None:
    (bench.folder / "b").unlink()
    machine = bench.boot()
    try:
        with pytest.raises(SandboxFailed, match=r"PUT /drives/drive1: No such file"):
            await machine.running()
        assert os.WTERMSIG(await asyncio.wait_for(machine.wait(), 10)) == signal.SIGKILL
    finally:
        await machine.close()


async def test_a_snapshot_that_has_no_room(bench: Bench) -> None:
    machine = bench.boot()
    try:
        await machine.running()
        with pytest.raises(SnapshotFailed, match=r"could not be saved .*Create snapshot error: .*Not a directory"):
            await machine.snapshot(bench.state / "below a file")
    finally:
        await machine.close()


async def test_one_that_ends_at_once(bench: Bench) -> None:
    bench.use("echo no KVM; exit 1")
    machine = bench.boot()
    try:
        with pytest.raises(SandboxFailed, match=r"did not wake: .*no KVM"):
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
    assert find_firecracker(tmp_path, str(bench.binary)) == (bench.binary, "1.17.0", tmp_path)


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
    with pytest.raises(MicrovmUnavailable, match=f"{why}.*Debian has no package"):
        find_firecracker(tmp_path, str(bench.binary))


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(MicrovmUnavailable, match="there is no firecracker-of-nobody"):
        find_firecracker(tmp_path, "firecracker-of-nobody")


def test_it_connects_to_where_the_guest_listens() -> None:
    assert (FN_VSOCK_PORT, LOG_VSOCK_PORT) == (ports.FRAMES_VSOCK_PORT, ports.LOG_VSOCK_PORT)


def test_a_snapshot_is_bound_to_the_processor() -> None:
    assert len(host_cpu().split("-")) == 4
