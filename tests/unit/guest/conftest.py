"""A Debian mirror in a folder: packages of a few bytes, and an apt that knows them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewarm.errors import MicrovmUnavailable
from rewarm.guest.workshop import find_tool

Debugfs = Callable[[Path, str], bytes]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

_APT_CACHE = """\
#!/bin/sh
# apt-cache -o … -o … -o … show --no-all-versions NAME...
shift 8
found=100
for name in "$@"; do if [ -f {folder}/$name.stanza ]; then cat {folder}/$name.stanza; echo; found=0; fi; done
exit $found
"""
_APT_GET = """\
#!/bin/sh
# apt-get -q download NAME=VERSION...
echo "apt-get $@" >> {log}
shift 2
for wanted in "$@"; do cp {folder}/"${{wanted%%=*}}"_*.deb . || exit 100; done
"""


@dataclass
class FakeApt:
    """`add` puts a package on the mirror; `downloads` are the names that were asked for."""

    folder: Path

    def add(self, name: str, depends: str = "", files: dict[str, bytes] | None = None) -> Path:
        version = "1:2.0-3"
        tree = self.folder / "trees" / name
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\n"
        control += (f"Depends: {depends}\n" if depends else "") + "Description: a test\n"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(control)
        (tree / "DEBIAN" / "postinst").write_text("#!/bin/sh\nexit 1\n")
        (tree / "DEBIAN" / "postinst").chmod(0o755)
        for path, data in (files or {}).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        deb = self.folder / f"{name}_{version.replace(':', '%3a')}_amd64.deb"
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, deb], check=True, capture_output=True)
        data = deb.read_bytes()
        stanza = f"{control}Size: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        (self.folder / f"{name}.stanza").write_text(stanza)
        return deb

    @property
    def downloads(self) -> list[str]:
        lines = (self.folder / "log").read_text().splitlines() if (self.folder / "log").exists() else []
        return [word.split("=")[0] for line in lines for word in line.split() if "=" in word]


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("there is no dpkg-deb: not a Debian")
    folder = tmp_path / "mirror"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("apt-cache", _APT_CACHE), ("apt-get", _APT_GET)):
        (folder / "bin" / name).write_text(text.format(log=folder / "log", folder=folder))
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return FakeApt(folder)


@pytest.fixture
def guest_debs(apt: FakeApt) -> FakeApt:
    """All that a guest is made of, in miniature."""
    modules = "lib/modules/6.1.0-1-cloud-amd64"
    apt.add("linux-image-cloud-amd64", "linux-image-6.1.0-1-cloud-amd64 (= 1:2.0-3)")
    apt.add(
        "linux-image-6.1.0-1-cloud-amd64",
        "kmod, initramfs-tools | linux-initramfs-tool",
        {
            "boot/vmlinuz-6.1.0-1-cloud-amd64": b"a kernel",
            f"{modules}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
            f"{modules}/kernel/virtio.ko": b"\0depends=\0 virtio",
            f"{modules}/kernel/virtio_mmio.ko": b"\0depends=virtio\0",
            f"{modules}/kernel/virtio_blk.ko": b"\0depends=virtio\0",
            f"{modules}/kernel/virtio_console.ko": b"\0depends=virtio\0",
            f"{modules}/kernel/vsock.ko": b"\0depends=\0",
            f"{modules}/kernel/vmw_vsock_virtio_transport.ko": b"\0depends=vsock,virtio\0",
        },
    )
    apt.add("busybox-static", files={"bin/busybox": b"a busybox"})
    apt.add("libc6", files={"lib/x86_64-linux-gnu/libc.so.6": b"libc", "usr/share/doc/libc6/copyright": b"long"})
    for name in ("libstdc++6", "libgomp1"):
        apt.add(name, "gcc-12-base (= 12), libc6 (>= 2)")
    apt.add(f"python{PYTHON}-minimal", "libc6 (>= 2.35)", {f"usr/bin/python{PYTHON}": b"an interpreter"})
    library = {f"usr/lib/python{PYTHON}/{name}.py": f"NAMES = {{'{name}', 'b', 'c'}}\n".encode() for name in "xyz"}
    apt.add(f"libpython{PYTHON}-stdlib", "media-types | mime-support, libc6", library)
    return apt


@pytest.fixture
def mke2fs() -> None:
    """Skips a test where there is none."""
    try:
        find_tool("mke2fs", "e2fsprogs")
    except MicrovmUnavailable:
        pytest.skip("there is no mke2fs")


@pytest.fixture
def debugfs(mke2fs: None) -> Debugfs:
    """What debugfs answers to a request about an image."""

    def ask(image: Path, request: str) -> bytes:
        words = [find_tool("debugfs", "e2fsprogs"), "-R", request, str(image)]
        return subprocess.run(words, check=True, capture_output=True).stdout

    return ask
