"""Memory cgroups: a directory per sandbox, below the cgroup that the server was started in.

    OWN/rewarm.HOME/sandbox-7   an instance and all that it starts
    OWN/rewarm.HOME/server      v2 only: the server and its zygotes, for there a cgroup with children has no processes

Both versions: v1, and v2 where the server's cgroup was delegated to it. A process joins by itself while it has one
thread (`kernel.fork_into`, `kernel.join_cgroup`; adr/0015 says why). No start fails for a cgroup: what the kernel
refuses is logged once and done without.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("rewarm.sandbox")
ALONE = "systemd-run --user --scope -p Delegate=yes rewarm serve"

_SERVER = "server"
_CLEAR_TRIES = 50
_CLEAR_PAUSE_S = 0.02
_PROCS = "cgroup.procs"
_SUBTREE = "cgroup.subtree_control"


class Files(NamedTuple):
    """What the files of one version are called."""

    version: int
    limit: str
    swap: str  # 0 in it: nothing of the group is swapped out


V1 = Files(1, "memory.limit_in_bytes", "memory.swappiness")
V2 = Files(2, "memory.max", "memory.swap.max")


class Place(NamedTuple):
    """The cgroup that the server is in, as a directory."""

    files: Files
    folder: Path


def find() -> Place:
    """That of this process. Raises OSError if there is none with a memory controller, or none that it may use."""
    place = locate(*(_read(Path("/proc/self", name)) for name in ("cgroup", "mountinfo")))
    check(place, os.getpid())
    return place


def locate(own: str, mounts: str, controller: str = "memory") -> Place:
    """From the texts of `/proc/self/cgroup` and `/proc/self/mountinfo` (proc(5)). Raises OSError.

    `controller`: the name that v1 knows it by.
    """
    paths = {fields[1]: fields[2] for line in own.splitlines() if len(fields := line.split(":", 2)) == 3}
    by_controller = {name: path for names, path in paths.items() for name in names.split(",")}
    unified: tuple[str, str] | None = None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        root, point = (text.replace("\\040", " ") for text in fields[3:5])
        if kind[0] == "cgroup" and controller in kind[2].split(",") and controller in by_controller:
            return Place(V1, _below(point, root, by_controller[controller]))
        if kind[0] == "cgroup2" and "" in paths:
            unified = (point, root)
    if unified is None:
        raise OSError(f"no cgroup file system with a {controller} controller is mounted")
    return Place(V2, _below(*unified, paths[""]))


def _below(point: str, root: str, path: str) -> Path:
    """Where `path` of a hierarchy is found if its `root` is mounted at `point`."""
    relative = os.path.relpath(path, root)
    if ".." in (*path.split("/"), *relative.split("/")):
        raise OSError(f"its cgroup {path} is outside of what is mounted at {point}")
    return Path(point, relative)


def check(place: Place, pid: int) -> None:
    """Whether the process `pid`, which is in it, can make groups there; only looks. Raises OSError with the reason."""
    folder = place.folder
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise OSError(f"{folder} is read-only for this user" + (f"; try: {ALONE}" if place.files is V2 else ""))
    if place.files is V1 or "memory" in _read(folder / _SUBTREE).split():
        return
    if "memory" not in _read(folder / "cgroup.controllers").split():
        raise OSError(f"{folder} has no memory controller; try: {ALONE}")
    if _read(folder / _PROCS).split() != [str(pid)]:
        raise OSError(f"other processes are in {folder}, so it can have no groups; try: {ALONE}")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # a cgroup's files are there, or it cannot do that
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


class Group:
    """The cgroup of one sandbox."""

    def __init__(self, folder: Path, files: Files, refused: Callable[[str, Exception], None]) -> None:
        """Make it. Raises OSError; afterwards `refused` is told what the kernel did not do."""
        self.folder = folder
        self._files = files
        self._refused = refused
        folder.mkdir()
        with contextlib.suppress(OSError):  # a kernel without swap has no such file
            _write(folder / files.swap, "0")

    def limit(self, memory_bytes: int) -> None:
        """The most that its processes may have together."""
        try:
            _write(self.folder / self._files.limit, str(memory_bytes))
        except OSError as error:
            self._refused("a cgroup got no limit of memory", error)

    def release(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is left in it and remove it: at once if it is empty, else in a thread of the loop's executor."""
        try:
            self.folder.rmdir()
        except OSError:
            loop.run_in_executor(None, clear, self.folder)


