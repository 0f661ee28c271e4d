"""Which QEMU is here, and the command line of one micro-VM.

A snapshot can only be restored into the same machine, so boot and restore share every word but those about memory.
Options that carry a path are JSON: QEMU's own syntax would cut it at a comma.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import MicrovmUnavailable
from rewarm.vmm.monitor import ask_version
from rewarm.vmm.tsc import host_tsc_khz

#: Names of the guest's two virtio-serial ports (/sys/class/virtio-ports/*/name): frames, and what code writes.
FN_PORT, LOG_PORT = "rewarm.fn", "rewarm.log"
#: No AVX: QEMU's emulation of it is not right everywhere, and a snapshot should not depend on the host's CPU.
#: ARAT: its timer goes on while it waits. Linux does not stop the tick of an idle guest otherwise, 250 times a second.
CPU = "Nehalem-v1,arat=on"
KVM_DEVICE = "/dev/kvm"

_BINARY = "qemu-system-x86_64"
_VERSION_MIN = (8, 2)  # the first with a `file:` migration that `-sandbox` allows
_VERSION = re.compile(r"version (\d+)\.(\d+)(?:\.(\d+))?[^\s(]*(?: \(([^)\n]*)\))?")
_INSTALL = "install it with: make system-deps"
#: What boots to see whether it does, and tells of its way on the console.
PROBE_MEMORY_BYTES, PROBE_WORDS = 256 << 20, "earlyprintk=ttyS0 ignore_loglevel"
# init_on_free: pages that the guest has freed are zero, so the snapshot has holes there (FaaSnap's sanitising).
# The second line: what a guest has no use for, and would do at every wake and every few seconds after it.
_KERNEL_WORDS = (
    "console=ttyS0 quiet reboot=t panic=-1 cryptomgr.notests init_on_alloc=0 init_on_free=1 "
    "psi=0 cgroup_disable=memory lsm= sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=3600"
)
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Qemu(NamedTuple):
    """A QEMU that is new enough."""

    path: Path
    version: tuple[int, int, int]
    package: str = ""  # which build of it, as its distribution calls it

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def build_text(self) -> str:
        """Two builds of one version need not read each other's snapshots."""
        return f"{self.version_text} ({self.package})" if self.package else self.version_text


def find_qemu(binary: str = _BINARY) -> Qemu:
    """The QEMU of this machine. Blocks for some 20 ms. Raises MicrovmUnavailable: none, too old, broken."""
    path, match = ask_version(binary, _VERSION, _INSTALL)
    qemu = Qemu(path, (int(match[1]), int(match[2]), int(match[3] or 0)), match[4] or "")
    if qemu.version < _VERSION_MIN:
        oldest = ".".join(map(str, _VERSION_MIN))
        raise MicrovmUnavailable(f"{path} is QEMU {qemu.version_text}, and {oldest} is needed; {_INSTALL}")
    return qemu


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a micro-VM is made of. `drives` become /dev/vda, vdb, … of the guest, all read-only."""

    kernel: Path
    initrd: Path
    drives: tuple[Path, ...]
    memory_bytes: int
    accel: str  # "kvm" | "tcg"
    binary: Path  # of the monitor
    cpu: str = CPU
    packages: tuple[str, ...] = ()  # what the guest imports when it boots


class Ends(NamedTuple):
    """Descriptors that QEMU inherits, each one end of a connected socket pair."""

    fn: int
    log: int
    monitor: int


def cpu_text(accel: str) -> str:
    """The processor that a snapshot is bound to: a restored guest trusts the rate of its counter.

    In whole MHz, which two measurements agree on: they differ by less than 0.1 ‰.
    """
    khz = host_tsc_khz() if accel == "tcg" else None
    return f"{CPU},tsc={round(khz / 1000)}MHz" if khz else CPU


def kernel_words(accel: str, packages: tuple[str, ...] = ()) -> str:
    """The guest kernel's command line; the guest's first script reads the names of `packages` from it."""
    khz = host_tsc_khz() if accel == "tcg" else None  # KVM tells its guests by itself
    clock = f" no_timer_check tsc=reliable tsc_early_khz={khz}" if khz else ""
    # An emulated processor does not speculate, so what Linux does about that is of no use.
    guards = " mitigations=off" if accel == "tcg" else ""
    imports = f" rewarm.packages={','.join(packages)}" if packages else ""
    return _KERNEL_WORDS + clock + guards + imports


def command(
    hw: Hardware, ends: Ends, memory: Path, *, incoming: bool, shared: bool, kvm_fd: int | None = None
) -> list[str]:  # fmt: skip
    """The words that start QEMU; the guest's console goes to stdout.

    `incoming`: it waits to be told of a state to load. `shared`: `memory`, made (sparse) if need be, always holds what
    the guest holds; otherwise it is only read, and what the guest writes stays private. `kvm_fd`: KVM's device, which
    QEMU inherits because it may not open it.
    """
    backend: dict[str, object] = {
        "qom-type": "memory-backend-file", "id": "ram", "size": hw.memory_bytes, "mem-path": str(memory),
        "share": shared,
    }  # fmt: skip
    if not shared:
        backend |= {"readonly": True, "rom": "off"}
    words = [
        *_bare(hw.binary, hw.accel, hw.cpu, hw.memory_bytes, kvm_fd),
        "-object", json.dumps(backend), "-machine", "memory-backend=ram",
        "-kernel", str(hw.kernel), "-initrd", str(hw.initrd), "-append", kernel_words(hw.accel, hw.packages),
    ]  # fmt: skip
    for number, drive in enumerate(hw.drives):
        file = {"driver": "file", "filename": str(drive)}
        node = {"driver": "raw", "node-name": f"drive{number}", "read-only": True, "file": file}
        words += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-device,drive=drive{number}"]
    words += ["-device", "virtio-serial-device"]
    for chardev, fd, port in (("fn", ends.fn, FN_PORT), ("log", ends.log, LOG_PORT)):
        words += ["-chardev", f"socket,id={chardev},fd={fd}"]
        words += ["-device", f"virtserialport,chardev={chardev},name={port}"]
    words += ["-chardev", f"socket,id=monitor,fd={ends.monitor}", "-mon", "chardev=monitor,mode=control"]
    return [*words, "-incoming", "defer"] if incoming else words


def probe_command(qemu: Qemu, kernel: Path, initrd: Path, accel: str, kvm_fd: int | None = None) -> list[str]:
    """The words that boot a guest without drives and ports, which talks on stdout from its first line on."""
    return [
        *_bare(qemu.path, accel, CPU, PROBE_MEMORY_BYTES, kvm_fd), "-kernel", str(kernel), "-initrd", str(initrd),
        "-append", f"{kernel_words(accel)} {PROBE_WORDS}",
    ]  # fmt: skip


def _bare(binary: Path, accel: str, cpu: str, memory_bytes: int, kvm_fd: int | None) -> list[str]:
    """A machine with nothing in it but a console."""
    device = [] if kvm_fd is None else ["-add-fd", f"fd={kvm_fd},set=1"]
    accelerator = accel if kvm_fd is None else f"{accel},device=/dev/fdset/1"
    return [
        str(binary), *device, "-M", "microvm", "-accel", accelerator, "-cpu", cpu, "-smp", "1",
        "-m", f"{memory_bytes}B", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-sandbox", _SANDBOX, "-chardev", "file,id=console,path=/proc/self/fd/1", "-serial", "chardev:console",
    ]  # fmt: skip
