"""Snapshots on disk: folders of files that came out of tmp by one rename, read-only, each under a name of its own.

What the files mean is the snapshot room's business. Nothing here is needed to serve: what is lost is made again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from rewarm.errors import SnapshotFailed, SystemFault
from rewarm.store.disk import Disk, disk_errors
from rewarm.store.home import Home
from rewarm.store.verified import Book, Identity, identity_of


class Snapshots:
    """Those of one home. Every method may be called from any thread."""

    def __init__(self, home: Home, disk: Disk) -> None:
        self._home = home
        self._disk = disk
        self._lock = threading.Lock()
        self._book = Book(home.path / "snapshots.json", disk, lambda name: self.folder(name).is_dir())

    def stage(self) -> Path:
        """An empty folder to make one in; end it with `place` or `discard`. Raises SystemFault."""
        return self._home.fresh()

    def discard(self, staged: Path) -> None:
        """Removes a staged or buried folder, if it is still there. What resists goes when the home is next opened."""
        with contextlib.suppress(OSError):
            self._disk.remove_tree(staged)

    def folder(self, name: str) -> Path:
        """Where the snapshot of this name is, or would be."""
        return self._home.snapshots_dir / name

    def place(self, staged: Path, name: str) -> Path:
        """Makes what was staged durable and puts it in the place of what has this name. Raises SnapshotFailed.

        It was made here a moment ago, so it counts as verified.
        """
        target = self.folder(name)
        try:
            with disk_errors("store the snapshot", target):
                for path in staged.iterdir():
                    self._disk.chmod(path, 0o444)
                    self._disk.sync(path)
                self._disk.sync(staged)
                grave = self.bury(name)
                with self._lock:
                    self._disk.replace(staged, target)
                    self._disk.sync(target.parent)
                if grave is not None:
                    self.discard(grave)
        except SystemFault as error:
            raise SnapshotFailed(error.message) from error
        self.note(name, self.seen(name))
        return target

    def seen(self, name: str) -> dict[str, Identity]:
        """What tells that one of its files was touched."""
        try:
            return identity_of(sorted(self.folder(name).iterdir()))
        except OSError:
            return {}

    def verified(self, name: str) -> bool:
        """Nothing changed since `note`."""
        return self._book.holds(name, self.seen(name))

    def note(self, name: str, seen: dict[str, Identity]) -> None:
        """Its files were read and are whole; `seen` is from before that."""
        with self._lock:
            self._book.note(name, seen)

    def bury(self, name: str) -> Path | None:
        """Takes it away, at once for whoever looks: where it is now, to be discarded. None if there is none.

        Takes no time, whatever its size. Machines restored from it keep the files they have open. Raises SystemFault.
        """
        with self._lock, disk_errors("remove a snapshot", self.folder(name)):
            if not os.path.lexists(self.folder(name)):
                return None
            grave = self._home.fresh()
            self._disk.replace(self.folder(name), grave)
            return grave

    def drop(self, name: str) -> None:
        """`bury` and `discard`."""
        grave = self.bury(name)
        if grave is not None:
            self.discard(grave)

    def sweep(self, keep: Iterable[str]) -> list[str]:
        """Drops all but those → the names that went. Raises SystemFault."""
        with disk_errors("list the snapshots", self._home.snapshots_dir):
            doomed = sorted({path.name for path in self._home.snapshots_dir.iterdir()} - set(keep))
        for name in doomed:
            self.drop(name)
        return doomed
