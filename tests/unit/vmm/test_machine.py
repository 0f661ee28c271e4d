"""Machines of real QEMU processes, whose guest is a few bytes of machine code (see conftest)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import SandboxFailed, SnapshotCorrupt, SnapshotFailed
from rewarm.vmm.machine import Machine
from rewarm.vmm.user import obstacle

Letters = Any  # the fixture's class: conftest cannot be imported


@dataclass
class Plan:
    """What a RestorePlan says, as far as a machine reads it."""

    memory: Path
    env: dict[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()


@contextlib.asynccontextmanager
async def restored(letters: Letters, copy: Path | None = None) -> AsyncIterator[Machine]:
    machine = Machine.restore(letters.hw, letters.state, Plan(letters.memory), copy)
    try:
        await machine.running()
        yield machine
    finally:
        await machine.close()


def fake_qemu(letters: Letters, folder: Path, script: str) -> None:
    """Let it run this instead."""
    for path in (letters.memory, letters.state):
        path.touch()
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    letters.hw = replace(letters.hw, binary=path)


def ends_soon(pid: int) -> bool:
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # whoever inherited it has not looked yet
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


# ---------------------------------------------------------------- what it is for


async def test_a_restored_guest_goes_on_where_it_was(letters: Letters) -> None:
    due = await letters.save()
    before = hashlib.sha256(letters.memory.read_bytes()).digest()
    letters.memory.chmod(0o444)
    for _ in range(3):
        async with restored(letters) as machine:
            written = await letters.wait_for(machine, 30)
        assert written[0] == due
        assert all(letters.after(one) == other for one, other in itertools.pairwise(written))
    assert hashlib.sha256(letters.memory.read_bytes()).digest() == before


async def test_clones_run_beside_each_other(letters: Letters) -> None:
    due = await letters.save()
    async with restored(letters) as one, restored(letters) as other:
        assert (await letters.wait_for(one, 3))[0] == (await letters.wait_for(other, 3))[0] == due


async def test_a_snapshot_of_a_copy(letters: Letters) -> None:
    await letters.save()
    copy, second = letters.folder / "copy", letters.folder / "second"
    copy.write_bytes(letters.memory.read_bytes())
    async with restored(letters, copy) as machine:
        await letters.wait_for(machine, 7)
        await machine.snapshot(second)
    due = letters.after(letters.written(machine)[-1])
    letters.memory, letters.state = copy, second
    async with restored(letters) as machine:
        assert (await letters.wait_for(machine, 3))[0] == due


async def test_a_saved_machine_has_ended(letters: Letters) -> None:
    machine = Machine.boot(letters.hw, letters.memory)
    ended: list[int] = []
    machine.when_ended(ended.append)
    try:
        await letters.wait_for(machine, 1)
        assert machine.status is None
        await machine.snapshot(letters.state)
        assert machine.status == 0
        assert await machine.wait() == 0
        machine.kill()  # harmless
        assert ended == [0]
    finally:
        await machine.close()
    await machine.close()  # harmless, too


async def test_its_ends_can_be_taken(letters: Letters) -> None:
    machine = Machine.boot(letters.hw, letters.memory)
    try:
        channel, log_fd = machine.detach()
    finally:
        await machine.close()
    try:
        assert channel.recv(1) == b""  # QEMU, at the other ends, is gone
        assert os.read(log_fd, 1) == b""
    finally:
        channel.close()
        os.close(log_fd)


# ---------------------------------------------------------------- what can go wrong


async def test_a_killed_machine(letters: Letters) -> None:
    machine = Machine.boot(letters.hw, letters.memory)
    try:
        os.kill(machine.pid, signal.SIGKILL)
        assert os.WTERMSIG(await machine.wait()) == signal.SIGKILL
        with pytest.raises(SnapshotFailed, match="could not be saved"):
            await machine.snapshot(letters.state)
        assert not letters.state.exists()
    finally:
        await machine.close()


async def test_only_one_whose_memory_is_kept_can_be_saved(letters: Letters) -> None:
    await letters.save()
    async with restored(letters) as machine:
        with pytest.raises(SnapshotFailed, match="its memory is not kept"):
            await machine.snapshot(letters.folder / "other")


async def test_killed_before_it_runs(letters: Letters) -> None:
    await letters.save()
    machine = Machine.restore(letters.hw, letters.state, Plan(letters.memory))
    try:
        os.kill(machine.pid, signal.SIGKILL)
        with pytest.raises(SandboxFailed, match="did not wake"):
            await machine.running()
    finally:
        await machine.close()


@pytest.mark.parametrize("lost", ["state", "memory"])
async def test_a_file_is_missing(letters: Letters, lost: str) -> None:
    await letters.save()
    (letters.folder / lost).unlink()
    with pytest.raises(SnapshotCorrupt, match=f"{lost} of a snapshot is missing"):
        async with restored(letters):
            pass
    assert not letters.memory.exists() or lost == "state"  # nor was an empty one made


@pytest.mark.parametrize("damage", ["empty", "half", "other", "flipped"])
async def test_a_damaged_state(letters: Letters, damage: str) -> None:
    await letters.save()
    whole = letters.state.read_bytes()
    flipped = bytearray(whole)
    flipped[5] ^= 0xFF  # of the version
    letters.state.write_bytes(
        {"empty": b"", "half": whole[: len(whole) // 2], "other": bytes(len(whole)), "flipped": flipped}[damage]
    )
    with pytest.raises(SnapshotCorrupt, match="state is damaged or of another machine: "):
        async with restored(letters):
            pass


async def test_a_state_of_another_machine(letters: Letters) -> None:
    await letters.save()
    letters.hw = replace(letters.hw, drives=())
    with pytest.raises(SnapshotCorrupt, match=r"of another machine: .*virtio-blk"):
        async with restored(letters):
            pass


async def test_a_drive_is_missing(letters: Letters) -> None:
    await letters.save()
    letters.hw.drives[0].unlink()
    with pytest.raises(SandboxFailed, match=r"no process for a micro-VM: .*No such file.*with a comma"):
        async with restored(letters):
            pass


@pytest.mark.parametrize(
    ("target", "why"), [("none/state", "No such file"), ("", "Is a directory"), ("/dev/full", "No space left")]
)
async def test_nowhere_to_save_it(letters: Letters, target: str, why: str) -> None:
    machine = Machine.boot(letters.hw, letters.memory)
    try:
        await letters.wait_for(machine, 1)
        with pytest.raises(SnapshotFailed, match=f"could not be saved in .*{target}: .*{why}"):
            await machine.snapshot(letters.folder / target)
    finally:
        await machine.close()


async def test_one_that_never_answers(letters: Letters, open_dir: Path) -> None:
    fake_qemu(letters, open_dir, "echo is it me; exec sleep 100")
    machine = Machine.boot(letters.hw, letters.memory)
    try:
        with pytest.raises(SandboxFailed, match=r"did not wake within 0.3 s: is it me"):
            await machine.running(0.3)
        with pytest.raises(SnapshotFailed, match=r"was not saved within 0.1 s: is it me"):
            await machine.snapshot(letters.state, 0.1)
    finally:
        await machine.close()
    assert machine.status is not None


async def test_one_that_ends_at_once(letters: Letters, open_dir: Path) -> None:
    fake_qemu(letters, open_dir, "echo 'qemu-system-x86_64: no, thanks' >&2; exit 1")
    with pytest.raises(SandboxFailed, match="did not wake: no, thanks"):
        async with restored(letters):
            pass


async def test_one_that_cannot_be_started(letters: Letters, open_dir: Path) -> None:
    machine = Machine.boot(replace(letters.hw, binary=open_dir / "none"), letters.memory)
    try:
        async with asyncio.timeout(10):
            assert os.waitstatus_to_exitcode(await machine.wait()) == 127
        assert "not found" in machine.last_words()
        assert machine.fn.recv(1) == b""
    finally:
        await machine.close()


# ---------------------------------------------------------------- how it is started


async def test_what_it_is_started_with(letters: Letters, open_dir: Path) -> None:
    fake_qemu(letters, open_dir, 'echo "$LD_PRELOAD|$SPACED|$REWARM_TEST_SECRET|$(readlink /proc/self/fd/$FD)"')
    read_end, write_end = os.pipe()
    os.environ["REWARM_TEST_SECRET"] = "kept from it"
    try:
        link = os.readlink(f"/proc/self/fd/{write_end}")
        env = {"LD_PRELOAD": "", "SPACED": "it's $HOME", "FD": str(write_end)}
        machine = Machine.restore(letters.hw, letters.state, Plan(letters.memory, env, (write_end,)))
        try:
            async with asyncio.timeout(10):
                await machine.wait()
            assert machine.console == f"|it's $HOME||{link}\n"
            assert os.getpgrp() != machine.pid
        finally:
            await machine.close()
    finally:
        del os.environ["REWARM_TEST_SECRET"]
        os.close(read_end)
        os.close(write_end)


async def test_it_has_a_process_group_of_its_own(letters: Letters) -> None:
    machine = Machine.boot(letters.hw, letters.memory)
    try:
        assert os.getpgid(machine.pid) == machine.pid
        assert os.getsid(machine.pid) == os.getsid(0)
    finally:
        await machine.close()


as_root = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@as_root
async def test_a_root_s_machines_run_as_users_of_their_own(letters: Letters) -> None:
    letters.folder.chmod(0o700)
    await letters.save()
    async with restored(letters) as one, restored(letters) as other:
        await letters.wait_for(one, 1)
        await letters.wait_for(other, 1)
        for machine in (one, other):
            told = facts(machine.pid)
            assert told["Uid"].split() == told["Gid"].split() == [str(machine.uid)] * 4
            assert told["Groups"].split() == []
            assert {told[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
            assert told["NoNewPrivs"] == "1"
            assert told["Seccomp"] == "2"
        assert len({0, one.uid, other.uid}) == 3


@as_root
async def test_what_it_may_not_read_is_told_by_its_name(letters: Letters) -> None:
    await letters.save()
    letters.hw.drives[0].chmod(0o600)
    with pytest.raises(SandboxFailed, match=r"did not wake: .*/drive, with a comma': Permission denied"):
        async with restored(letters):
            pass


@as_root
async def test_what_it_wrote_is_ours_again(letters: Letters) -> None:
    machine = Machine.boot(letters.hw, letters.memory)
    try:
        await letters.wait_for(machine, 1)
        assert letters.memory.stat().st_uid == machine.uid
        await machine.snapshot(letters.state)
    finally:
        await machine.close()
    for path in (letters.memory, letters.state):
        assert (path.stat().st_uid, path.stat().st_gid) == (0, os.getegid())


_SERVER = """\
import asyncio, pathlib, sys
from rewarm.vmm.machine import Machine
from rewarm.vmm.qemu import Hardware, find_qemu

async def serve(folder):
    hw = Hardware(folder / "kernel", folder / "initrd", (), 32 << 20, "tcg", find_qemu().path)
    machine = Machine.boot(hw, folder / "memory")
    while not machine.console:
        await asyncio.sleep(0.01)
    print(machine.pid, flush=True)
    await asyncio.sleep(100)

asyncio.run(serve(pathlib.Path(sys.argv[1])))
"""


def test_it_dies_with_the_server(letters: Letters) -> None:
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(letters.folder)], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert (facts(pid)["Uid"] == facts(os.getpid())["Uid"]) is (obstacle() is not None)
    finally:
        server.kill()
        server.communicate()
    assert ends_soon(pid)
