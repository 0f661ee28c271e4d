"""Code and weights by content: once placed they never change.

Code is named by the sha256 over its files, sorted by path; for each file

    path (bytes)  00  'x' executable | '-' not  sha256 of its bytes (32 bytes)

and empty directories do not count. A weights file is named by the sha256 of its bytes.

Both are published in two steps. The slow one (read, hash, fsync) happens in tmp and needs no lock; the quick one is a
rename out of tmp, so a crash at any point leaves either nothing or all of it. Nothing is trusted to be durable before
its bytes, its names and the rename itself were synced, in this order.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rewarm.errors import BadDefinition
from rewarm.store.disk import CHUNK_BYTES, Disk, disk_errors
from rewarm.store.home import Home


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A weights file in the store: `weights/<sha256>/<file>`."""

    sha256: str
    file: str
    size_bytes: int


def tree_digest(folder: Path) -> str:
    """The digest of a folder of code; changes nothing. Raises BadDefinition for anything but files, and OSError."""
    total = hashlib.sha256()
    for relative, path in _files(folder):
        with path.open("rb") as file:
            executable = os.fstat(file.fileno()).st_mode & stat.S_IXUSR
            content = hashlib.file_digest(file, "sha256").digest()
        total.update(os.fsencode(relative) + b"\0" + (b"x" if executable else b"-") + content)
    return total.hexdigest()


def publish(home: Home, staged_dir: Path, disk: Disk | None = None) -> str:
    """Moves a staged folder of code into the artifacts and returns its digest; a copy that is there already wins.

    Raises BadDefinition if it holds anything but files and directories, SystemFault if the disk fails.
    """
    disk = disk or Disk()
    with disk_errors("store the code", home.artifacts_dir):
        digest = seal(staged_dir, disk)
        place(home, staged_dir, digest, disk)
    return digest


def seal(folder: Path, disk: Disk) -> str:
    """Step one: makes the files read-only and durable and returns the digest. Raises BadDefinition and OSError."""
    digest = tree_digest(folder)
    for _, path in _files(folder):
        disk.chmod(path, 0o555 if path.stat().st_mode & stat.S_IXUSR else 0o444)
        disk.sync(path)
    for parent, _, _ in os.walk(folder, topdown=False):
        # The top stays writable: to rename a directory into another one, its owner must be allowed to write it.
        disk.chmod(Path(parent), 0o755 if Path(parent) == folder else 0o555)
        disk.sync(Path(parent))
    return digest


def place(home: Home, sealed: Path, digest: str, disk: Disk) -> None:
    """Step two: the rename. Raises OSError."""
    target = home.artifact_dir(digest)
    if target.is_dir():
        disk.remove_tree(sealed)
    else:
        disk.replace(sealed, target)
    disk.chmod(target, 0o555)  # no __pycache__ may appear beside the code
    # Also if it was there: whoever renamed it may have been killed before this line.
    disk.sync(target.parent)


def publish_weights(home: Home, source: Path, disk: Disk | None = None) -> StoredWeights:
    """Copies one file into the weights; the source stays. Raises SystemFault if the disk fails."""
    disk = disk or Disk()
    folder = home.fresh()
    with disk_errors("store the weights", home.weights_dir):
        weights = copy_weights(source, folder, disk)
        place_weights(home, folder, weights, disk)
    return weights


def copy_weights(source: Path, folder: Path, disk: Disk) -> StoredWeights:
    """Step one: copies and hashes in one pass, so that what is named is what was written. Raises OSError."""
    digest, size_bytes, target = hashlib.sha256(), 0, folder / source.name
    with source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            size_bytes += len(chunk)
    disk.chmod(target, 0o444)
    disk.sync(target)
    disk.chmod(folder, 0o755)
    disk.sync(folder)
    return StoredWeights(digest.hexdigest(), source.name, size_bytes)


def place_weights(home: Home, folder: Path, weights: StoredWeights, disk: Disk) -> None:
    """Step two: the rename. Raises OSError."""
    target = home.weights_file(weights.sha256, weights.file)
    if not target.parent.is_dir():
        disk.replace(folder, target.parent)
    elif not is_whole(home, weights):
        _second_name(folder / weights.file, target, weights.size_bytes, disk)
    disk.remove_tree(folder)
    disk.sync(target.parent)
    disk.sync(home.weights_dir)


def is_whole(home: Home, weights: StoredWeights) -> bool:
    """True if the file is there with its size; the bytes are not read again."""
    target = home.weights_file(weights.sha256, weights.file)
    return target.is_file() and target.stat().st_size == weights.size_bytes


def drop(home: Home, path: Path, disk: Disk | None = None) -> None:
    """Takes an artifact, a pack or a weights directory away, or one file, at once for whoever looks.

    Raises SystemFault.
    """
    disk = disk or Disk()
    with disk_errors("remove what no revision uses", path):
        if not path.is_dir():
            disk.unlink(path)
            return
        doomed = home.fresh()
        disk.chmod(path, 0o700)
        disk.replace(path, doomed)
        disk.remove_tree(doomed)


def _second_name(copy: Path, target: Path, size_bytes: int, disk: Disk) -> None:
    """The same weights under another file name: one set of pages in memory if the file system can link."""
    for other in target.parent.iterdir():
        if other != target and other.stat().st_size == size_bytes:
            linked = copy.with_name(copy.name + ".link")
            with suppress(OSError):  # no links on this file system: the copy serves as well
                disk.link(other, linked)
                copy = linked
            break
    disk.replace(copy, target)


def _files(folder: Path) -> list[tuple[str, Path]]:
    """(relative path, path) of every file, in the order of the digest. Raises BadDefinition for links and devices."""
    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append((path.relative_to(folder).as_posix(), path))
            elif not stat.S_ISDIR(mode):
                raise BadDefinition(f"{path.relative_to(folder).as_posix()!r} is not a regular file; deploy files only")
    return sorted(found, key=lambda item: os.fsencode(item[0]))


def _raise(error: OSError) -> None:
    raise error
