"""Where cgroups are found and what is written to them: on trees shaped like theirs, and on real ones where we may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewarm.sandbox import cgroup
from rewarm.sandbox.cgroup import V1, V2, Cgroups, Group, Place

V1_MOUNT = "33 31 0:28 / /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory"
CPU_MOUNT = "32 31 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V2_MOUNT = "31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
HYBRID_MOUNT = "40 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
CONTAINER_MOUNT = "33 31 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"


@pytest.mark.parametrize(
    ("own", "mounts", "expected"),
    [
        ("4:memory:/a/b", [CPU_MOUNT, V1_MOUNT], Place(V1, Path("/sys/fs/cgroup/memory/a/b"))),
        ("4:memory:/", [V1_MOUNT], Place(V1, Path("/sys/fs/cgroup/memory"))),
        ("4:memory,hugetlb:/a:b", [V1_MOUNT], Place(V1, Path("/sys/fs/cgroup/memory/a:b"))),
        ("4:memory:/a\n0::/c", [HYBRID_MOUNT, V1_MOUNT], Place(V1, Path("/sys/fs/cgroup/memory/a"))),
        ("4:memory:/docker/abc", [CONTAINER_MOUNT], Place(V1, Path("/sys/fs/cgroup/memory"))),
        ("4:memory:/docker/abc/x", [CONTAINER_MOUNT], Place(V1, Path("/sys/fs/cgroup/memory/x"))),
        ("0::/user.slice/run-1.scope", [V2_MOUNT], Place(V2, Path("/sys/fs/cgroup/user.slice/run-1.scope"))),
        ("4:memory:/a\n0::/../c", [HYBRID_MOUNT, V1_MOUNT], Place(V1, Path("/sys/fs/cgroup/memory/a"))),
        ("1:name=systemd:/x\n0::/c", [CPU_MOUNT, HYBRID_MOUNT], Place(V2, Path("/sys/fs/cgroup/unified/c"))),
        ("0::/", [V2_MOUNT.replace("/sys/fs/cgroup", r"/my\040groups")], Place(V2, Path("/my groups"))),
    ],
)
def test_the_own_cgroup_is_found(own: str, mounts: list[str], expected: Place) -> None:
    assert cgroup.locate(own + "\n", "\n".join(mounts) + "\n") == expected


@pytest.mark.parametrize(
    ("own", "mounts", "reason"),
    [
        ("", [], "mounted"),
        ("3:cpu:/", [CPU_MOUNT], "mounted"),
        ("4:memory:/docker/other", [CONTAINER_MOUNT], "outside"),
        ("0::/../other", [V2_MOUNT], "outside"),
        ("nonsense", ["nonsense", "1 2 - x"], "mounted"),
    ],
)
def test_no_cgroup_has_a_reason(own: str, mounts: list[str], reason: str) -> None:
    with pytest.raises(OSError, match=reason):
        cgroup.locate(own, "\n".join(mounts))


def unified(folder: Path, *, controllers: str, subtree: str = "", pids: str = "77") -> Place:
    """A directory with the files of a cgroup of v2 that we look at."""
    folder.mkdir()
    (folder / "cgroup.controllers").write_text(controllers + "\n")
    (folder / "cgroup.subtree_control").write_text(subtree + "\n")
    (folder / "cgroup.procs").write_text(pids + "\n")
    return Place(V2, folder)


def test_whether_groups_can_be_made(tmp_path: Path) -> None:
    cgroup.check(unified(tmp_path / "alone", controllers="cpu memory"), 77)
    cgroup.check(unified(tmp_path / "given on", controllers="cpu memory", subtree="memory", pids="1\n77"), 77)
    with pytest.raises(OSError, match=r"no memory controller.*Delegate=yes"):
        cgroup.check(unified(tmp_path / "cpu only", controllers="cpu"), 77)
    with pytest.raises(OSError, match=r"other processes.*Delegate=yes"):
        cgroup.check(unified(tmp_path / "shared", controllers="memory", pids="76\n77"), 77)
    with pytest.raises(OSError, match="read-only"):
        cgroup.check(Place(V1, tmp_path / "not there"), 77)


def test_the_server_moves_to_a_leaf_and_back(tmp_path: Path) -> None:
    """What is written where. A directory does not act on it: that needs a delegated cgroup."""
    place = unified(tmp_path / "own", controllers="memory")
    top = place.folder / "rewarm-x"
    unified(top, controllers="", pids="")
    unified(top / "server", controllers="", pids="")
    cgroup.enter(place, top)
    written = {path: path.read_bytes() for path in (place.folder.rglob("cgroup.*"))}
    assert written[top / "server" / "cgroup.procs"].startswith(b"0")
    assert written[place.folder / "cgroup.subtree_control"].startswith(b"+memory")
    assert written[top / "cgroup.subtree_control"].startswith(b"+memory")
    assert written[place.folder / "cgroup.procs"] == b"77\n"
    cgroup.leave(place, top)
    assert (place.folder / "cgroup.procs").read_bytes().startswith(b"0")
    assert (place.folder / "cgroup.subtree_control").read_bytes().startswith(b"-memory")
    assert (top / "cgroup.subtree_control").read_bytes().startswith(b"-memory")


def test_a_limit_that_cannot_be_set_is_told_and_done_without(tmp_path: Path) -> None:
    told: list[str] = []
    group = Group(tmp_path / "group", V2, lambda what, error: told.append(what))
    group.limit(1000)
    assert len(told) == 1
    (group.folder / "memory.max").write_text("max\n")
    group.limit(1000)
    assert (group.folder / "memory.max").read_text() == "1000"
    assert len(told) == 1


def test_none_are_made_if_none_are_wanted(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path, wanted=False)
    assert cgroups.make("sandbox-1") is None
    cgroups.close()


# ---------------------------------------------------------------- real ones


def missing() -> str:
    """Why this process can make no groups; empty if it can."""
    try:
        cgroup.find()
    except OSError as error:
        return str(error)
    return ""


needs_cgroups = pytest.mark.skipif(bool(missing()), reason=missing())

#: Forks into the cgroup that is named, as a zygote does, tells the pid, and leaves its child in a session of its own.
FORK = """
import os, sys, time
from rewarm import kernel
middle = kernel.fork_into(sys.argv[1])
if middle:
    assert os.waitpid(middle, 0)[1] == 0
    os._exit(0)
