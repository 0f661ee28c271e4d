from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarm.errors import MicrovmUnavailable
from rewarm.vmm.qemu import Ends, Hardware, Qemu, command, find_qemu, kernel_words, probe_command


def fake(folder: Path, script: str) -> str:
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


QEMU = Qemu(Path("/q"), (10, 0, 2))
HW = Hardware(
    Path("/k"), Path("/i"), (Path("/a"), Path("/b,c")), 256 << 20, "tcg", QEMU.path, packages=("numpy", "PIL"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("told", "version", "package"),
    [
        ("QEMU emulator version 8.2.0 (Debian 1:8.2.0+ds-2)", (8, 2, 0), "Debian 1:8.2.0+ds-2"),
        ("version 11.1", (11, 1, 0), ""),
    ],
)
def test_one_that_is_new_enough(tmp_path: Path, told: str, version: tuple[int, int, int], package: str) -> None:
    path = fake(tmp_path, f"echo '{told}'")
    found = find_qemu(path)
    assert found == Qemu(Path(path), version, package)
    assert found.version_text == ".".join(map(str, version))
    assert found.build_text == (f"{found.version_text} ({package})" if package else found.version_text)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo QEMU emulator version 7.2.22", "is QEMU 7.2.22, and 8.2 is needed"),
        ("echo version 8.1.9", "is QEMU 8.1.9, and 8.2 is needed"),
        ("echo hello", "does not tell its version"),
        ("printf '\\377'", "does not tell its version"),
        ("exit 3", "does not start"),
        ("kill -9 $$", "does not start"),
    ],
)
def test_one_that_will_not_do(tmp_path: Path, script: str, why: str) -> None:
    with pytest.raises(MicrovmUnavailable, match=f"{why}.* make system-deps"):
        find_qemu(fake(tmp_path, script))


def test_none_at_all() -> None:
    with pytest.raises(MicrovmUnavailable, match="there is no qemu-of-nobody; install it with: make system-deps"):
        find_qemu("qemu-of-nobody")


def test_boot_and_restore_differ_in_memory_alone() -> None:
    ends = Ends(5, 6, 7)
    boot = command(HW, ends, Path("/m,m"), incoming=False, shared=True)
    restore = command(HW, ends, Path("/m,m"), incoming=True, shared=False)
    assert restore[-2:] == ["-incoming", "defer"]
    assert len(boot) == len(restore) - 2
    (at,) = (i for i, (one, other) in enumerate(zip(boot, restore, strict=False)) if one != other)
    backend = {"qom-type": "memory-backend-file", "id": "ram", "size": 256 << 20, "mem-path": "/m,m"}
    assert json.loads(boot[at]) == backend | {"share": True}
    assert json.loads(restore[at]) == backend | {"share": False, "readonly": True, "rom": "off"}
    shared = command(HW, ends, Path("/m,m"), incoming=True, shared=True)
    assert json.loads(shared[at]) == json.loads(boot[at])


def test_kvm_s_device_can_be_handed_over() -> None:
    words = command(HW, Ends(5, 6, 7), Path("/m"), incoming=False, shared=True)
    assert words[words.index("-accel") + 1] == "tcg"
    handed = probe_command(QEMU, HW.kernel, HW.initrd, "kvm", 8)
    assert handed[handed.index("-add-fd") + 1] == "fd=8,set=1"
    assert handed[handed.index("-accel") + 1] == "kvm,device=/dev/fdset/1"


def test_drives_are_read_only_and_in_order() -> None:
    words = command(HW, Ends(5, 6, 7), Path("/m"), incoming=False, shared=True)
    nodes = [json.loads(words[i + 1]) for i, word in enumerate(words) if word == "-blockdev"]
    assert [node["file"]["filename"] for node in nodes] == ["/a", "/b,c"]
    assert all(node["read-only"] for node in nodes)
    devices = [words[i + 1] for i, word in enumerate(words) if word == "-device"]
    assert devices[:2] == ["virtio-blk-device,drive=drive0", "virtio-blk-device,drive=drive1"]


def test_it_is_confined() -> None:
    for words in (
        command(HW, Ends(5, 6, 7), Path("/m"), incoming=False, shared=True),
        probe_command(QEMU, HW.kernel, HW.initrd, "kvm"),
    ):
        filters = words[words.index("-sandbox") + 1].split(",")
        assert {"on", "spawn=deny", "elevateprivileges=deny"} <= set(filters)
        assert not any("net" in word for word in words)
        assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)


def test_what_the_kernel_is_told() -> None:
    assert " rewarm.packages=numpy,PIL" in kernel_words("tcg", ("numpy", "PIL"))
    assert "rewarm.packages" not in kernel_words("tcg")
    assert "init_on_free=1" in kernel_words("kvm").split()
    assert "tsc" not in kernel_words("kvm")
