"""Which packs were read against their digests since their files last changed.

A pack is verified when it is placed. From then on a look at the inodes tells whether anything touched a file: its
device, number, size, and the times of its last change, which nobody sets back by accident. Only then all is read anew.
"""

from __future__ import annotations

import json
from contextlib import suppress

from rewarm.store.disk import Disk
from rewarm.store.home import Home
from rewarm.weights.format import Pack

Identity = tuple[int, ...]


class Verified:
    """The book of one home, in `packs.json`. Lost or damaged, it only costs reading the packs once more."""

    def __init__(self, home: Home, disk: Disk) -> None:
        self._home = home
        self._path = home.path / "packs.json"
        self._disk = disk
        self._books: dict[str, dict[str, Identity]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            for key, files in json.loads(self._path.read_bytes()).items():
                self._books[key] = {name: tuple(identity) for name, identity in files.items()}

    def holds(self, pack: Pack) -> bool:
        """Nothing changed since `note`."""
        return pack.index.key in self._books and self._books[pack.index.key] == identity(pack)

    def note(self, pack: Pack, seen: dict[str, Identity]) -> None:
        """The pack was read and found whole; `seen` is its `identity` from before that."""
        self._books = {key: files for key, files in self._books.items() if self._home.pack_dir(key).is_dir()}
        self._books[pack.index.key] = seen
        fresh = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):  # the disk is full: it is noted for as long as this process lives
            fresh.write_text(json.dumps(self._books), encoding="utf-8")
            self._disk.replace(fresh, self._path)


def identity(pack: Pack) -> dict[str, Identity]:
    """What tells that a file was touched, by path. A file that is not there has none."""
    found: dict[str, Identity] = {}
    for path, _ in pack.files():
        with suppress(OSError):
            status = path.stat()
            found[str(path)] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found
