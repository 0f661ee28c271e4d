"""Makes a pack of tensors: an index, and at most one new data file.

What a known data file holds already (the same dtype, shape and bytes) is referred to and not written again, and equal
tensors of one model are written once. The rest follows in execution order:

    8 bytes                   length of the header
    header                    JSON of safetensors, then spaces up to a multiple of 4096
    tensors                   each at a multiple of 4096; what lies between two is a tensor of bytes, `__pad__.N`

The same input gives the same bytes, so the same model packed twice is the same file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from rewarm.errors import BadDefinition, SystemFault
from rewarm.weights.format import (
    ALIGN_BYTES,
    INDEX_NAME,
    BytesLike,
    DataFile,
    Index,
    LayerEntry,
    TensorEntry,
    tensor_bytes,
    tensor_digest,
)

#: `tensor_digest` → where a tensor lies: file, begin, end.
Known = Mapping[str, tuple[DataFile, int, int]]

_RESERVED = ("__pad__.", "__metadata__")
_STAGED_NAME = "new.safetensors"


class TensorIn(NamedTuple):
    """A tensor to pack. `data` is called once to hash and, if the bytes are new, once more to write."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], BytesLike]


class LayerIn(NamedTuple):
    """What runs at once. A tensor whose name an earlier layer gave already is that tensor, needed here too."""

    name: str
    tensors: tuple[TensorIn, ...]
    on_demand: bool = False
    compute_s: float = 0.0


class _Place(NamedTuple):
    sha256: str
    known: tuple[DataFile, int, int] | None  # None: in the new file, from `begin`
    begin: int
    size_bytes: int


@dataclass
class _Layout:
    """Where everything goes. `begin` of what is new counts from the end of the header."""

    known: Known
    places: dict[str, _Place] = field(default_factory=dict)  # by name of tensor
    kinds: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)  # dtype and shape of each
    new: list[tuple[TensorIn, int]] = field(default_factory=list)  # what the new file holds, in order, padding included
    end: int = 0
    _by_digest: dict[str, _Place] = field(default_factory=dict)

    def add(self, tensor: TensorIn) -> None:
        """Raises BadDefinition."""
        name, kind = tensor.name, (tensor.dtype, tensor.shape)
        if name in self.places:
            if self.kinds[name] != kind:
                raise BadDefinition(f"tensor {name!r} is {self.kinds[name]} in one layer and {kind} in another")
            return
        if not name or name.startswith(_RESERVED):
            raise BadDefinition(f"a tensor cannot be named {name!r}; give it another name")
        size_bytes = tensor_bytes(*kind)
        sha256 = tensor_digest(*kind, _bytes_of(tensor, size_bytes))
        place = self._by_digest.get(sha256)
        if place is None:
            found = self.known.get(sha256)
            place = _Place(sha256, found, found[1] if found else self._append(tensor, size_bytes), size_bytes)
            self._by_digest[sha256] = place
        self.kinds[name], self.places[name] = kind, place

    def header(self) -> bytes:
        """What stands before the tensors, in whole pages."""
        entries = {
            tensor.name: {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": (begin, begin + tensor_bytes(tensor.dtype, tensor.shape)),
            }
            for tensor, begin in self.new
        }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGN_BYTES)
        return len(text).to_bytes(8, "little") + text

    def _append(self, tensor: TensorIn, size_bytes: int) -> int:
        if gap := -self.end % ALIGN_BYTES:
            self.new.append((TensorIn(f"__pad__.{len(self.new)}", "U8", (gap,), lambda: bytes(gap)), self.end))
        begin = self.end + gap
        self.new.append((tensor, begin))
        self.end = begin + size_bytes
        return begin


