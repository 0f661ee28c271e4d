"""Where images are made and kept: `home/microvm`, beside a server that lives there or none.

    microvm/lock                 held by whoever makes something; tmp is emptied by whoever finds nobody else
    microvm/tmp/                 what is being made
    microvm/cache/               Debian packages as they were downloaded
    microvm/guest-<id>/          a guest: kernel, initrd, rootfs, guest.json
    microvm/guest                a link to the guest that was built last
    microvm/packages-<id>.img    microvm/function-<digest>.img    microvm/blank-<id>.img

What has a name outside of tmp came there by one rename: it is whole, durable and read-only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewarm.errors import MicrovmUnavailable, SystemFault
from rewarm.store.disk import Disk, disk_errors

COMMAND_S = 300.0  # of a tool; the longest copies weights of many GB into an image


class Workshop:
    """The folder `home/microvm`."""

    def __init__(self, home_dir: Path, disk: Disk | None = None) -> None:
        self.folder = home_dir / "microvm"
        self._disk = disk or Disk()

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A new folder, gone afterwards with what is still in it. An OSError inside becomes a SystemFault."""
        tmp_dir = self.folder / "tmp"
        with disk_errors("make an image for micro-VMs", self.folder):
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.folder.chmod(0o700)  # an older version made it for everybody to read
            tmp_dir.mkdir(mode=0o700, exist_ok=True)
            lock = self._open_lock()
            try:
                self._clear(lock, tmp_dir)
                fresh = Path(tempfile.mkdtemp(dir=tmp_dir))
                try:
                    yield fresh
                finally:
                    self._disk.remove_tree(fresh)
            finally:
                os.close(lock)

    def clear(self) -> None:
        """Remove what killed processes left, unless somebody is at work. Raises SystemFault."""
        tmp_dir = self.folder / "tmp"
        with disk_errors("tidy the images for micro-VMs", self.folder):
            if tmp_dir.is_dir():
                lock = self._open_lock()
                try:
                    self._clear(lock, tmp_dir)
                finally:
                    os.close(lock)

    def _open_lock(self) -> int:
        return os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _clear(self, lock: int, tmp_dir: Path) -> None:
        """What killed processes left is removed if nobody else is at work. Holds the lock, shared, from here on."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stale in tmp_dir.iterdir():
                self._disk.remove_tree(stale)
        fcntl.flock(lock, fcntl.LOCK_SH)

    def place(self, staged: Path, name: str) -> Path:
        """Move a staged file, or a folder of files, to its name; what is there already wins. Raises OSError."""
        target = self.folder / name
        files = [staged] if staged.is_file() else sorted(staged.iterdir())
        for file in files:
            self._disk.chmod(file, 0o444)
            self._disk.sync(file)
        if staged not in files:
            self._disk.sync(staged)
        try:
            if not target.exists():
                self._disk.replace(staged, target)
        except OSError:
            if not target.exists():  # else somebody was faster
                raise
        self._disk.sync(self.folder)
        return target

    def contents(self) -> dict[str, int]:
        """What is kept: name → bytes on disk. Raises SystemFault."""
        with disk_errors("list the images for micro-VMs", self.folder):
            if not self.folder.is_dir():
                return {}
            kept = (path for path in sorted(self.folder.iterdir()) if path.name not in ("lock", "tmp"))
            return {path.name: _disk_bytes(path) for path in kept if not path.is_symlink()}

    def remove(self) -> None:
        """All of it. Nobody may be using it. Raises SystemFault."""
        with disk_errors("remove the images for micro-VMs", self.folder):
            self._disk.remove_tree(self.folder)


def _disk_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def run(
    command: Sequence[str], *, needs: str, cwd: Path | None = None, env: dict[str, str] | None = None,
    within_s: float = COMMAND_S,
) -> str:  # fmt: skip
    """Standard output of a tool. It is killed when the thread that called this ends, or after `within_s`.

    Raises MicrovmUnavailable if it is not there (`needs`: what to install for it), SystemFault if it fails, with the
    last line that it wrote.
    """
    tool = find_tool(command[0], needs)
    words = [find_tool("setpriv", "util-linux"), "--pdeathsig", "KILL", tool, *command[1:]]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", check=False, timeout=within_s, cwd=cwd,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C", **(env or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SystemFault(f"{command[0]} did not end within {within_s:.0f} s; try again") from error
    if done.returncode != 0:
        said = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise SystemFault(f"{command[0]} failed ({done.returncode}): {said}")
    return done.stdout


def find_tool(name: str, needs: str) -> str:
    """Its path, also where only root's PATH leads. Raises MicrovmUnavailable."""
    places = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/sbin"]
    for place in places:
        path = Path(place or ".", name)
        if os.access(path, os.X_OK) and path.is_file():
            return str(path)
    raise MicrovmUnavailable(f"there is no {name}; install {needs} (make system-deps)")