def clear(folder: Path) -> None:
    """Kill what is in a group and remove it, and those that were made in it; blocks, for a second at most."""
    for _ in range(_CLEAR_TRIES):
        for inner, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError, ValueError):
                for pid in map(int, _read(Path(inner, _PROCS)).split()):
                    if pid > 0:  # 0: of another pid namespace
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):  # until those are gone
                os.rmdir(inner)
        if not folder.exists():
            return
        time.sleep(_CLEAR_PAUSE_S)


def name_for(run_dir: Path) -> str:
    """What the cgroup of the server with this run directory is called."""
    return f"rewarm.{hashlib.sha256(bytes(run_dir.resolve())).hexdigest()[:12]}"


class Cgroups:
    """All groups of one server, which is named by its run directory; a machine without them makes none."""

    def __init__(self, run_dir: Path, wanted: bool = True) -> None:
        """Never raises. What dead servers left in the same cgroup is ended and removed; blocks."""
        self._place: Place | None = None
        self._told: set[str] = set()
        if wanted:
            try:
                self._open(find(), name_for(run_dir))
            except OSError as error:
                log.info("instances have no memory cgroups: %s", error)

    def _open(self, place: Place, name: str) -> None:
        for other in place.folder.glob("rewarm.*"):
            with contextlib.suppress(OSError):  # its server lives
                lock = _lock(other)
                clear(other)
                os.close(lock)
        self._top = place.folder / name
        self._top.mkdir()
        self._lock = _lock(self._top)
        self._place = place
        try:
            if place.files is V2:
                enter(place, self._top)
        except OSError:
            self.close()
            raise

    def make(self, name: str) -> Group | None:
        """An empty group without a limit."""
        if self._place is None:
            return None
        try:
            return Group(self._top / name, self._place.files, self._refused)
        except OSError as error:
            self._refused("a cgroup could not be made", error)
            return None

    def _refused(self, what: str, error: Exception) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("%s, which is not said again: %s", what, error)

    def close(self) -> None:
        """Leave nothing; blocks, for a second at most for each group whose processes do not end."""
        if self._place is not None:
            for group in self._top.iterdir():
                if group.is_dir() and group.name != _SERVER:
                    clear(group)
            leave(self._place, self._top)
            os.close(self._lock)
            self._place = None


def _lock(folder: Path) -> int:
    """A descriptor that tells others that the server lives whose folder this is; raises OSError if one does."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def enter(place: Place, top: Path) -> None:
    """v2: this process moves from `place` to a leaf below `top`, and both give their children the memory controller.

    Raises OSError, with some of it done.
    """
    if "memory" not in _read(place.folder / _SUBTREE).split():
        (top / _SERVER).mkdir(exist_ok=True)
        _write(top / _SERVER / _PROCS, "0")
        _write(place.folder / _SUBTREE, "+memory")
    _write(top / _SUBTREE, "+memory")


def leave(place: Place, top: Path) -> None:
    """Remove `top`, which has no groups any more; what `enter` did on v2 is undone in reverse."""
    if (top / _SERVER).is_dir():
        undo = ((top / _SUBTREE, "-memory"), (place.folder / _SUBTREE, "-memory"), (place.folder / _PROCS, "0"))
        for path, text in undo:
            with contextlib.suppress(OSError):
                _write(path, text)
    for folder in (top / _SERVER, top):
        with contextlib.suppress(OSError):  # the next start tries again
            folder.rmdir()
