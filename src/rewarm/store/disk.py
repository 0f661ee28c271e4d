"""The disk operations whose order makes a publish safe, and what their failures mean to a person.

They are methods of one small class so that a test can hand in a subclass whose n-th operation fails.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewarm.errors import SystemFault

CHUNK_BYTES = 1 << 20

_NEXT_STEP = {
    errno.ENOSPC: "free some space there or choose another directory with --home",
    errno.EDQUOT: "the quota is used up; free some space or choose another directory with --home",
    errno.EACCES: "give this user the right to write there or choose another directory with --home",
    errno.EPERM: "give this user the right to write there or choose another directory with --home",
    errno.EROFS: "the file system is read-only; choose another directory with --home",
    errno.ENOTDIR: "it must be a directory; choose another one with --home",
    errno.EEXIST: "it must be a directory; choose another one with --home",
    errno.ENOLCK: "the file system has no locks; choose a directory on a local disk with --home",
    errno.EOPNOTSUPP: "the file system cannot do this; choose a directory on a local disk with --home",
}


@contextmanager
def disk_errors(doing: str, where: Path) -> Iterator[None]:
    """Turns an OSError inside into a SystemFault that names the path and the next step; other errors pass."""
    try:
        yield
    except OSError as error:
        path = error.filename if isinstance(error.filename, str) else str(where)
        hint = _NEXT_STEP.get(error.errno or 0, "check the disk and its permissions")
        raise SystemFault(f"cannot {doing}: {path}: {error.strerror or error}; {hint}") from error


class Disk:
    """The real disk. Every method raises OSError."""

    def sync(self, path: Path) -> None:
        """Returns when the file's bytes, or the directory's names, are on the device."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def chmod(self, path: Path, mode: int) -> None:
        path.chmod(mode)

    def replace(self, source: Path, target: Path) -> None:
        """Atomic: whoever looks sees `source` whole at the one place or at the other."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """A second name for the same bytes (and the same page cache)."""
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def remove_tree(self, path: Path) -> None:
        """Removes a file or a tree, read-only directories included; follows no links; nothing there is fine."""
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        path.chmod(0o700)
        for folder, names, _ in os.walk(path):  # top down: each directory is opened up before it is entered
            for name in names:
                child = Path(folder, name)
                if not child.is_symlink():
                    child.chmod(0o700)
        shutil.rmtree(path)