if os.fork():
    os._exit(0)
os.setsid()
print(os.getpid(), flush=True)
time.sleep(600)
"""

#: A server that has made a cgroup for a sandbox.
SERVER = """
import sys, time
from pathlib import Path
from rewarm.sandbox.cgroup import Cgroups
cgroups = Cgroups(Path(sys.argv[1]))
print(cgroups.make("sandbox-1").folder, flush=True)
time.sleep(600)
"""


def lodger(group: Path) -> int:
    """A process in that cgroup which is nobody's child any more."""
    done = subprocess.Popen([sys.executable, "-c", FORK, str(group)], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    with done.stdout as said:
        pid = int(said.readline())
    assert done.wait() == 0
    return pid


def ended(pid: int) -> bool:
    """Gone, or waiting to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@needs_cgroups
@pytest.mark.parametrize("home", ["the same", "another"])
def test_what_a_dead_server_left_is_ended_and_removed(tmp_path: Path, home: str) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path / "the same")], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        group = Path(server.stdout.readline().decode().strip())
        pid = lodger(group)
        assert (group / "cgroup.procs").read_text().split() == [str(pid)]
        Cgroups(tmp_path / "another").close()
        assert not ended(pid), "its server lives"
        server.kill()
    after = Cgroups(tmp_path / home)
    assert ended(pid)
    assert not group.exists()
    assert group.parent.exists() == (home == "the same")
    after.close()
    assert not group.parent.exists()


@needs_cgroups
def test_groups_within_a_group_are_removed_with_it(tmp_path: Path) -> None:
    cgroups = Cgroups(tmp_path)
    group = cgroups.make("sandbox-1")
    assert group is not None
    (group.folder / "mine").mkdir()
    pid = lodger(group.folder / "mine")
    cgroup.clear(group.folder)
    assert ended(pid)
    assert not group.folder.exists()
    cgroups.close()


def test_a_process_is_cloned_into_a_cgroup_of_v2(tmp_path: Path) -> None:
    """In a hierarchy of v2 without controllers too."""
    own = "".join(line for line in Path("/proc/self/cgroup").read_text().splitlines(True) if line.startswith("0::"))
    try:
        folder = cgroup.locate(own, Path("/proc/self/mountinfo").read_text()).folder / f"rewarm-test-{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup of v2 to make: {error}")
    try:
        pid = lodger(folder)
        assert (folder / "cgroup.procs").read_text().split() == [str(pid)]
    finally:
        cgroup.clear(folder)
    assert not folder.exists()
