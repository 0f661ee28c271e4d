"""The real guest, whose packages are imported: booted once, saved, and restored again and again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rewarm.guest import blank_image, find_guest, packages_image
from rewarm.vmm.machine import Machine
from rewarm.vmm.qemu import Hardware, find_qemu
from rewarm.vmm.talk import Talk

_BOOT_WAIT_S = 240.0  # 20 s of a processor without KVM
_RESTORE_WAIT_S = 60.0
_RESTORES = 20


class Plan(NamedTuple):
    memory: Path
    env: dict[str, str]
    pass_fds: tuple[int, ...]


@pytest.mark.slow
async def test_it_wakes_every_time(microvm_dir: Path, tmp_path: Path) -> None:
    home = microvm_dir.parent
    guest = find_guest(home)
    drives = (guest.rootfs, packages_image(home, ("numpy",)), blank_image(home))
    hw = Hardware(guest.kernel, guest.initrd, drives, 256 << 20, "tcg", find_qemu(), packages=("numpy",))
    before = len(os.listdir("/proc/self/fd"))
    machine = Machine.boot(hw, tmp_path / "memory")
    try:
        with Talk(machine) as talk:
            async with asyncio.timeout(_BOOT_WAIT_S):
                await talk.hello()
            await machine.snapshot(tmp_path / "state")
    finally:
        await machine.close()
    plan: Any = Plan(tmp_path / "memory", {}, ())
    for number in range(_RESTORES):
        machine = Machine.restore(hw, tmp_path / "state", plan)
        try:
            with Talk(machine) as talk:
                async with asyncio.timeout(_RESTORE_WAIT_S):
                    await talk.send_resume(f"clone-{number}")
                    await machine.running()
                    await talk.resumed()
        finally:
            await machine.close()
    assert len(os.listdir("/proc/self/fd")) == before
