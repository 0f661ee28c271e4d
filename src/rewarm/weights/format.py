"""What a pack is on the disk.

    packs/<key>/index.json           the index, as `sealed` writes it
    packs/<key>/model.onnx           kind "onnx" only: the graph
    packs/<key>/weights.data         kind "onnx" only: its external data, another name of tensors/<sha256>.data
    tensors/<sha256>.safetensors     tensors of one or many packs, named by the digest of the file

A data file is a valid safetensors file in which every tensor begins at a multiple of 4096 bytes, so that each can be
mapped, populated and locked on its own. The index says which bytes a layer needs, in execution order.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

import orjson

from rewarm.errors import BadDefinition, SystemFault, WeightsCorrupt
from rewarm.facts.pack import LayerFacts, PackFacts
from rewarm.sealed import seal, unseal

FORMAT = 1
ALIGN_BYTES = 4096
INDEX_NAME, GRAPH_NAME, ONNX_DATA_NAME = "index.json", "model.onnx", "weights.data"

#: Code of a dtype in safetensors → bytes per element.
DTYPES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

BytesLike = bytes | bytearray | memoryview

_KEY = re.compile(r"\w[\w.-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = {"tensors": ".safetensors", "onnx": ".data"}
_VERIFY_CHUNK_BYTES = 4 << 20


class DataFile(NamedTuple):
    """An immutable file: its name (in the folder of tensors), its size and the digest of its bytes."""

    name: str
    size_bytes: int
    sha256: str


class TensorEntry(NamedTuple):
    """Where a tensor lies: `begin` to `end` are bytes of the data file `file` (a place in `Index.files`).

    `sha256` is `tensor_digest`: equal for equal tensors, whatever their names.
    """

    dtype: str
    shape: tuple[int, ...]
    file: int
    begin: int
    end: int
    sha256: str


class LayerEntry(NamedTuple):
    """What runs at once: the names of its tensors, and seconds of compute in the first pass (0.0: not measured)."""

    name: str
    tensors: tuple[str, ...]
    on_demand: bool
    compute_s: float


class Span(NamedTuple):
    """Bytes `begin` to `end` of the data file `file`, in whole pages; the last page of a file may be cut."""

    file: int
    begin: int
    end: int


@dataclass(frozen=True)
class Index:
    """One pack. Raises BadDefinition for what cannot be one.

    `tied`: other name of a tensor → its name in `tensors`. `layers` stand in execution order: as `traced` in one run,
    or as the module registered them. `setup_s`: seconds of construction before the first layer. `graph`: model.onnx.
    A pack of kind "onnx" has at most one data file; its tensors need not be aligned.
    """

    key: str
    kind: Literal["tensors", "onnx"]
    order: Literal["traced", "registered"]
    source_sha256: str
    files: tuple[DataFile, ...]
    tensors: dict[str, TensorEntry]
    layers: tuple[LayerEntry, ...]
    tied: dict[str, str]
    setup_s: float = 0.0
    graph: DataFile | None = None

    def __post_init__(self) -> None:
        _check(self)

    def facts(self) -> PackFacts:
        """Without tensors: layers count the bytes that no layer streamed before them has brought."""
        sizes = [sum(span.end - span.begin for span in spans) for spans in self._own_spans]
        layers = (
            LayerFacts(layer.name, size_bytes, layer.compute_s, layer.on_demand)
            for layer, size_bytes in zip(self.layers, sizes, strict=True)
        )
        spans = ((self.files[span.file].name, span.begin, span.end) for span in self.streamed_spans())
        tables = (
            (no, self.files[span.file].name, span.begin, span.end)
            for no, layer in enumerate(self.layers) if layer.on_demand
            for span in self._own_spans[no]
        )  # fmt: skip
        return PackFacts(self.key, tuple(layers), self.setup_s, tuple(spans), tuple(tables))

    def spans(self, layer_no: int) -> tuple[Span, ...]:
        """The bytes that a layer needs, by file and place, each once; neighbours are one span."""
        entries = (self.tensors[name] for name in self.layers[layer_no].tensors)
        pages = (_pages(entry, self.files[entry.file].size_bytes) for entry in entries if entry.begin < entry.end)
        return merged(sorted(pages))

    def streamed_spans(self) -> tuple[Span, ...]:
        """The bytes of all layers that are not on demand, in execution order, each once."""
        own = zip(self.layers, self._own_spans, strict=True)
        return merged(span for layer, spans in own if not layer.on_demand for span in spans)

    def pinned_spans(self, tables: Collection[int] = ()) -> tuple[Span, ...]:
        """Of which the first B bytes are pinned: `tables`, of the layers on demand, then what is streamed.

        A number that is no such layer's is passed over.
        """
        layers = range(len(self.layers))
        of_tables = (self._own_spans[no] for no in tables if no in layers and self.layers[no].on_demand)
        return (*(span for spans in of_tables for span in spans), *self.streamed_spans())

    def shares(self, seconds: float) -> tuple[float, ...]:
        """Compute time by layer, in proportion to what was measured at deploy, or to the bytes if nothing was."""
        parts = [layer.compute_s for layer in self.layers]
        if not any(parts):
            sizes = {name: entry.end - entry.begin for name, entry in self.tensors.items()}
            parts = [0.0 if one.on_demand else float(sum(map(sizes.__getitem__, one.tensors))) for one in self.layers]
        scale = seconds / (sum(parts) or 1.0)
        return tuple(scale * part for part in parts)

    @cached_property
    def _own_spans(self) -> tuple[tuple[Span, ...], ...]:
        """Of every layer what none before it has. Those on demand come last: what they share is streamed."""
        own: dict[int, tuple[Span, ...]] = {}
        taken: tuple[Span, ...] = ()
        for layer_no in sorted(range(len(self.layers)), key=lambda number: self.layers[number].on_demand):
            own[layer_no] = tuple(part for span in self.spans(layer_no) for part in _without(span, taken))
            taken = merged(sorted((*taken, *own[layer_no])))
        return tuple(own[layer_no] for layer_no in range(len(self.layers)))

    def dumps(self) -> bytes:
        """The bytes of index.json: JSON in one spelling, after its digest."""
        fields = {
            "format": FORMAT, "key": self.key, "kind": self.kind, "order": self.order,
            "source_sha256": self.source_sha256, "files": self.files, "tensors": self.tensors, "tied": self.tied,
            "layers": self.layers, "setup_s": self.setup_s, "graph": self.graph,
        }  # fmt: skip
        return seal("index", fields)

    @staticmethod
    def loads(data: bytes) -> Index:
        """The inverse of `dumps`. Raises WeightsCorrupt for any other bytes."""
        body = unseal("index", data)
        if body is None:
            raise WeightsCorrupt("the index of a pack is damaged: its digest does not fit; deploy the function again")
        try:
            found = orjson.loads(body)  # json of Python takes as long as all the rest of opening a pack
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']!r}, this rewarm knows {FORMAT}")
            return Index(
                key=found["key"],
                kind=found["kind"],
                order=found["order"],
                source_sha256=found["source_sha256"],
                files=tuple(DataFile(*file) for file in found["files"]),
                tensors={
                    name: TensorEntry(dtype, tuple(shape), *rest)
                    for name, (dtype, shape, *rest) in found["tensors"].items()
                },
                layers=tuple(LayerEntry(name, tuple(tensors), *rest) for name, tensors, *rest in found["layers"]),
                tied=found["tied"],
                setup_s=found["setup_s"],
                graph=DataFile(*found["graph"]) if found["graph"] is not None else None,
            )
        except (BadDefinition, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise WeightsCorrupt(f"not the index of a pack ({error}); deploy the function again") from error


@dataclass(frozen=True)
class Pack:
    """An index with the places of its files."""

    index: Index
    folder: Path
    tensors_dir: Path

    def path(self, file_no: int) -> Path:
        """The data file to map. Of a graph it is the one beside it, which onnxruntime maps: all share its pages."""
        if self.index.kind == "onnx":
            return self.folder / ONNX_DATA_NAME
        return self.tensors_dir / self.index.files[file_no].name

    def files(self) -> list[tuple[Path, DataFile]]:
        """Every file that the index vouches for, the graph included."""
        found = [(self.path(file_no), file) for file_no, file in enumerate(self.index.files)]
        if self.index.graph is not None:
            found.append((self.folder / GRAPH_NAME, self.index.graph))
        return found


def open_pack(folder: Path, tensors_dir: Path) -> Pack:
    """Reads the index and looks at the sizes of all files; reads none of them (that is `verify`).

    Raises WeightsCorrupt if anything is missing, damaged or of another size, SystemFault if the disk fails.
    """
    pack = Pack(read_index(folder), folder, tensors_dir)
    for path, file in pack.files():
        try:
            found = os.stat(path)
        except OSError as error:
            _refuse(path, error)
        if found.st_size != file.size_bytes or not stat.S_ISREG(found.st_mode):
            raise WeightsCorrupt(f"{path} has {found.st_size} bytes, not {file.size_bytes}; deploy the function again")
    return pack


def read_index(folder: Path) -> Index:
    """The index alone, whatever became of the files. Raises WeightsCorrupt and SystemFault."""
    path = folder / INDEX_NAME
    try:
        return Index.loads(path.read_bytes())
    except OSError as error:
        _refuse(path, error)


def verify(pack: Pack) -> None:
    """Reads every file of a pack. Raises WeightsCorrupt if one is not what was written, SystemFault if it cannot."""
    for path, file in pack.files():
        verify_file(path, file)


def verify_file(path: Path, file: DataFile) -> None:
    """Raises as `verify` does."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_VERIFY_CHUNK_BYTES))
    try:
        with path.open("rb", buffering=0) as reader:
            while count := reader.readinto(buffer):
                digest.update(buffer[:count])
            size_bytes = reader.tell()
    except OSError as error:
        _refuse(path, error)
    if (digest.hexdigest(), size_bytes) != (file.sha256, file.size_bytes):
        raise WeightsCorrupt(f"{path} is not what was written: its digest does not fit; deploy the function again")


