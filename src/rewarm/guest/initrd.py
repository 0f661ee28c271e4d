"""The first file system of a guest: busybox, the modules that its drives and ports need, and a script.

A cpio archive in the format "newc", uncompressed, since a guest would have to unpack it at every boot. Each entry:

    "070701"  13 fields of 8 hex digits: ino mode uid gid nlink mtime size devmajor devminor rdevmajor rdevminor
              length-of-name check  |  name, 00, padded to 4  |  data, padded to 4

and one named TRAILER!!! ends it (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import MicrovmUnavailable

#: What a guest needs of its kernel, with whatever these depend on: for drives, and for ports of QEMU or Firecracker. A
#: kernel may have them built in.
_MODULES = ("virtio_mmio", "virtio_blk", "virtio_console", "vmw_vsock_virtio_transport", "ext4")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")

_INIT = """\
#!/bin/busybox sh
# Finds the root file system and goes there. If a step fails this ends, and the machine with it.
set -e
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module.ko; done
/bin/busybox mount -t ext4 -o ro,noatime /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/guest
"""


class Entry(NamedTuple):
    """One file or folder of an archive."""

    name: str
    mode: int
    data: bytes = b""


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive: everything belongs to root and has no time."""
    parts = []
    last = Entry("TRAILER!!!", 0)
    for number, entry in enumerate((*entries, last), 1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        parts += [head, bytes(-len(head) % 4), entry.data, bytes(-len(entry.data) % 4)]
    return b"".join(parts)


def make_initrd(busybox: Path, kernel_tree: Path) -> bytes:
    """Of a static busybox and the unpacked package of a kernel. Raises MicrovmUnavailable if a module is missing."""
    modules = _modules(kernel_tree)
    init = _INIT.format(modules=" ".join(modules))
    folders = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "dev", "modules", "root")]
    files = [
        Entry("init", stat.S_IFREG | 0o755, init.encode()),
        Entry("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        *(Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, data) for name, data in modules.items()),
    ]
    return cpio([*folders, *files])


def _modules(kernel_tree: Path) -> dict[str, bytes]:
    """Name → bytes, each after those that it depends on."""
    paths = {path.name.split(".")[0].replace("-", "_"): path for path in kernel_tree.rglob("*.ko*")}
    built_in = {
        line.rsplit("/", 1)[-1].split(".")[0].replace("-", "_")
        for listing in kernel_tree.rglob("modules.builtin")
        for line in listing.read_text("ascii").splitlines()
    }
    found: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in found or name in built_in:
            return
        if name not in paths:
            raise MicrovmUnavailable(f"this kernel has no module {name}; use the cloud kernel of Debian 12 or newer")
        data = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            data = lzma.decompress(data)
        depends = _DEPENDS.search(data)
        for other in depends[1].decode("ascii").split(",") if depends else []:
            if other:
                add(other.replace("-", "_"))
        found[name] = data

    for name in _MODULES:
        add(name)
    return found
