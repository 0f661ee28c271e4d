"""Experiment `snapshot`: a cgroup in which reading from a disk is slow.

v1: the blkio controller's throttle; v2: `io.max` of the io controller. The kernel charges a read to whoever asked for
it, by a call or by a page fault, so all processes of a start have to be in the group; a process joins before it starts
the others. The limit is on one disk, the one that holds a folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from rewarm.sandbox import cgroup

IOPS = 3000
BYTES_S = 125_000_000

_SYS_BLOCK = Path("/sys/dev/block")
_EMPTY_S_MAX = 5.0


class Device(NamedTuple):
    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"


def disk_of(folder: Path, mounts: str, sys_block: Path = _SYS_BLOCK) -> Device:
    """The whole disk that the folder's file system is on. `mounts` is the text of `/proc/self/mountinfo`.

    Raises OSError if it is on none, as memory or a network is.
    """
    number = os.stat(folder).st_dev
    device = Device(os.major(number), os.minor(number))
    if not (sys_block / str(device)).exists():
        device = _mounted(device, mounts)
    here = (sys_block / str(device)).resolve()
    if (here / "partition").exists():  # limits are for whole disks
        return _parse((here.parent / "dev").read_text(encoding="ascii").strip())
    return device


def _mounted(device: Device, mounts: str) -> Device:
    """Of a file system with a number of its own, as btrfs has: the block device it was mounted from."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, source = before.split(), after.split()
        if len(fields) > 2 and fields[2] == str(device) and len(source) > 1 and source[1].startswith("/dev/"):
            number = os.stat(source[1]).st_rdev
            return Device(os.major(number), os.minor(number))
    raise OSError("the files are on no disk, but in memory, on a network or on layers of other file systems")


def _parse(text: str) -> Device:
    major, _, minor = text.partition(":")
    return Device(int(major), int(minor))


def limits(version: int, device: Device) -> dict[str, str]:
    """File of a cgroup of that version → what is written into it."""
    if version == 1:
        return {"blkio.throttle.read_iops_device": f"{device} {IOPS}",
                "blkio.throttle.read_bps_device": f"{device} {BYTES_S}"}  # fmt: skip
    return {"io.max": f"{device} rbps={BYTES_S} riops={IOPS}"}


class Throttle:
    """A context manager: the group exists meanwhile. Raises OSError, with the reason, where there can be none."""

    def __init__(self, folder: Path, *, at: cgroup.Place | None = None, sys_block: Path = _SYS_BLOCK) -> None:
        """`folder`: on the disk that is to be slow; `at`: the cgroup to make it in, else that of this process."""
        own, mounts = (Path("/proc/self", name).read_text(encoding="utf-8") for name in ("cgroup", "mountinfo"))
        place = at or cgroup.locate(own, mounts, "blkio")
        self._limits = limits(place.files.version, disk_of(folder, mounts, sys_block))
        self._group = place.folder / f"rewarm-experiment-{os.getpid()}"
        if place.files.version == 2:
            _check_io(place.folder)

    def __enter__(self) -> Throttle:
        self._group.mkdir()
        try:
            for name, text in self._limits.items():
                with open(self._group / name, "r+", encoding="ascii") as file:
                    file.write(text)
        except BaseException:
            self._group.rmdir()
            raise
        return self

    @property
    def procs(self) -> Path:
        """The file into which a process writes its number to be slowed down."""
        return self._group / "cgroup.procs"

    def __exit__(self, *_: object) -> None:
        """Those in it have to end of themselves; it stays if they do not within seconds."""
        until_s = time.monotonic() + _EMPTY_S_MAX
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                self._group.rmdir()
                return
            time.sleep(0.02)


def _check_io(folder: Path) -> None:
    if "io" not in (folder / "cgroup.subtree_control").read_text(encoding="ascii").split():
        raise OSError(f"groups in {folder} have no io controller; `echo +io > {folder}/cgroup.subtree_control` gives "
                      "them one")  # fmt: skip