def write_pack(
    folder: Path,
    tensors_dir: Path,
    layers: Sequence[LayerIn],
    *,
    key: str,
    order: Literal["traced", "registered"],
    source_sha256: str,
    tied: Mapping[str, str] | None = None,
    setup_s: float = 0.0,
    known: Known | None = None,
) -> Index:
    """Writes index.json and, if any tensor is new, one data file into `folder`; nothing is placed or synced.

    `layers` stand in execution order. `tied`: other name → name of a tensor in a layer. `known`: what data files in
    `tensors_dir` hold; what went from there meanwhile is written anew.

    Raises BadDefinition for what cannot be packed, SystemFault if the disk fails; `folder` is as before then.
    """
    known = known or {}
    there = {file for file in {file for file, _, _ in known.values()} if _is_there(tensors_dir, file)}
    layout = _Layout({sha256: place for sha256, place in known.items() if place[0] in there})
    staged = folder / _STAGED_NAME
    written = [staged]
    try:
        for layer in layers:
            for tensor in layer.tensors:
                layout.add(tensor)
        new, data_begin = _write_data(staged, layout) if layout.new else (None, 0)
        if new is not None:
            written.append(staged.replace(folder / new.name))
        files, tensors = _entries(layout, new, data_begin)
        index = Index(
            key=key,
            kind="tensors",
            order=order,
            source_sha256=source_sha256,
            files=files,
            tensors=tensors,
            layers=tuple(
                LayerEntry(la.name, tuple(t.name for t in la.tensors), la.on_demand, la.compute_s) for la in layers
            ),
            tied=dict(tied or {}),
            setup_s=setup_s,
        )
        written.append(folder / INDEX_NAME)
        written[-1].write_bytes(index.dumps())
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _fault(folder, error) from error
        raise
    return index


def dump_known(known: Known) -> bytes:
    """For another process; `load_known` is the inverse."""
    return json.dumps(known).encode()


def load_known(data: bytes) -> Known:
    return {sha256: (DataFile(*file), begin, end) for sha256, (file, begin, end) in json.loads(data).items()}


def _entries(
    layout: _Layout, new: DataFile | None, data_begin: int
) -> tuple[tuple[DataFile, ...], dict[str, TensorEntry]]:
    """The files in the order of their first use, and every tensor's place in them."""
    numbers: dict[DataFile, int] = {}
    tensors: dict[str, TensorEntry] = {}
    for name, place in layout.places.items():
        file, begin = (place.known[0], place.begin) if place.known else (new, data_begin + place.begin)
        assert file is not None, "a tensor is new, so there is a new file"
        number = numbers.setdefault(file, len(numbers))
        tensors[name] = TensorEntry(*layout.kinds[name], number, begin, begin + place.size_bytes, place.sha256)
    return tuple(numbers), tensors


def _write_data(path: Path, layout: _Layout) -> tuple[DataFile, int]:
    """The file and where its tensors begin. Raises OSError and BadDefinition."""
    header = layout.header()
    size_bytes = len(header) + layout.end
    digest = hashlib.sha256(header)
    with path.open("xb") as writer:
        # A disk that is too full says so now, and not after some gigabytes.
        os.posix_fallocate(writer.fileno(), 0, size_bytes)
        writer.write(header)
        for tensor, _ in layout.new:
            _copy(tensor, writer, digest)
    sha256 = digest.hexdigest()
    return DataFile(f"{sha256}.safetensors", size_bytes, sha256), len(header)


def _copy(tensor: TensorIn, writer: BinaryIO, digest: hashlib._Hash) -> None:
    data = _bytes_of(tensor, tensor_bytes(tensor.dtype, tensor.shape))
    digest.update(data)
    writer.write(data)


def _bytes_of(tensor: TensorIn, size_bytes: int) -> memoryview:
    data = memoryview(tensor.data())
    if data.nbytes != size_bytes:
        raise BadDefinition(
            f"tensor {tensor.name!r} of dtype {tensor.dtype} and shape {list(tensor.shape)} has {size_bytes} bytes, "
            f"but its data {data.nbytes}"
        )
    return data


def _is_there(tensors_dir: Path, file: DataFile) -> bool:
    try:
        return (tensors_dir / file.name).stat().st_size == file.size_bytes
    except OSError:
        return False


def _fault(folder: Path, error: OSError) -> SystemFault:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space there or choose another directory with --home" if full else "check the disk"
    return SystemFault(f"cannot write the pack: {folder}: {error.strerror or error}; {hint}")
