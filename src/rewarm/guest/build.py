"""Makes a guest of Debian's packages, and finds one that was made.

The same packages give the same guest, byte for byte, and so the same id; which ones they were is in its guest.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.errors import MicrovmUnavailable
from rewarm.guest import debian
from rewarm.guest.bytecode import compile_tree
from rewarm.guest.images import as_drive, make_image
from rewarm.guest.initrd import make_initrd
from rewarm.guest.workshop import Workshop
from rewarm.kernel import SINGLE_THREADED_ENV
from rewarm.store.disk import disk_errors

Progress = Callable[[str, int, int], None]

_FORMAT = 1  # of guest.json and of the guest: counts what changes it while its packages stay
_KERNEL = "linux-image-cloud-amd64"
_BUSYBOX = "busybox-static"
#: Depended on by what a guest has, and of no use in it: what installs, documents or configures, and NIS, for which
#: half of Kerberos would come along.
_WITHOUT = re.compile(r"debconf.*|dpkg|install-info|readline-common|gcc-\d+-base|libnsl2|libtirpc.*|media-types")
#: Of the root file system, what no function reads.
_DROP = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/info", "usr/share/bug",
    "usr/share/gcc", "usr/share/gdb", "usr/share/pixmaps", "usr/share/applications", "usr/share/binfmts",
    "usr/share/python3", "usr/share/menu", "usr/share/perl5", "var", "etc/init.d", "etc/default",
    "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/x86_64-linux-gnu/perl5",
)  # fmt: skip
_FOLDERS = ("dev", "proc", "sys", "tmp", "packages", "fn", "root", "sbin", "bin")
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
# PID 1. Not the worker itself: the kernel spares PID 1 the signals by which a process ends.
_GUEST = """\
#!/bin/busybox sh
# Starts the worker. When that ends, however, so does the machine, and the last line of its console says how.
set -e
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t tmpfs -o mode=1777,size=50% tmp /tmp
$b mount -t ext4 -o ro,noatime /dev/vdb /packages
$b ifconfig lo 127.0.0.1
packages=$($b sed -n 's/.*rewarm\\.packages=\\([^ ]*\\).*/\\1/p' /proc/cmdline | $b tr , ' ')
cd /tmp
set +e
{environment} /usr/bin/python{python} -P -B -m rewarm.worker.guest $packages
status=$?
$b grep -q '^oom_kill [1-9]' /proc/vmstat && status="$status, out of memory"
echo "rewarm: the worker ended: $status" > /dev/console
$b reboot -f
"""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8",
    "PYTHONPATH": "/packages", "PYTHONNOUSERSITE": "1", **SINGLE_THREADED_ENV,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """A built guest: `home/microvm/guest-<guest_id>/`."""

    folder: Path
    kernel: Path  # a bzImage
    initrd: Path
    rootfs: Path  # sparse, DRIVE_BYTES
    guest_id: str
    python: str  # "3.11"
    kernel_version: str  # "6.1.0-56-cloud-amd64"
    sha256: dict[str, str]  # of "kernel", "initrd" and "rootfs", the last without the hole behind its data


def find_guest(home_dir: Path) -> GuestFiles:
    """The guest that was built last. Raises MicrovmUnavailable if there is none."""
    link = home_dir / "microvm" / "guest"
    try:
        folder = Path(os.path.realpath(link, strict=True))
        facts = json.loads((folder / "guest.json").read_bytes())
        if facts["format"] != _FORMAT:
            raise MicrovmUnavailable("the guest was built by another version of rewarm; run: rewarm microvm build")
        guest = _guest(folder, facts)
        whole = all(path.is_file() for path in (guest.kernel, guest.initrd, guest.rootfs))
    except FileNotFoundError as error:
        raise MicrovmUnavailable("no guest was built; run: rewarm microvm build") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MicrovmUnavailable(f"the guest is damaged ({error}); run: rewarm microvm build") from error
    if not whole:
        raise MicrovmUnavailable("the guest is damaged, a file is missing; run: rewarm microvm build")
    return guest


def _guest(folder: Path, facts: dict[str, Any]) -> GuestFiles:
    return GuestFiles(
        folder, folder / "kernel", folder / "initrd", folder / "rootfs.img", str(facts["guest_id"]),
        str(facts["python"]), str(facts["kernel_version"]), {str(k): str(v) for k, v in facts["sha256"].items()},
    )  # fmt: skip


def build_guest(home_dir: Path, progress: Progress) -> GuestFiles:
    """Make a guest of the packages that apt offers now, and of the same Python as this one: what `find_guest` finds.

    `progress(step, done, total)` is told of each step, of downloads in bytes. Raises MicrovmUnavailable where that
    cannot be (no apt or its lists, no tool, another machine), SystemFault if the disk or a tool fails.
    """
    debian.check_machine()
    workshop = Workshop(home_dir)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with workshop.staging() as scratch:
        progress("choosing packages", 0, 1)
        apt = debian.Apt(scratch)
        kernel_deb, busybox_deb, system = _choose(apt, python)
        debs = [kernel_deb, busybox_deb, *system]
        cache_dir = workshop.folder / "cache"
        files = apt.fetch(debs, cache_dir, lambda done, of: progress("downloading", done, of))
        unpacked = {}
        for number, (deb, file) in enumerate(zip(debs, files, strict=True)):
            progress("unpacking", number, len(debs))
            unpacked[deb.name] = scratch / ("rootfs" if deb in system else deb.name)
            debian.unpack(file, unpacked[deb.name])
        progress("making the root file system", 0, 1)
        made = scratch / "guest"
        made.mkdir()
        kernel_version = _make_kernel(unpacked, made)
        _make_rootfs(scratch / "rootfs", _busybox(unpacked), python)
        make_image(scratch / "rootfs", made / "rootfs.img", "rewarm-root")
        facts = _describe(made, python, kernel_version, debs)
        as_drive(made / "rootfs.img")
        folder = workshop.place(made, f"guest-{facts['guest_id']}")
        _point_to(folder, scratch)
        progress("making the root file system", 1, 1)
    return find_guest(home_dir)


def _choose(apt: debian.Apt, python: str) -> tuple[debian.Deb, debian.Deb, list[debian.Deb]]:
    """The kernel, busybox, and what the root file system is made of."""
    newest = apt.one(_KERNEL)
    kernel = next((name for names in newest.depends for name in names if name.startswith("linux-image-")), _KERNEL)
    minimal = f"python{python}-minimal"
    if minimal not in apt.show([minimal, _BUSYBOX]):
        apt.one(_BUSYBOX)  # raises if apt knows nothing at all
        raise MicrovmUnavailable(
            f"this Debian has no Python {python}, on which rewarm runs here; run rewarm on Debian's own Python"
        )
    names = (minimal, f"libpython{python}-stdlib", "libstdc++6", "libgomp1")
    system = apt.closure(names, lambda name: _WITHOUT.fullmatch(name) is not None)
    return apt.one(kernel), apt.one(_BUSYBOX), system


def _busybox(unpacked: dict[str, Path]) -> Path:
    """It lies in /bin or, from Debian 13 on, in /usr/bin."""
    return next(path for path in unpacked[_BUSYBOX].rglob("busybox") if path.parent.name == "bin" and path.is_file())


def _make_kernel(unpacked: dict[str, Path], made: Path) -> str:
    """Kernel and initrd; → the version of the kernel."""
    tree = next(tree for name, tree in unpacked.items() if name.startswith("linux-image-"))
    image = next(tree.glob("boot/vmlinuz-*"))
    shutil.copyfile(image, made / "kernel")
    (made / "initrd").write_bytes(make_initrd(_busybox(unpacked), tree))
    return image.name.removeprefix("vmlinuz-")


def _make_rootfs(tree: Path, busybox: Path, python: str) -> None:
    """From unpacked packages to what a guest mounts as its root."""
    for name in _DROP:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name in _FOLDERS:
        (tree / name).mkdir(exist_ok=True)
    (tree / "etc").mkdir(exist_ok=True)
    for name, text in _TEXTS.items():
        (tree / name).write_text(text, encoding="ascii")
    shutil.copyfile(busybox, tree / "bin/busybox")
    (tree / "bin/busybox").chmod(0o755)
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "usr/bin/python3").symlink_to(f"python{python}")
    environment = " ".join(f"{name}={value}" for name, value in _ENVIRONMENT.items())
    (tree / "sbin/guest").write_text(_GUEST.format(environment=environment, python=python), encoding="ascii")
    (tree / "sbin/guest").chmod(0o755)
    compile_tree(tree / f"usr/lib/python{python}", f"/usr/lib/python{python}")


def _describe(made: Path, python: str, kernel_version: str, debs: Collection[debian.Deb]) -> dict[str, Any]:
    """Writes guest.json and returns what is in it."""
    sha256 = {}
    for name, path in (("kernel", "kernel"), ("initrd", "initrd"), ("rootfs", "rootfs.img")):
        with (made / path).open("rb") as file:
            sha256[name] = hashlib.file_digest(file, "sha256").hexdigest()
    identity = hashlib.sha256(json.dumps([_FORMAT, sha256], sort_keys=True).encode()).hexdigest()
    facts = {
        "format": _FORMAT, "guest_id": identity[:32], "python": python, "kernel_version": kernel_version,
        "sha256": sha256,
        "packages": [{"name": d.name, "version": d.version, "sha256": d.sha256} for d in debs],
    }  # fmt: skip
    (made / "guest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="ascii")
    return facts


def _point_to(folder: Path, scratch: Path) -> None:
    """From here on this is the guest. Raises SystemFault."""
    with disk_errors("keep the guest", folder):
        (scratch / "link").symlink_to(folder.name)
        (scratch / "link").replace(folder.parent / "guest")
