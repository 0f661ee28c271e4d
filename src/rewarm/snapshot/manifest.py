"""What a snapshot is on the disk.

    <folder>/state           the VMM's device state, as it wrote it
    <folder>/memory          the guest's memory, page by page; zero pages are holes
    <folder>/loading-set     what the guest touches first, copied together (`loading`); may be missing with
    <folder>/layout          which of the three each page is mapped from (`regions`)
    <folder>/manifest.json   the manifest, as `sealed` writes it

It vouches for the other files and names the machine that made them:

    {"format": 1, "kind": "lang" | "user", "subject": key or digest of the revision, "platform": {…},
     "parts": {"state": [size_bytes, sha256], "memory": […], "loading-set": […], "layout": […]},
     "loading": [touched_pages, loading_pages, nonzero_pages, regions, merge_gap_pages, prefetch_gap_pages] | null,
     "seconds": {"publish": 14.2, …}}

The sha256 of a part is over its blocks of 64 KiB that are not all zero, each after its number (u64, little endian), so
holes are not read, and a copy that lost its holes is still the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from rewarm.errors import SnapshotCorrupt, SnapshotFailed, SnapshotMismatch, SystemFault
from rewarm.sealed import seal, unseal
from rewarm.snapshot.holes import data_extents
from rewarm.snapshot.regions import PAGE_BYTES, Layout

FORMAT = 1
MANIFEST_NAME = "manifest.json"
STATE_NAME, MEMORY_NAME, LOADING_SET_NAME, LAYOUT_NAME = "state", "memory", "loading-set", "layout"

_MANIFEST_BYTES_MAX = 1 << 20
_LAYOUT_BYTES_MAX = 64 << 20
_BLOCK_BYTES = 64 << 10
_ZERO_BLOCK = bytes(_BLOCK_BYTES)
_AGAIN = "it has to be made again"


class Part(NamedTuple):
    """A file of a snapshot, its size and the digest of what is not zero in it."""

    name: str
    size_bytes: int
    sha256: str


class LoadingSet(NamedTuple):
    """`touched_pages`: recorded, and in no long run of zero pages; `loading_pages`: with those in the merged gaps."""

    touched_pages: int
    loading_pages: int
    nonzero_pages: int
    regions: int
    merge_gap_pages: int
    prefetch_gap_pages: int


@dataclass(frozen=True, slots=True)
class Platform:
    """The machine that a snapshot needs: digests of the guest's files, the VMM and its version, and its hardware."""

    kernel: str
    initrd: str
    rootfs: str
    packages: str
    function: str
    vmm: str  # "QEMU 10.0.2 (Debian …)" | "Firecracker 1.17.0"
    machine: str
    cpu: str
    accel: str
    memory_bytes: int

    def differences(self, other: Platform) -> tuple[str, ...]:
        """Names of the fields in which the two are not equal."""
        names = (field.name for field in dataclasses.fields(self))
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


