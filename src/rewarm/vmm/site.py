"""What micro-VMs are made of on this machine: a monitor, a guest, an accelerator, ways to restore. Looked for once.

Nobody above this knows whether it is QEMU or Firecracker.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import MicrovmUnavailable
from rewarm.guest.build import GuestFiles, find_guest
from rewarm.snapshot.manifest import Platform, Snapshot
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.restore import Means, RestorePlan, detect_means, firecracker_means
from rewarm.vmm.firecracker import Firecracker, FirecrackerMachine, host_cpu, usable
from rewarm.vmm.kvm import Accel, verdict
from rewarm.vmm.machine import Machine
from rewarm.vmm.monitor import Monitor
from rewarm.vmm.qemu import CPU, Hardware, Qemu, cpu_text, find_qemu

#: What a server can be told to use; "auto" is Firecracker if it can be used, else QEMU.
VMMS = ("auto", "qemu", "firecracker")


class Images(NamedTuple):
    """The drives of a guest beside its root, and its memory."""

    packages: Path
    function: Path  # blank for a Lang layer
    memory_bytes: int
    imports: tuple[str, ...] = ()  # what the guest imports when it boots: the key's packages


@dataclass(slots=True)
class Counts:
    """What has happened to machines since the server started."""

    boots: int = 0
    restores: int = 0
    retries: int = 0
    hung: int = 0  # killed because they did not come up in time
    published: int = 0
    lost: int = 0  # snapshots found damaged, or of another machine
    policies: Counter[str] = field(default_factory=Counter)  # restores by the policy that was used


@dataclass(slots=True)
class Site:
    """`pager` serves restores by userfaultfd; without one they fall back to another policy."""

    guest: GuestFiles
    vmm: Qemu | Firecracker
    accel: Accel
    means: Means
    policy: str = "auto"
    pager: PagerClient | None = None
    counts: Counts = field(default_factory=Counts)

    def boot(self, images: Images, memory: Path) -> Monitor:
        """Start a guest, which says HELLO on `fn` when it is up; once it is saved, `memory` is what it remembers.

        Returns at once. Raises SandboxFailed, with nothing left open, if no process can be had.
        """
        hw = self._hardware(images)
        if isinstance(self.vmm, Firecracker):
            return FirecrackerMachine.boot(hw, memory, self.vmm.run_dir)
        return Machine.boot(hw, memory)

    def restore(self, images: Images, snapshot: Snapshot, plan: RestorePlan, copy: Path | None = None) -> Monitor:
        """Start from a snapshot; `running` tells when it does. The caller begins and ends the plan.

        Without `copy` what the guest writes is lost with it; with it, a snapshot of it can be made in turn, with its
        memory there. Where `lives_in_file`, that has to be a copy of the snapshot's memory already. Returns at once.
        Raises SnapshotCorrupt if a file is missing, else SandboxFailed as `boot` does.
        """
        hw = self._hardware(images)
        if isinstance(self.vmm, Firecracker):
            return FirecrackerMachine.restore(hw, snapshot.state, plan, self.vmm.run_dir, copy)
        return Machine.restore(hw, snapshot.state, plan, copy)

    @property
    def lives_in_file(self) -> bool:
        """A guest that is to be saved writes to its memory file from the start; else that is written in the end."""
        return isinstance(self.vmm, Qemu)

    def _hardware(self, images: Images) -> Hardware:
        """vda is the root, vdb the packages, vdc the function."""
        drives = (self.guest.rootfs, images.packages, images.function)
        return Hardware(
            self.guest.kernel, self.guest.initrd, drives, images.memory_bytes, self.accel.name, self.vmm.path, CPU,
            images.imports,
        )  # fmt: skip

    def platform(self, images: Images) -> Platform:
        """What a snapshot of such a guest is bound to. Images are named by their content."""
        sha256 = self.guest.sha256
        if isinstance(self.vmm, Firecracker):
            vmm, machine, cpu = f"Firecracker {self.vmm.version_text}", "mmio", host_cpu()
        else:
            vmm, machine, cpu = f"QEMU {self.vmm.build_text}", "microvm", cpu_text(self.accel.name)
        return Platform(
            kernel=sha256["kernel"], initrd=sha256["initrd"], rootfs=sha256["rootfs"], packages=images.packages.stem,
            function=images.function.stem, vmm=vmm, machine=machine, cpu=cpu, accel=self.accel.name,
            memory_bytes=images.memory_bytes,
        )  # fmt: skip


def survey(home_dir: Path, policy: str = "auto", counts: Counts | None = None, vmm: str = "auto") -> Site:
    """Look at the machine, for `vmm`, one of VMMS. Blocks, the first time for a boot probe of some seconds.

    Raises MicrovmUnavailable, which says what to install or build.
    """
    counts = Counts() if counts is None else counts
    if vmm != "qemu":
        try:
            firecracker = usable(home_dir)
            means = firecracker_means()
            return Site(find_guest(home_dir), firecracker, Accel("kvm", "a guest booted"), means, policy, counts=counts)
        except MicrovmUnavailable as error:
            if vmm == "firecracker":
                raise MicrovmUnavailable(f"REWARM_VMM is firecracker, and that cannot be: {error.message}") from error
    qemu = find_qemu()
    guest = find_guest(home_dir)
    accel = verdict(home_dir, guest, qemu)
    return Site(guest, qemu, accel, detect_means(home_dir / "microvm"), policy, counts=counts)
