"""A guest for tests that need QEMU and no kernel: it writes the letters to its console, one after the other, for ever.

It keeps the letter in memory and where it is in its registers, so one that goes on after a snapshot shows that both
were kept. A bzImage (Linux, Documentation/x86/boot.rst) whose set-up code never leaves real mode; QEMU starts it at
0x1020:0.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rewarm.vmm.machine import Machine
from rewarm.vmm.qemu import Hardware, find_qemu

_SECTOR_BYTES = 512
_CODE_AT, _LETTER_AT = 0x80, 0xF0  # in the second sector
_CODE = bytes.fromhex(
    "ba f803"  #      mov dx, 0x3f8         the serial port
    "2e a0 f000"  #   mov al, [cs:0xf0]     next:
    "ee"  #           out dx, al
    "fe c0"  #        inc al
    "3c 5b"  #        cmp al, 'Z' + 1
    "75 02"  #        jne keep
    "b0 41"  #        mov al, 'A'
    "2e a2 f000"  #   mov [cs:0xf0], al     keep:
    "be 0800"  #      mov si, 8
    "b9 ffff"  #      mov cx, 0xffff        pause:
    "e2 fe"  #        loop $
    "4e"  #           dec si
    "75 f8"  #        jnz pause
    "eb e2"  #        jmp next
)
_WAIT_S = 20.0


class Letters:
    """The machine that writes letters, and what it wrote."""

    def __init__(self, folder: Path) -> None:
        image = bytearray(3 * _SECTOR_BYTES)
        image[0x1F1] = 1  # sectors of set-up code after the first
        image[0x1FE:0x200] = b"\x55\xaa"
        image[0x200:0x202] = bytes((0xEB, _CODE_AT - 2))  # jmp
        image[0x202:0x206] = b"HdrS"
        image[0x206:0x208] = b"\x02\x02"  # version of the protocol
        image[0x211] = 1  # the rest is loaded high
        image[_SECTOR_BYTES + _CODE_AT : _SECTOR_BYTES + _CODE_AT + len(_CODE)] = _CODE
        image[_SECTOR_BYTES + _LETTER_AT] = ord("A")
        drive = folder / "drive, with a comma"
        for name, data in (("kernel", image), ("initrd", bytes(_SECTOR_BYTES)), (drive.name, bytes(_SECTOR_BYTES))):
            (folder / name).write_bytes(data)
        self.folder = folder
        self.memory, self.state = folder / "memory", folder / "state"
        self.hw = Hardware(folder / "kernel", folder / "initrd", (drive,), 32 << 20, "tcg", find_qemu().path)

    def written(self, machine: Machine) -> str:
        return "".join(re.findall("[A-Z]", machine.console))

    async def wait_for(self, machine: Machine, count: int) -> str:
        """Until it has written `count` letters."""
        async with asyncio.timeout(_WAIT_S):
            while len(self.written(machine)) < count:
                assert machine.status is None, machine.console
                await asyncio.sleep(0.01)
        return self.written(machine)

    async def save(self) -> str:
        """Boot it and make a snapshot of it; the letter that comes next."""
        machine = Machine.boot(self.hw, self.memory)
        try:
            await self.wait_for(machine, 3)
            await machine.snapshot(self.state)
        finally:
            await machine.close()
        return self.after(self.written(machine)[-1])

    def after(self, letter: str) -> str:
        return "A" if letter == "Z" else chr(ord(letter) + 1)


@pytest.fixture
async def letters(tmp_path: Path) -> AsyncIterator[Letters]:
    """Its folder has nothing but its parts. Skips where there is no QEMU. No descriptor may be left in the end."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("there is no QEMU: make system-deps")
    before = len(os.listdir("/proc/self/fd"))
    yield Letters(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder where anybody may start programs: as root, a QEMU runs as somebody else."""
    with tempfile.TemporaryDirectory(prefix="rewarm-test-") as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)