@dataclass(frozen=True, slots=True)
class Manifest:
    """`subject`: the Lang key or the digest of the revision. `seconds`: what was measured, by any name, at publish."""

    kind: Literal["lang", "user"]
    subject: str
    platform: Platform
    parts: Mapping[str, Part]
    loading: LoadingSet | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def with_loading(self, folder: Path, loading: LoadingSet) -> Manifest:
        """The same with the loading set and the layout that lie in `folder` now. Raises SnapshotFailed."""
        parts = {name: read_part(folder / name) for name in (LOADING_SET_NAME, LAYOUT_NAME)}
        return dataclasses.replace(self, parts={**self.parts, **parts}, loading=loading)

    def with_seconds(self, **seconds: float) -> Manifest:
        """The same with more that was measured."""
        return dataclasses.replace(self, seconds={**self.seconds, **seconds})

    def dumps(self) -> bytes:
        """The bytes of manifest.json: JSON in one spelling, after its digest."""
        fields = {
            "format": FORMAT, "kind": self.kind, "subject": self.subject,
            "platform": dataclasses.asdict(self.platform),
            "parts": {name: [part.size_bytes, part.sha256] for name, part in self.parts.items()},
            "loading": self.loading, "seconds": dict(self.seconds),
        }  # fmt: skip
        return seal("manifest", fields)

    @staticmethod
    def loads(data: bytes) -> Manifest:
        """The inverse of `dumps`. Raises SnapshotCorrupt for any other bytes, SnapshotMismatch for another format."""
        body = unseal("manifest", data)
        if body is None:
            raise SnapshotCorrupt(f"the manifest of a snapshot is damaged: its digest does not fit; {_AGAIN}")
        try:
            found = json.loads(body)
            if found["format"] != FORMAT:
                raise SnapshotMismatch(
                    f"a snapshot has format {found['format']!r}, this rewarm knows {FORMAT}; {_AGAIN}"
                )
            manifest = Manifest(
                kind=found["kind"],
                subject=found["subject"],
                platform=_platform(found["platform"]),
                parts={name: Part(name, size_bytes, sha256) for name, (size_bytes, sha256) in found["parts"].items()},
                loading=None if found["loading"] is None else LoadingSet(*found["loading"]),
                seconds=found["seconds"],
            )
            _check(manifest)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise SnapshotCorrupt(f"not the manifest of a snapshot ({error}); {_AGAIN}") from error
        return manifest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder with its manifest. `disk_bytes`: what its files take, holes not counted."""

    folder: Path
    manifest: Manifest
    disk_bytes: int

    @property
    def state(self) -> Path:
        return self.folder / STATE_NAME

    @property
    def memory(self) -> Path:
        return self.folder / MEMORY_NAME

    @property
    def loading_set(self) -> Path | None:
        return None if self.manifest.loading is None else self.folder / LOADING_SET_NAME

    @property
    def layout(self) -> Path | None:
        return None if self.manifest.loading is None else self.folder / LAYOUT_NAME

    def read_layout(self) -> Layout | None:
        """None if the snapshot has no loading set. Raises SnapshotCorrupt."""
        return None if self.layout is None else read_layout(self.layout)

    def files(self) -> list[tuple[Path, Part]]:
        """Every file that the manifest vouches for."""
        return [(self.folder / name, part) for name, part in self.manifest.parts.items()]


def describe(
    folder: Path,
    kind: Literal["lang", "user"],
    subject: str,
    platform: Platform,
    seconds: Mapping[str, float],
) -> Manifest:
    """The manifest of the state and the memory in `folder`, both of which are read. Raises SnapshotFailed."""
    parts = {name: read_part(folder / name) for name in (STATE_NAME, MEMORY_NAME)}
    manifest = Manifest(kind, subject, platform, parts, seconds=dict(seconds))
    try:
        _check(manifest)
    except ValueError as error:
        raise SnapshotFailed(f"{folder} holds no snapshot: {error}; try again") from error
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> Snapshot:
    """Makes the parts read-only and durable, and then the manifest appears by a rename; one that is there is replaced.

    Raises SnapshotFailed.
    """
    fresh, target = folder / (MANIFEST_NAME + ".new"), folder / MANIFEST_NAME
    try:
        for name in manifest.parts:
            (folder / name).chmod(0o444)
            _sync(folder / name)
        fresh.write_bytes(manifest.dumps())
        fresh.chmod(0o444)
        _sync(fresh)
        fresh.replace(target)
        _sync(folder)
        return Snapshot(folder, manifest, _disk_bytes(folder, manifest))
    except OSError as error:
        raise SnapshotFailed(f"cannot write the manifest in {folder}: {error}; is there space on the disk?") from error


def open_snapshot(folder: Path, platform: Platform | None = None) -> Snapshot:
    """Reads the manifest and the layout, and looks at the sizes of all files; the large ones are read by `verify`.

    Raises SnapshotCorrupt if anything is missing, damaged or of another size; SnapshotMismatch if it is of another
    format, or needs a machine other than `platform`; SystemFault if the disk fails.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            manifest = Manifest.loads(file.read(_MANIFEST_BYTES_MAX))
        if platform is not None:
            _compare(manifest.platform, platform, folder)
        for name, part in manifest.parts.items():
            path = folder / name
            size_bytes = path.stat().st_size
            if size_bytes != part.size_bytes or not path.is_file():
                raise SnapshotCorrupt(f"{path} has {size_bytes} bytes, not {part.size_bytes}; {_AGAIN}")
        snapshot = Snapshot(folder, manifest, _disk_bytes(folder, manifest))
    except OSError as error:
        _refuse(path, error)
    layout = snapshot.read_layout()
    if layout is not None and (
        layout.memory_pages * PAGE_BYTES != manifest.parts[MEMORY_NAME].size_bytes
        or layout.loading_pages * PAGE_BYTES != manifest.parts[LOADING_SET_NAME].size_bytes
    ):
        raise SnapshotCorrupt(f"{snapshot.layout} is of another snapshot; {_AGAIN}")
    return snapshot