def tensor_digest(dtype: str, shape: tuple[int, ...], data: BytesLike) -> str:
    """What equal tensors share: sha256 over dtype, shape and bytes."""
    digest = tensor_hash(dtype, shape)
    digest.update(data)
    return digest.hexdigest()


def tensor_hash(dtype: str, shape: tuple[int, ...]) -> hashlib._Hash:
    """A `tensor_digest` that waits for the bytes."""
    return hashlib.sha256(f"{dtype} {','.join(map(str, shape))}\n".encode())


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """The size of a tensor. Raises BadDefinition for an unknown dtype or a shape that cannot be."""
    if dtype not in DTYPES:
        raise BadDefinition(f"dtype {dtype!r} cannot be packed; a pack knows {', '.join(sorted(DTYPES))}")
    size_bytes, dimensions = DTYPES[dtype], tuple(shape)
    for dimension in dimensions:
        if type(dimension) is not int or dimension < 0:
            raise BadDefinition(f"a shape holds whole numbers from 0, not {list(dimensions)!r}")
        size_bytes *= dimension
    return size_bytes


def _refuse(path: Path, error: OSError) -> NoReturn:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        raise WeightsCorrupt(f"{path} is missing; deploy the function again") from error
    raise SystemFault(f"cannot read {path}: {error.strerror or error}; check the disk and its permissions") from error


