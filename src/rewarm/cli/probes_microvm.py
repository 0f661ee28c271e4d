"""The facts that `rewarm doctor` tells about micro-VMs. As in `probes`: a Check each, and nothing is raised.

That something is missing is no fault of the machine: functions without `isolation="microvm"` need none of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rewarm.cli.probes import Check
from rewarm.errors import SystemFault
from rewarm.guest.build import GuestFiles, find_guest
from rewarm.snapshot.restore import Means, detect_means
from rewarm.vmm.firecracker import usable
from rewarm.vmm.kvm import verdict
from rewarm.vmm.qemu import Qemu, find_qemu
from rewarm.vmm.user import runs_as

_DEPS = "get it with: make system-deps"
#: Where mke2fs is, which an ordinary user's PATH may not say.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def all_checks(home: Path) -> list[Check]:
    """The first time after a boot of this machine, where a guest was built, each monitor tries KVM: up to 4 s."""
    qemu, qemu_check = _qemu()
    guest, guest_check = _guest(home)
    return [qemu_check, guest_check, _accelerator(home, guest, qemu), *_means(), _mke2fs(), _firecracker(home)]


def choose_driver(checks: Sequence[Check]) -> str:
    """What becomes of functions with isolation="microvm", unless REWARM_VMM of the server says otherwise."""
    if any(check.key == "microvm_firecracker" and check.ok for check in checks):
        return 'functions with isolation="microvm" run in Firecracker with kvm, which is experimental'
    for check in checks:
        if check.key in ("microvm_qemu", "microvm_guest", "microvm_accel") and check.ok is None:
            return f'functions with isolation="microvm" cannot run: {check.note}'
    accel = next(check.value for check in checks if check.key == "microvm_accel")
    boundary = "" if accel == "kvm" else ", which is functional but not an isolation boundary"
    return f'functions with isolation="microvm" run in QEMU with {accel}{boundary}'


def _qemu() -> tuple[Qemu | None, Check]:
    key, name = "microvm_qemu", "micro-VM: QEMU"
    try:
        qemu = find_qemu()
    except SystemFault as error:
        return None, Check(key, name, None, "none", error.message)
    return qemu, Check(key, name, True, qemu.version_text, f"{qemu.path}, {runs_as()}")


def _guest(home: Path) -> tuple[GuestFiles | None, Check]:
    key, name = "microvm_guest", "micro-VM: guest"
    try:
        guest = find_guest(home)
    except SystemFault as error:
        return None, Check(key, name, None, "none", error.message)
    note = f"Python {guest.python}, kernel {guest.kernel_version}; in {guest.folder}"
    return guest, Check(key, name, True, "built", note)


def _accelerator(home: Path, guest: GuestFiles | None, qemu: Qemu | None) -> Check:
    key, name = "microvm_accel", "micro-VM: accelerator"
    if guest is None or qemu is None:
        return Check(key, name, None, "not tried", "only a boot of the guest tells whether KVM works")
    try:
        found = verdict(home, guest, qemu)
    except (SystemFault, OSError) as error:
        return Check(key, name, None, "not tried", str(error))
    if found.name == "kvm":
        return Check(key, name, True, found.name, found.why)
    return Check(key, name, True, found.name, f"functional, not an isolation boundary; no KVM: {found.why}")


def _means() -> list[Check]:
    """The shim is built as a server does it, but in a folder that goes again."""
    try:
        with tempfile.TemporaryDirectory(prefix="rewarm-doctor-") as folder:
            means = detect_means(Path(folder))
    except OSError as error:
        means = Means(None, False, dict.fromkeys(("shim", "userfaultfd"), f"{error.strerror}: {error.filename}"))
    return [
        _mean(means, "shim", means.shim is not None, "restore policies layered and uffd, and recording; else prefetch"),
        _mean(means, "userfaultfd", means.userfaultfd, "restore policy uffd; else layered"),
    ]


def _mean(means: Means, name: str, there: bool, what: str) -> Check:
    note = what if there else f"{what}; {means.why.get(name, 'no reason given')}"
    return Check(f"microvm_{name}", f"micro-VM: {name}", True if there else None, "works" if there else "none", note)


def _mke2fs() -> Check:
    key, name, what = "microvm_mke2fs", "micro-VM: mke2fs", "makes the guest's drives"
    path = shutil.which("mke2fs", path=_PATH)
    if path is None:
        return Check(key, name, None, "none", f"{what}; package e2fsprogs, {_DEPS}")
    return Check(key, name, True, path, what)


def _firecracker(home: Path) -> Check:
    key, name = "microvm_firecracker", "micro-VM: Firecracker"
    try:
        found = usable(home)
    except SystemFault as error:
        return Check(key, name, None, "off", f"experimental; {error.message}")
    note = f"experimental; {found.path}, used unless REWARM_VMM=qemu, as the server's user without its jailer"
    return Check(key, name, True, found.version_text, note)
