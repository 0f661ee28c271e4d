"""Whether KVM can run our guest. The only proof is a boot of the guest's own kernel.

There are hosts whose /dev/kvm opens, tells the right version and runs test code, and on which no stock kernel gets to
its first line (nested virtualisation without the hardware's help). So a guest is booted once, by the monitor that is to
run it, and what came of it is kept in home/microvm/accel.json (Firecracker's: accel-firecracker.json): {"boot", "qemu"
or "firecracker", "kernel": what it holds for, "name", "why"}.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import SystemFault
from rewarm.guest import GuestFiles
from rewarm.vmm.handed import Handed
from rewarm.vmm.qemu import KVM_DEVICE, Qemu, probe_command
from rewarm.vmm.spawn import spawn
from rewarm.vmm.tsc import host_tsc_khz
from rewarm.vmm.user import take_uid

_KVM_GET_API_VERSION = 0xAE00
_API_VERSION = 12  # the only one there has been since Linux 2.6.22
PROBE_WAIT_S = 3.0
_READ_BYTES = 1 << 16
_STARTS_USERSPACE = b"Run /init as init process"  # the kernel has come up


class Accel(NamedTuple):
    """What runs a guest's instructions. Only "kvm" is a boundary against a guest that means harm."""

    name: str  # "kvm" | "tcg"
    why: str


def verdict(home_dir: Path, guest: GuestFiles, qemu: Qemu) -> Accel:
    """QEMU's. Blocks: at most for 3.5 s, and that only once after a boot of this machine, for each QEMU and kernel."""
    found = proven(
        home_dir / "microvm" / "accel.json", {"qemu": qemu.version_text, "kernel": guest.sha256["kernel"]},
        lambda: why_no_boot(qemu, guest.kernel, guest.initrd, "kvm", PROBE_WAIT_S),
    )  # fmt: skip
    if found.name == "tcg":
        host_tsc_khz()  # which a boot will ask for, on the event loop
    return found


def proven(note: Path, holds_for: dict[str, str], attempt: Callable[[], str | None]) -> Accel:
    """Named "kvm" if a guest boots with it: `attempt` does that, or says why not, unless the file `note` tells."""
    why_not = obstacle()
    if why_not is not None:
        return Accel("tcg", why_not)
    holds_for = {"boot": _boot_id(), **holds_for}
    return _remembered(note, holds_for) or _probed(note, holds_for, attempt())


def obstacle() -> str | None:
    """Why KVM need not even be tried; None if it may work."""
    if platform.machine() != "x86_64":
        return f"the guest is for x86-64 and this machine is {platform.machine()}"
    try:
        device = os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"there is no {KVM_DEVICE}: this machine, or the one that it runs in, does not offer virtualisation"
    except PermissionError:
        return f"this user may not open {KVM_DEVICE}; become a member of the group kvm"
    except OSError as error:
        return f"{KVM_DEVICE} does not open: {error.strerror}"
    try:
        version = fcntl.ioctl(device, _KVM_GET_API_VERSION)
    except OSError as error:
        return f"{KVM_DEVICE} does not answer: {error.strerror}"
    finally:
        os.close(device)
    return None if version == _API_VERSION else f"{KVM_DEVICE} has version {version}, not {_API_VERSION}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"


def _remembered(path: Path, holds_for: dict[str, str]) -> Accel | None:
    try:
        told = json.loads(path.read_bytes())
        if {name: told[name] for name in holds_for} == holds_for and told["name"] in ("kvm", "tcg"):
            return Accel(told["name"], str(told["why"]))
    except (OSError, ValueError, LookupError, TypeError):
        pass  # it is only a note to ourselves
    return None


def _probed(path: Path, holds_for: dict[str, str], fault: str | None) -> Accel:
    modules = " ".join(sorted(module.name for module in Path("/sys/module").glob("kvm_*")))
    found = Accel("tcg", f"{KVM_DEVICE} is there ({modules}), but {fault}") if fault else Accel("kvm", "a guest booted")
    with contextlib.suppress(OSError):  # then it is found out again next time
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_name(f"accel-{os.getpid()}.json.new")
        new.write_text(json.dumps({**holds_for, **found._asdict()}))
        new.replace(path)
    return found


def why_no_boot(qemu: Qemu, kernel: Path, initrd: Path, accel: str, wait_s: float) -> str | None:
    """As `watched`, of a guest in QEMU. Raises SystemFault."""
    uid = take_uid()
    try:
        with Handed(uid) as handed:
            files = handed.file(kernel), handed.file(initrd)
            words = probe_command(qemu, *files, accel, handed.kvm(accel))
            return watched(words, wait_s, handed.fds, uid)
    except OSError as error:
        raise SystemFault(f"no process for a micro-VM: {error}") from error


def watched(words: Sequence[str], wait_s: float, pass_fds: Sequence[int] = (), uid: int | None = None) -> str | None:
    """Start a monitor whose guest boots, until that starts its first program, then kill it. None, or what is wrong.

    Blocks up to `wait_s`. Raises OSError if there can be no process.
    """
    console, far_end = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            pid = spawn(words, {}, pass_fds, far_end, uid=uid)
        finally:
            os.close(far_end)
        try:
            return _watch(console, time.monotonic() + wait_s, wait_s)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        os.close(console)


def _watch(console: int, deadline_s: float, wait_s: float) -> str | None:
    said = b""
    while select.select([console], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        chunk = os.read(console, _READ_BYTES)
        said += chunk
        if _STARTS_USERSPACE in said:
            return None
        if not chunk:
            words = said.decode("utf-8", "replace").strip().splitlines()
            return f"a guest ended at once: {words[-1].strip() if words else 'nothing was said'}"
    return f"a guest did not boot within {wait_s:g} s"
