"""Packs in the home: how one arrives, is found, and goes when nobody uses it (`rewarm.weights` has the format).

A pack is derived: from code, weights and what of the specification its tracing depends on. Its key says from what, so
the same deploy finds it again, whatever the function is called. Its bytes lie in data files that other packs refer to
as well. A data file arrives before the pack that needs it and goes after the last one, so a crash in between leaves at
most a data file that nobody refers to, which the next collection takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from rewarm.errors import Unavailable, WeightsCorrupt
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.store.artifacts import drop
from rewarm.store.disk import CHUNK_BYTES, Disk, disk_errors
from rewarm.store.home import Home
from rewarm.store.registry import canonical
from rewarm.weights.format import (
    FORMAT,
    INDEX_NAME,
    ONNX_DATA_NAME,
    DataFile,
    Index,
    Pack,
    TensorEntry,
    open_pack,
    read_index,
    tensor_hash,
    verify_file,
)
from rewarm.weights.writer import Known

#: What of a specification decides how a pack comes out, beside code and weights.
_PACKED_WITH = ("kind", "entry", "weights", "inputs", "env")


def pack_key(spec: FunctionSpec, code_sha: str, weights_sha: str) -> str:
    """What two deploys share if one's pack serves the other."""
    fields = spec.to_json()
    packed_with = {name: fields[name] for name in _PACKED_WITH}
    text = canonical({"format": FORMAT, "spec": packed_with, "code": code_sha, "weights": weights_sha})
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(revision: Revision) -> str | None:
    """`pack_key` of a stored revision; None if it has no weights. The pack need not be there."""
    if revision.weights_path is None:
        return None
    return pack_key(revision.spec, Path(revision.code_dir).name, Path(revision.weights_path).parent.name)


def open(home: Home, key: str) -> Pack:
    """The pack with this key. Raises WeightsCorrupt if it is missing, damaged or lacks a file, SystemFault."""
    pack = open_pack(home.pack_dir(key), home.tensors_dir)
    if pack.index.key != key:
        raise WeightsCorrupt(f"{pack.folder} holds the pack {pack.index.key}; deploy the function again")
    return pack


def known_tensors(home: Home) -> Known:
    """What the data files of all packs hold, of those that are whole by their sizes. Raises SystemFault."""
    known: dict[str, tuple[DataFile, int, int]] = {}
    with disk_errors("list the packs", home.packs_dir):
        keys = sorted(path.name for path in home.packs_dir.iterdir())
    for key in keys:
        with suppress(WeightsCorrupt):
            index = open(home, key).index
            if index.kind == "tensors":
                known |= {e.sha256: (index.files[e.file], e.begin, e.end) for e in index.tensors.values()}
    return known


def seal_pack(home: Home, folder: Path, disk: Disk) -> Index:
    """Step one: makes what was packed into `folder` read-only and durable → its index.

    Reads everything that the pack refers to, older data files too: from now on other packs trust these digests.
    Raises WeightsCorrupt if the files are not what the index says, Unavailable if an older one was collected meanwhile
    or is damaged (it is taken away then, and packing again writes another), SystemFault if the disk fails.
    """
    with disk_errors("store the pack", folder):
        index = read_index(folder)
        beside = {path.name: path for path in folder.iterdir() if path.name != INDEX_NAME}
        own = [
            (path, file)
            for path, file in Pack(index, folder, folder).files()
            if index.kind == "onnx" or path.name in beside  # tensors may lie in older files; a graph has its own
        ]
        strange = beside.keys() - {path.name for path, _ in own}
        if strange := strange | {name for name, path in beside.items() if path.is_symlink()}:
            raise WeightsCorrupt(f"{folder} holds {min(strange)!r}, which is not a file of its index; pack again")
        for path, file in own:
            verify_file(path, file)
        if index.kind == "tensors":
            _verify_tensors(home, folder, index, disk)
        for path in (*(path for path, _ in own), folder / INDEX_NAME):
            disk.chmod(path, 0o444)
            disk.sync(path)
        disk.chmod(folder, 0o755)
        disk.sync(folder)
    return index


def place_pack(home: Home, folder: Path, index: Index, disk: Disk) -> Pack:
    """Step two: the renames. A whole pack that is there already wins; a damaged one is replaced.

    Nothing may be collected meanwhile. Raises Unavailable as `seal_pack` does, and SystemFault; then `folder` is for
    the caller to remove.
    """
    target = home.pack_dir(index.key)
    with disk_errors("store the pack", target):
        try:
            open(home, index.key)
        except WeightsCorrupt:
            for file in index.files:
                if index.kind == "onnx":
                    _share(folder / ONNX_DATA_NAME, home, file, disk)
                else:
                    _place(folder / file.name, home, file, disk)
            disk.sync(home.tensors_dir)
            if target.exists():
                drop(home, target, disk)
            disk.replace(folder, target)
        else:
            disk.remove_tree(folder)
        disk.chmod(target, 0o555)
        # Also if it was there: whoever renamed it may have been killed before this line.
        disk.sync(home.packs_dir)
    return open(home, index.key)


