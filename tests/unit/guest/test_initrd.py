"""The archive that a kernel unpacks before anything else."""

from __future__ import annotations

import lzma
import stat
from pathlib import Path

import pytest

from rewarm.errors import MicrovmUnavailable
from rewarm.guest.initrd import Entry, cpio, make_initrd


def read_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Name → mode, bytes; checks every field that has one right value."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, mtime, size, *devices, name_len, check = fields
        assert (uid, gid, mtime, check, *devices) == (0,) * 8
        name = data[at + 110 : at + 110 + name_len]
        assert name.endswith(b"\0")
        at += -(-(110 + name_len) // 4) * 4
        if name == b"TRAILER!!!\0":
            assert at == len(data)
            return found
        found[name[:-1].decode()] = (mode, data[at : at + size])
        at += -(-size // 4) * 4


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5])
def test_entries_are_padded_to_four(size: int) -> None:
    for name in ("a", "ab", "abc", "abcd"):
        entry = Entry(name, stat.S_IFREG | 0o644, b"x" * size)
        assert read_cpio(cpio([entry, entry._replace(name="last")])) == {
            name: (entry.mode, entry.data), "last": (entry.mode, entry.data)
        }  # fmt: skip


def kernel(folder: Path, modules: dict[str, bytes], built_in: str = "") -> Path:
    root = folder / "lib/modules/6.1"
    root.mkdir(parents=True)
    (root / "modules.builtin").write_text(built_in)
    for name, data in modules.items():
        (root / name).write_bytes(data)
    return folder


def test_modules_come_after_those_they_depend_on(tmp_path: Path) -> None:
    tree = kernel(
        tmp_path,
        {
            "virtio.ko": b"V\0depends=virtio-ring\0",
            "virtio-ring.ko": b"R\0depends=\0",
            "virtio_mmio.ko.xz": lzma.compress(b"M\0depends=virtio,virtio_ring\0"),
            "virtio_blk.ko": b"B\0depends=virtio\0",
            "virtio_console.ko": b"C no dependency is told",
            "vmw_vsock_virtio_transport.ko": b"T\0depends=vmw_vsock_virtio_transport_common,vsock\0",
            "vmw_vsock_virtio_transport_common.ko": b"U\0depends=vsock\0",
            "vsock.ko": b"S\0depends=\0",
            "unrelated.ko": b"\0depends=\0",
        },
        "kernel/fs/ext4/ext4.ko\n",
    )
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"the shell")
    found = read_cpio(make_initrd(busybox, tree))
    order = "virtio_ring virtio virtio_mmio virtio_blk virtio_console vsock vmw_vsock_virtio_transport_common"
    assert f"for module in {order} vmw_vsock_virtio_transport;" in found["init"][1].decode()
    assert found["modules/virtio_mmio.ko"][1] == b"M\0depends=virtio,virtio_ring\0"
    assert "modules/unrelated.ko" not in found
    assert "modules/ext4.ko" not in found
    assert found["bin/busybox"] == (stat.S_IFREG | 0o755, b"the shell")
    assert stat.S_ISDIR(found["dev"][0])


def test_a_kernel_without_a_module(tmp_path: Path) -> None:
    tree = kernel(tmp_path, {"virtio_mmio.ko": b"\0depends=virtio\0"})
    (tmp_path / "busybox").write_bytes(b"")
    with pytest.raises(MicrovmUnavailable, match="no module virtio;"):
        make_initrd(tmp_path / "busybox", tree)
