from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import SystemFault
from rewarm.guest import GuestFiles
from rewarm.vmm.kvm import obstacle, verdict, why_no_boot
from rewarm.vmm.qemu import Qemu, find_qemu

needs_device = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def guest(folder: Path) -> GuestFiles:
    for name in ("kernel", "initrd"):
        (folder / name).touch()
    sha256 = {"kernel": "of this kernel", "initrd": "i", "rootfs": "r"}
    return GuestFiles(folder, folder / "kernel", folder / "initrd", folder / "rootfs", "id", "3.11", "6.1", sha256)


def fake_qemu(folder: Path, script: str) -> Qemu:
    """It leaves a file each time it is started."""
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n: >{folder}/start-$$\n{script}\n")
    path.chmod(0o755)
    return Qemu(path, (10, 0, 2))


def starts(folder: Path) -> int:
    return len(list(folder.glob("start-*")))


def children() -> set[str]:
    """Pids of this process's children, those among them that nobody has waited for."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@needs_device
@pytest.mark.parametrize(
    ("script", "name", "why"),
    [
        ("echo '[    0.5] Run /init as init process'; exec sleep 100", "kvm", "a guest booted"),
        ("echo error: failed to set MSR 0x48e; exit 134", "tcg", "failed to set MSR 0x48e"),
    ],
)
def test_a_verdict_is_remembered(tmp_path: Path, open_dir: Path, script: str, name: str, why: str) -> None:
    qemu = fake_qemu(open_dir, script)
    found = verdict(tmp_path, guest(tmp_path), qemu)
    assert found.name == name
    assert why in found.why
    assert verdict(tmp_path, guest(tmp_path), qemu) == found
    assert starts(open_dir) == 1
    assert [path.name for path in (tmp_path / "microvm").iterdir()] == ["accel.json"]


@needs_device
@pytest.mark.parametrize("change", [{"boot": "another"}, {"qemu": "9.0.0"}, {"kernel": "other"}, {"name": "magic"}])
def test_but_only_for_what_it_was_found_with(tmp_path: Path, open_dir: Path, change: dict[str, str]) -> None:
    qemu = fake_qemu(open_dir, "exit 1")
    verdict(tmp_path, guest(tmp_path), qemu)
    path = tmp_path / "microvm" / "accel.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    verdict(tmp_path, guest(tmp_path), qemu)
    assert starts(open_dir) == 2


@needs_device
@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"\xff", b'{"name": "kvm"}'])
def test_a_damaged_note_is_no_verdict(tmp_path: Path, open_dir: Path, note: bytes) -> None:
    (tmp_path / "microvm").mkdir()
    (tmp_path / "microvm" / "accel.json").write_bytes(note)
    assert verdict(tmp_path, guest(tmp_path), fake_qemu(open_dir, "exit 1")).name == "tcg"
    assert starts(open_dir) == 1


@needs_device
def test_it_can_do_without_a_note(tmp_path: Path, open_dir: Path) -> None:
    (tmp_path / "microvm").write_text("in the way")
    assert verdict(tmp_path, guest(tmp_path), fake_qemu(open_dir, "exit 1")).name == "tcg"


def test_a_guest_that_starts_nothing_is_ended(letters: Any) -> None:
    before = children()
    why = why_no_boot(find_qemu(), letters.hw.kernel, letters.hw.initrd, "tcg", 0.5)
    assert why == "a guest did not boot within 0.5 s"
    assert children() <= before


def test_a_guest_that_cannot_start(letters: Any) -> None:
    letters.hw.kernel.write_bytes(b"")
    why = why_no_boot(find_qemu(), letters.hw.kernel, letters.hw.initrd, "tcg", 10)
    assert why is not None
    assert why.startswith("a guest ended at once: ")


def test_a_guest_that_is_gone(letters: Any) -> None:
    letters.hw.kernel.unlink()
    with pytest.raises(SystemFault, match=r"no process for a micro-VM: .*No such file"):
        why_no_boot(find_qemu(), letters.hw.kernel, letters.hw.initrd, "tcg", 10)