def unused(home: Home, keys: Iterable[str]) -> list[Path]:
    """The packs that are not among `keys`, and after them the data files that none of `keys` refers to. Raises OSError.

    A pack whose index cannot be trusted refers to nothing: it cannot be opened, and packing again replaces it.
    """
    used = set(keys)
    names = {file.name for index in _indexes(home, used) for file in index.files}
    packs = [path for path in home.packs_dir.iterdir() if path.name not in used]
    return sorted(packs) + sorted(path for path in home.tensors_dir.iterdir() if path.name not in names)


def discard(home: Home, key: str, disk: Disk) -> None:
    """Takes away a damaged pack and what of its data files is damaged, so that packing again mends it.

    Other packs that refer to such a file are damaged as well: they cannot be opened any more. Raises SystemFault.
    """
    folder = home.pack_dir(key)
    with disk_errors("remove a damaged pack", folder):
        for index in _indexes(home, [key]):
            for file in index.files:
                path = home.tensors_dir / file.name
                try:
                    verify_file(path, file)
                except WeightsCorrupt:
                    if path.exists():
                        disk.unlink(path)
        if folder.exists():
            drop(home, folder, disk)


def _indexes(home: Home, keys: Iterable[str]) -> Iterator[Index]:
    for key in keys:
        with suppress(WeightsCorrupt):
            yield read_index(home.pack_dir(key))


def _is_whole(path: Path, file: DataFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes


def _place(staged: Path, home: Home, file: DataFile, disk: Disk) -> None:
    """Raises Unavailable and OSError."""
    target = home.tensors_dir / file.name
    if _is_whole(target, file):
        if staged.exists():
            disk.unlink(staged)
    elif staged.exists():
        disk.replace(staged, target)
    else:
        raise _gone(file)


def _share(staged: Path, home: Home, file: DataFile, disk: Disk) -> None:
    """The data of a graph lies beside it; a second name in the folder of tensors lets other packs share its pages."""
    target = home.tensors_dir / file.name
    if _is_whole(target, file):
        linked = staged.with_name(staged.name + ".link")
        with suppress(OSError):  # no links on this file system: every pack has a copy
            disk.link(target, linked)
        if linked.exists():
            disk.replace(linked, staged)
    else:
        target.unlink(missing_ok=True)
        with suppress(OSError):
            disk.link(staged, target)


def _verify_tensors(home: Home, folder: Path, index: Index, disk: Disk) -> None:
    """Every tensor is what its digest says. Raises WeightsCorrupt, Unavailable and OSError."""
    for number, file in enumerate(index.files):
        path = folder / file.name
        is_older = not path.exists()
        if is_older:
            path = home.tensors_dir / file.name
        if not _is_whole(path, file):
            raise _gone(file)
        try:
            # Equal tensors are one entry, looked at once.
            entries = {entry for entry in index.tensors.values() if entry.file == number}
            for entry in sorted(entries, key=lambda entry: entry.begin):
                _verify_tensor(path, entry)
        except WeightsCorrupt:
            if is_older:
                _take_if_damaged(path, file, disk)
            raise


def _take_if_damaged(path: Path, file: DataFile, disk: Disk) -> None:
    """A data file that is not what was written must not be referred to again. Raises Unavailable, if it was so."""
    try:
        verify_file(path, file)
    except WeightsCorrupt as error:
        disk.unlink(path)
        raise _gone(file) from error


def _verify_tensor(path: Path, entry: TensorEntry) -> None:
    digest = tensor_hash(entry.dtype, entry.shape)
    with path.open("rb", buffering=0) as reader:
        reader.seek(entry.begin)
        left = entry.end - entry.begin
        while chunk := reader.read(min(left, CHUNK_BYTES)):
            digest.update(chunk)
            left -= len(chunk)
    if digest.hexdigest() != entry.sha256:
        raise WeightsCorrupt(
            f"{path} has another tensor at {entry.begin} than its index says; deploy the function again"
        )


def _gone(file: DataFile) -> Unavailable:
    return Unavailable(f"{file.name}, which the pack refers to, is gone or was damaged; deploy the function again")
