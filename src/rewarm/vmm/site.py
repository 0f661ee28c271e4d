"""What micro-VMs are made of on this machine: QEMU, a guest, an accelerator, ways to restore. Looked for once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rewarm.guest.build import GuestFiles, find_guest
from rewarm.snapshot.manifest import Platform
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.restore import Means, detect_means
from rewarm.vmm.kvm import Accel, verdict
from rewarm.vmm.qemu import CPU, Hardware, Qemu, cpu_text, find_qemu


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
    qemu: Qemu
    accel: Accel
    means: Means
    policy: str = "auto"
    pager: PagerClient | None = None
    counts: Counts = field(default_factory=Counts)

    def hardware(self, images: Images) -> Hardware:
        """vda is the root, vdb the packages, vdc the function."""
        drives = (self.guest.rootfs, images.packages, images.function)
        return Hardware(
            self.guest.kernel, self.guest.initrd, drives, images.memory_bytes, self.accel.name, self.qemu, CPU,
            images.imports,
        )  # fmt: skip

    def platform(self, images: Images) -> Platform:
        """What a snapshot of such a guest is bound to. Images are named by their content."""
        sha256 = self.guest.sha256
        return Platform(
            kernel=sha256["kernel"], initrd=sha256["initrd"], rootfs=sha256["rootfs"], packages=images.packages.stem,
            function=images.function.stem, qemu=self.qemu.build_text, machine="microvm",
            cpu=cpu_text(self.accel.name), accel=self.accel.name, memory_bytes=images.memory_bytes,
        )  # fmt: skip


def survey(home_dir: Path, policy: str = "auto", counts: Counts | None = None) -> Site:
    """Look at the machine. Blocks, the first time for a boot probe of some seconds.

    Raises MicrovmUnavailable, which says what to install or build.
    """
    qemu = find_qemu()
    guest = find_guest(home_dir)
    accel = verdict(home_dir, guest, qemu)
    means = detect_means(home_dir / "microvm")
    return Site(guest, qemu, accel, means, policy, counts=Counts() if counts is None else counts)