def verify(snapshot: Snapshot) -> None:
    """Reads all files, but for their holes. Raises SnapshotCorrupt if one is not what was written, and SystemFault."""
    for path, part in snapshot.files():
        try:
            found = _digest(path)
        except OSError as error:
            _refuse(path, error)
        if found != part:
            raise SnapshotCorrupt(f"{path} is not what was written: its digest does not fit; {_AGAIN}")


def read_part(path: Path) -> Part:
    """A file as it is now. Raises SnapshotFailed."""
    try:
        return _digest(path)
    except OSError as error:
        raise SnapshotFailed(f"cannot read {path}, a part of a new snapshot: {error.strerror or error}") from error


def read_layout(path: Path) -> Layout:
    """Raises SnapshotCorrupt and SystemFault."""
    try:
        with path.open("rb") as file:
            return Layout.loads(file.read(_LAYOUT_BYTES_MAX))
    except OSError as error:
        _refuse(path, error)


def _digest(path: Path) -> Part:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        done = 0  # blocks: two extents may meet within one
        for begin, end in data_extents(file.fileno(), size_bytes):
            first, done = max(done, begin // _BLOCK_BYTES), -(-end // _BLOCK_BYTES)
            for block in range(first, done):
                data = os.pread(file.fileno(), _BLOCK_BYTES, block * _BLOCK_BYTES)
                if not _ZERO_BLOCK.startswith(data):
                    digest.update(block.to_bytes(8, "little"))
                    digest.update(data)
    return Part(path.name, size_bytes, digest.hexdigest())


def _platform(found: dict[str, Any]) -> Platform:
    """Raises TypeError."""
    if "qemu" in found:  # of a rewarm that knew no other VMM
        found = {**found, "vmm": f"QEMU {found['qemu']}"}
        del found["qemu"]
    return Platform(**found)


def _check(manifest: Manifest) -> None:
    """What a reader relies on. Raises ValueError."""
    platform = dataclasses.asdict(manifest.platform)
    memory_bytes = platform.pop("memory_bytes")
    if manifest.kind not in ("lang", "user") or type(manifest.subject) is not str:
        raise ValueError(f"kind {manifest.kind!r} of {manifest.subject!r}")
    if type(memory_bytes) is not int or any(type(value) is not str for value in platform.values()):
        raise ValueError(f"platform {manifest.platform!r}")
    names = {STATE_NAME, MEMORY_NAME} | (set() if manifest.loading is None else {LOADING_SET_NAME, LAYOUT_NAME})
    if set(manifest.parts) != names:
        raise ValueError(f"parts {sorted(manifest.parts)}")
    for part in manifest.parts.values():
        if type(part.size_bytes) is not int or type(part.sha256) is not str:
            raise ValueError(f"part {part!r}")
    if manifest.parts[MEMORY_NAME].size_bytes != memory_bytes or memory_bytes % PAGE_BYTES:
        raise ValueError(f"a memory of {manifest.parts[MEMORY_NAME].size_bytes} bytes for a guest of {memory_bytes}")
    if any(type(number) is not int for number in manifest.loading or ()):
        raise ValueError(f"loading set {manifest.loading!r}")
    if any(type(value) not in (int, float) or not math.isfinite(value) for value in manifest.seconds.values()):
        raise ValueError(f"seconds {dict(manifest.seconds)!r}")


def _compare(found: Platform, wanted: Platform, folder: Path) -> None:
    if names := found.differences(wanted):
        pairs = (f"{name} {_short(getattr(found, name))}, not {_short(getattr(wanted, name))}" for name in names)
        raise SnapshotMismatch(f"the snapshot {folder} is of another machine ({'; '.join(pairs)}); {_AGAIN}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:12] + "…"


def _disk_bytes(folder: Path, manifest: Manifest) -> int:
    return sum((folder / name).stat().st_blocks * 512 for name in (*manifest.parts, MANIFEST_NAME))


def _sync(path: Path) -> None:
    """Returns when the file's bytes, or the directory's names, are on the device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse(path: Path, error: OSError) -> NoReturn:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        raise SnapshotCorrupt(f"{path} is missing; {_AGAIN}") from error
    raise SystemFault(f"cannot read {path}: {error.strerror or error}; check the disk and its permissions") from error
