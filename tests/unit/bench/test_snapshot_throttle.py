"""Where the throttle of the snapshot experiment is put, and that it slows reads down where it can be had."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarm.bench import snapshot_throttle
from rewarm.bench.snapshot_throttle import BYTES_S, Device, Throttle, disk_of, limits
from rewarm.bench.streaming_files import evict
from rewarm.errors import SystemFault
from rewarm.sandbox.cgroup import V1, V2, Place

READ = "import os, sys\nopen(sys.argv[1], 'w').write(str(os.getpid()))\nopen(sys.argv[2], 'rb').read()"


def fake_sys(folder: Path, device: Device, *, partition: bool = False) -> Path:
    """/sys/dev/block with one device, which is a disk `sda` with number 8:0 or a partition of it."""
    disk = folder / "devices" / "sda"
    disk.mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    here = disk
    if partition:
        here = disk / "sda1"
        here.mkdir()
        (here / "partition").write_text("1\n")
    links = folder / "dev" / "block"
    links.mkdir(parents=True)
    (links / str(device)).symlink_to(here)
    return links


def own_device(path: Path) -> Device:
    number = os.stat(path).st_dev
    return Device(os.major(number), os.minor(number))


def test_a_disk_is_itself_and_a_partition_is_its_disk(tmp_path: Path) -> None:
    device = own_device(tmp_path)
    assert disk_of(tmp_path, "", fake_sys(tmp_path / "a", device)) == device
    assert disk_of(tmp_path, "", fake_sys(tmp_path / "b", device, partition=True)) == Device(8, 0)


def test_a_file_system_with_a_number_of_its_own_is_looked_up(tmp_path: Path) -> None:
    device, null = own_device(tmp_path), os.stat("/dev/null").st_rdev
    of_null = Device(os.major(null), os.minor(null))
    line = f"27 1 {device} /sub / rw,relatime shared:1 - btrfs /dev/null rw"
    assert disk_of(tmp_path, line, fake_sys(tmp_path / "sys", of_null)) == of_null


@pytest.mark.parametrize("source", ["tmpfs", "overlay", "host:/export"])
def test_what_is_on_no_disk_is_told(tmp_path: Path, source: str) -> None:
    line = f"27 1 {own_device(tmp_path)} / / rw - kind {source} rw"
    with pytest.raises(OSError, match="on no disk"):
        disk_of(tmp_path, line, tmp_path / "nothing")


def test_limits_of_both_versions() -> None:
    assert limits(1, Device(8, 16)) == {"blkio.throttle.read_iops_device": "8:16 3000",
                                        "blkio.throttle.read_bps_device": "8:16 125000000"}  # fmt: skip
    assert limits(2, Device(8, 16)) == {"io.max": "8:16 rbps=125000000 riops=3000"}


def test_a_group_without_an_io_controller_is_refused_with_the_remedy(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "cgroup.subtree_control").write_text("memory pids\n")
    with pytest.raises(OSError, match=r"no io controller; `echo \+io > .*cgroup.subtree_control`"):
        Throttle(tmp_path, at=Place(V2, group), sys_block=fake_sys(tmp_path / "sys", own_device(tmp_path)))


def test_a_group_that_takes_no_limits_leaves_nothing(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    throttle = Throttle(tmp_path, at=Place(V1, group), sys_block=fake_sys(tmp_path / "sys", own_device(tmp_path)))
    with pytest.raises(OSError), throttle:  # in a plain folder there are no such files
        pass
    assert list(group.iterdir()) == []


def test_reads_are_slow_in_it_and_it_goes(tmp_path: Path) -> None:
    path, size_bytes = tmp_path / "file", 64 << 20
    path.write_bytes(os.urandom(1 << 20) * 64)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    try:
        evict([path])
        with Throttle(tmp_path) as throttle:
            group = throttle.procs.parent
            since_s = time.monotonic()
            subprocess.run([sys.executable, "-c", READ, str(throttle.procs), str(path)], check=True, timeout=60)
            took_s = time.monotonic() - since_s
    except (OSError, SystemFault) as error:
        pytest.skip(f"nothing can be throttled here: {error}")
    assert not group.exists()
    assert took_s > 0.7 * size_bytes / BYTES_S, snapshot_throttle.__name__
