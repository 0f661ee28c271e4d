"""The directory that a server calls its own.

    home.json                        {"format": 1}
    lock                             the owner's pid; flocked while a server lives
    registry.db                      which revision a name means (SQLite)
    artifacts/<sha256>/              code, content-addressed, read-only
    weights/<sha256>/<filename>      weights, content-addressed, read-only
    packs/<key>/                     weights in execution order, as an index into tensors, read-only
    tensors/<sha256>.safetensors     what packs refer to, content-addressed, read-only; also .data, of graphs
    profiles/<function>/             measured run times
    snapshots/<name>/                sleeping micro-VMs, read-only (see store.snapshots)
    microvm/                         guests, images of drives, what was found out about this machine
    tmp/  run/                       of this process only; emptied when the home is opened

Everything in artifacts, weights, packs, tensors and snapshots came there by one rename out of tmp, so it is whole or
absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from pathlib import Path
from types import TracebackType

from rewarm.errors import HomeLocked, HomeTooNew, SystemFault
from rewarm.store.disk import Disk, disk_errors

FORMAT = 1

#: What may lie in a directory that is not a home yet: an interrupted first start, or the root of a fresh volume.
#: And a guest: `rewarm microvm build` needs no server.
_HARMLESS = {"lock", "home.json.new", "lost+found", "microvm"}


class Home:
    """An opened and locked home directory. Use `Home.open`."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd: int | None = lock_fd
        self.registry_path = path / "registry.db"
        self.artifacts_dir = path / "artifacts"
        self.weights_dir = path / "weights"
        self.packs_dir = path / "packs"
        self.tensors_dir = path / "tensors"
        self.profiles_dir = path / "profiles"
        self.snapshots_dir = path / "snapshots"
        self.tmp_dir = path / "tmp"
        self.run_dir = path / "run"

    @classmethod
    def open(cls, path: str | Path, disk: Disk | None = None) -> Home:
        """Creates the home if it is not there, locks it, and removes what a killed server left in tmp and run.

        Raises HomeLocked if another process has it, HomeTooNew if a newer rewarm wrote it, SystemFault if it cannot
        be used: not a directory, not writable, no space, or a directory that holds something else.
        """
        disk = disk or Disk()
        path = Path(os.path.realpath(Path(path).expanduser()))
        with disk_errors("open the home", path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(path)
            home = cls(path, _lock(path))
            try:
                home._check_format(disk)
                home._close_to_others()
                # Only now: tmp and run of a directory that is not ours, or of a server that lives, must not be touched.
                kept = (home.artifacts_dir, home.weights_dir, home.packs_dir, home.tensors_dir, home.profiles_dir)
                for folder in (*kept, home.snapshots_dir, home.tmp_dir, home.run_dir):
                    folder.mkdir(mode=0o700, exist_ok=True)
                for stale in (*home.tmp_dir.iterdir(), *home.run_dir.iterdir()):
                    disk.remove_tree(stale)
                disk.sync(path)
            except BaseException:
                home.close()
                raise
        return home

    def artifact_dir(self, digest: str) -> Path:
        """Where the code with this digest is, or would be."""
        return self.artifacts_dir / digest

    def weights_file(self, sha256: str, filename: str) -> Path:
        """Where the weights with this digest are, or would be, under this name."""
        return self.weights_dir / sha256 / filename

    def pack_dir(self, key: str) -> Path:
        """Where the pack with this key is, or would be."""
        return self.packs_dir / key

    def fresh(self) -> Path:
        """A new empty directory in tmp. Raises SystemFault."""
        with disk_errors("make a temporary directory", self.tmp_dir):
            return Path(tempfile.mkdtemp(dir=self.tmp_dir))

    def close(self) -> None:
        """Lets go of the lock. The lock file stays: removing it could split the lock between two servers."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Home:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Home {self.path} {'closed' if self._lock_fd is None else 'open'}>"

    def _close_to_others(self) -> None:
        """Code, weights and snapshots of memory are the owner's alone, whoever made the directories and how."""
        for folder in (self.path, self.path / "microvm"):
            if folder.is_dir() and folder.stat().st_mode & 0o077:
                with contextlib.suppress(PermissionError):  # of a volume that belongs to root and is writable for us
                    folder.chmod(0o700)

    def _check_format(self, disk: Disk) -> None:
        """Reads home.json, or writes it if this is the first start."""
        file = self.path / "home.json"
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            new = self.path / "home.json.new"
            new.write_text(json.dumps({"format": FORMAT}) + "\n", encoding="utf-8")
            disk.sync(new)
            disk.replace(new, file)
            disk.sync(self.path)
            return
        try:
            found = json.loads(text)["format"]
            if isinstance(found, bool) or not isinstance(found, int) or found < 1:
                raise ValueError(f"format is {found!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SystemFault(
                f'{file} is damaged ({error}); if this is a home of rewarm, write {{"format": {FORMAT}}} into it, '
                "otherwise choose another directory with --home"
            ) from error
        if found > FORMAT:
            raise HomeTooNew(
                f"{self.path} was written by a newer rewarm (format {found}, this one knows {FORMAT}); "
                "upgrade rewarm or choose another directory with --home"
            )


def _refuse_foreign(path: Path) -> None:
    """A home may be made in an empty directory only: its tmp is emptied at every start, and `--home ~` has one too."""
    names = {child.name for child in path.iterdir()}
    if "home.json" not in names and names - _HARMLESS:
        raise SystemFault(
            f"{path} is not a home of rewarm and is not empty (it has {sorted(names - _HARMLESS)[0]!r}); "
            "choose a new or empty directory with --home"
        )


def _lock(path: Path) -> int:
    """The descriptor that holds the lock. It must not be inherited: the lock lives as long as any copy of it."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor
    except BlockingIOError:
        pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        owner = f"process {pid}" if pid.isdigit() else "another process"
        raise HomeLocked(
            f"{path} is in use by {owner}; stop that server or choose another directory with --home"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
