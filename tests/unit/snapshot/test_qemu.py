"""The shim in the real VMM: a machine without a kernel, whose memory is asked for over its control channel."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from rewarm.snapshot.holes import punch_zero_pages
from rewarm.snapshot.loading import write_loading_set
from rewarm.snapshot.manifest import Platform, Snapshot, describe, write_manifest
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.record import touched_pages
from rewarm.snapshot.regions import PAGE_BYTES
from rewarm.snapshot.restore import Means, RestorePlan, plan

QEMU = shutil.which("qemu-system-x86_64")
MEMORY_BYTES = 64 << 20
WAIT_S = 30.0

pytestmark = pytest.mark.skipif(QEMU is None, reason="no QEMU; install qemu-system-x86 (make system-deps)")


@pytest.fixture
def snapshot(tmp_path: Path, platform: Platform) -> Snapshot:
    """Random pages here and there."""
    with (tmp_path / "memory").open("wb") as file:
        file.truncate(MEMORY_BYTES)
        for number in range(1000, MEMORY_BYTES // PAGE_BYTES - 1000, 97):
            file.seek(number * PAGE_BYTES)
            file.write(os.urandom(20 * PAGE_BYTES))
    (tmp_path / "state").write_bytes(b"no state")
    punch_zero_pages(tmp_path / "memory")
    fields = {name: getattr(platform, name) for name in Platform.__slots__} | {"memory_bytes": MEMORY_BYTES}
    manifest = describe(tmp_path, "user", "digest", Platform(**fields), {})
    touched = set(range(1000, 8000, 194))
    return write_manifest(tmp_path, manifest.with_loading(tmp_path, write_loading_set(tmp_path, touched, 4)))


@pytest.fixture
async def pager() -> AsyncIterator[PagerClient]:
    client = PagerClient(lambda: None)
    yield client
    await client.close()


@contextmanager
def machine(restore: RestorePlan) -> Iterator[tuple[subprocess.Popen[bytes], IO[Any]]]:
    """QEMU as the driver starts it, with its control channel."""
    assert QEMU is not None
    near, far = socket.socketpair()
    near.settimeout(WAIT_S)
    memory = f"memory-backend-file,id=ram,size=64M,mem-path={restore.memory},share=off,readonly=on,rom=off"
    command = [
        QEMU, "-M", "microvm,accel=tcg,memory-backend=ram", "-cpu", "Nehalem", "-m", "64M", "-nodefaults",
        "-no-user-config", "-nographic", "-S", "-object", memory, "-incoming", "defer",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-chardev", f"socket,id=q,fd={far.fileno()}", "-mon", "chardev=q,mode=control",
    ]  # fmt: skip
    restore.begin()
    with far:
        process = subprocess.Popen(
            command, env={**os.environ, **restore.env}, pass_fds=(*restore.pass_fds, far.fileno()),
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    restore.end()
    try:
        with near, near.makefile("rwb") as control:
            assert b"QMP" in control.readline()
            order(control, "qmp_capabilities")
            yield process, control
    finally:
        process.kill()
        process.communicate()


def order(control: IO[Any], command: str, **arguments: object) -> None:
    control.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    control.flush()
    while "return" not in (answer := json.loads(control.readline())):
        assert "error" not in answer, answer


def check(restore: RestorePlan, dump: Path) -> str:
    """Guest memory is what the snapshot has; returns what QEMU said."""
    with machine(restore) as (process, control):
        order(control, "pmemsave", val=0, size=MEMORY_BYTES, filename=str(dump))
        assert dump.read_bytes() == restore.memory.read_bytes()
        process.kill()
        assert process.stderr is not None
        said: bytes = process.stderr.read()
        return said.decode()


@pytest.mark.parametrize("policy", ["lazy", "prefetch", "lazy-4k", "layered", "uffd"])
async def test_the_guest_sees_every_page(
    snapshot: Snapshot, means: Means, pager: PagerClient, tmp_path: Path, policy: str
) -> None:
    restore = plan(snapshot, policy, means, pager)
    if restore.policy != policy:
        restore.end()
        pytest.skip(f"no means: {means.why}")
    assert "rewarm shim" not in await asyncio.to_thread(check, restore, tmp_path / "dump")


def test_what_the_guest_touched_is_recorded(
    snapshot: Snapshot, means: Means, shim: Path, tmp_path: Path, cold: Callable[[Snapshot], None]
) -> None:
    cold(snapshot)
    restore = plan(snapshot, "lazy-4k", means)
    with machine(restore) as (process, control):
        before = touched_pages(process.pid, restore.memory)
        order(control, "pmemsave", val=5000 * PAGE_BYTES, size=3 * PAGE_BYTES, filename=str(tmp_path / "dump"))
        assert touched_pages(process.pid, restore.memory) - before == {5000, 5001, 5002}
