"""What was read against its digests since its files last changed: packs of weights, snapshots.

A look at the inodes tells whether anything touched a file: its device, number, size, and the times of its last change,
which nobody sets back by accident. Only then all is read anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from rewarm.store.disk import Disk
from rewarm.store.home import Home
from rewarm.weights.format import Pack

Identity = tuple[int, ...]


class Book:
    """What was found whole, by name. Lost or damaged, it only costs reading everything once more."""

    def __init__(self, path: Path, disk: Disk, lives: Callable[[str], bool]) -> None:
        """Kept in the file `path`. `lives` tells whether there still is anything of a name; else it is forgotten."""
        self._path = path
        self._disk = disk
        self._lives = lives
        self._books: dict[str, dict[str, Identity]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            for name, files in json.loads(self._path.read_bytes()).items():
                self._books[name] = {file: tuple(identity) for file, identity in files.items()}

    def holds(self, name: str, seen: dict[str, Identity]) -> bool:
        """Nothing changed since `note`."""
        return name in self._books and self._books[name] == seen

    def note(self, name: str, seen: dict[str, Identity]) -> None:
        """It was read and found whole; `seen` is its `identity_of` from before that."""
        self._books = {known: files for known, files in self._books.items() if self._lives(known)}
        self._books[name] = seen
        fresh = self._path.with_name(self._path.name + ".new")
        with suppress(OSError):  # the disk is full: it is noted for as long as this process lives
            fresh.write_text(json.dumps(self._books), encoding="utf-8")
            self._disk.replace(fresh, self._path)


class Verified:
    """The book of a home's packs, in `packs.json`. A pack is verified when it is placed."""

    def __init__(self, home: Home, disk: Disk) -> None:
        self._book = Book(home.path / "packs.json", disk, lambda key: home.pack_dir(key).is_dir())

    def holds(self, pack: Pack) -> bool:
        """Nothing changed since `note`."""
        return self._book.holds(pack.index.key, identity(pack))

    def note(self, pack: Pack, seen: dict[str, Identity]) -> None:
        """The pack was read and found whole; `seen` is its `identity` from before that."""
        self._book.note(pack.index.key, seen)


def identity(pack: Pack) -> dict[str, Identity]:
    """What tells that a file of a pack was touched."""
    return identity_of(path for path, _ in pack.files())


def identity_of(paths: Iterable[Path]) -> dict[str, Identity]:
    """What tells that a file was touched, by path. A file that is not there has none."""
    found: dict[str, Identity] = {}
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            found[str(path)] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found