def _pages(entry: TensorEntry, file_bytes: int) -> Span:
    begin = entry.begin // ALIGN_BYTES * ALIGN_BYTES
    return Span(entry.file, begin, min(-(-entry.end // ALIGN_BYTES) * ALIGN_BYTES, file_bytes))


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """What follows on what stands before it becomes one with it."""
    merged: list[Span] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last is not None and last.file == span.file and last.begin <= span.begin <= last.end:
            merged[-1] = Span(last.file, last.begin, max(last.end, span.end))
        else:
            merged.append(span)
    return tuple(merged)


def without(spans: Iterable[Span], taken: Iterable[Span]) -> Iterator[Span]:
    """What is in the one and not in the other."""
    ordered = merged(sorted(taken))
    for span in spans:
        yield from _without(span, ordered)


def _without(span: Span, taken: Iterable[Span]) -> Iterator[Span]:
    """What is left of a span. `taken` is sorted and has no overlaps."""
    begin = span.begin
    for other in taken:
        if other.file == span.file and other.begin < span.end and begin < other.end:
            if begin < other.begin:
                yield Span(span.file, begin, other.begin)
            begin = other.end
    if begin < span.end:
        yield Span(span.file, begin, span.end)


def _check(index: Index) -> None:
    """Everything that a reader relies on. Raises BadDefinition."""
    if index.kind not in _SUFFIX or index.order not in ("traced", "registered"):
        raise BadDefinition(f"a pack cannot be of kind {index.kind!r} and order {index.order!r}")
    if type(index.key) is not str or not _KEY.fullmatch(index.key) or type(index.source_sha256) is not str:
        raise BadDefinition(f"a pack cannot have the key {index.key!r} and the source {index.source_sha256!r}")
    if (index.graph is not None) != (index.kind == "onnx") or (index.kind == "onnx" and len(index.files) > 1):
        count = len(index.files)
        raise BadDefinition(f"a pack of kind {index.kind!r} cannot have {count} data files and graph {index.graph!r}")
    for file in index.files:
        _check_file(file, file.sha256 + _SUFFIX[index.kind])
    if index.graph is not None:
        _check_file(index.graph, GRAPH_NAME)
    for name, entry in index.tensors.items():
        _check_tensor(name, entry, index)
    _check_names(index)
    # It refuses durations that cannot be. Sizes are those of files, which were looked at.
    PackFacts(index.key, tuple(LayerFacts(layer.name, 0, layer.compute_s) for layer in index.layers), index.setup_s)


def _check_file(file: DataFile, name: str) -> None:
    # The name becomes a path: it must not lead elsewhere.
    if not _SHA256.fullmatch(file.sha256) or file.name != name or type(file.size_bytes) is not int:
        raise BadDefinition(f"a pack cannot refer to {file!r}")


def _check_tensor(name: str, entry: TensorEntry, index: Index) -> None:
    dtype, shape, file, begin, end, sha256 = entry  # there may be thousands
    if not type(file) is type(begin) is type(end) is int or not 0 <= file < len(index.files):
        raise BadDefinition(f"tensor {name!r} of a pack cannot lie at {(file, begin, end)!r}")
    aligned = begin % ALIGN_BYTES == 0 or index.kind == "onnx"
    if not aligned or not 0 <= begin <= end <= index.files[file].size_bytes:
        raise BadDefinition(f"tensor {name!r} of a pack cannot lie at {begin}-{end} of {index.files[file]!r}")
    if end - begin != tensor_bytes(dtype, shape) or not _SHA256.fullmatch(sha256):
        raise BadDefinition(f"tensor {name!r} of a pack cannot be {entry!r}")


def _check_names(index: Index) -> None:
    names = index.tensors
    if not index.layers:
        raise BadDefinition("a pack has at least one layer; this model has none")
    for layer in index.layers:
        if type(layer.name) is not str or type(layer.on_demand) is not bool:
            raise BadDefinition(f"a pack cannot have the layer {layer!r}")
        if missing := [name for name in layer.tensors if name not in names]:
            raise BadDefinition(f"layer {layer.name!r} of a pack names {missing[0]!r}, which is no tensor of it")
    if wrong := [alias for alias, name in index.tied.items() if alias in names or name not in names]:
        raise BadDefinition(f"{wrong[0]!r} cannot be tied to {index.tied[wrong[0]]!r} in a pack")
