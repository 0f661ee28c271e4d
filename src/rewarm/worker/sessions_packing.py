"""Packing an ONNX model: the graph optimised once, its weights in one file in the order in which a run reads them.

    model.onnx     the optimised graph; initialisers of 1 KiB and more are external data
    weights.data   those, each at a multiple of 4096 bytes, in the order of their first use, so that the loader streams
                   them and a pinned prefix is what a run needs first; tables that are read by row come last
    index.json     the layers: initialisers first used one after another, with measured seconds of compute

onnxruntime optimises up to its level EXTENDED. The level above, ALL, changes layouts of convolutions to blocks (NCHWc)
as wide as this CPU's vectors: such a graph is tied to the kind of CPU that it was made on, and a home may move. What
ALL adds is done in service, by the second session (`sessions.Swap`).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import mmap
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rewarm.errors import BadDefinition
from rewarm.store.disk import disk_errors
from rewarm.weights.format import (
    ALIGN_BYTES,
    GRAPH_NAME,
    INDEX_NAME,
    ONNX_DATA_NAME,
    DataFile,
    Index,
    LayerEntry,
    Pack,
    TensorEntry,
    tensor_digest,
)
from rewarm.worker import sessions_graph as graphs

#: A smaller initialiser stays in the graph: kernels ask for shapes and axes when the session is made.
EXTERNAL_BYTES = 1 << 10

_RAW_NAME, _RAW_DATA_NAME = "raw.onnx", "raw.data"

#: Element type of ONNX → dtype of a pack. Others (strings, 4 bits, complex) stay in the graph.
_DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32",
    13: "U64", 16: "BF16", 17: "F8_E4M3", 18: "F8_E4M3FNUZ", 19: "F8_E5M2", 20: "F8_E5M2FNUZ",
}  # fmt: skip
_PROTOBUF_BYTES_MAX = (1 << 31) - 1
_INSIDE = 0  # where a tensor's data is: TensorProto.DataLocation


class NotPacked(Exception):
    """Nothing is wrong, but there will be no pack; says why in one line."""


def pack_onnx(weights_path: Path, out: Path, *, key: str, source_sha256: str) -> Index:
    """Write the pack of the ONNX file `weights_path` into the folder `out`, which is there and empty.

    Raises NotPacked without the package onnx, BadDefinition for a file that is no usable model, SystemFault if the disk
    fails; what `out` holds then is to be thrown away. Needs ORT_DISABLE_TELEMETRY in the environment, as instances do.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise NotPacked(f"the package {error.name} is not installed: pip install 'rewarm[onnx]'") from error
    from rewarm.worker.sessions_timing import measure

    with disk_errors("pack the model", out):
        _check_source(onnx, weights_path)
        _optimise(weights_path, out)
        model = onnx.load(out / _RAW_NAME, load_external_data=False)
        _settle(model)
        timing = measure(onnx, model, out)
        order = range(len(model.graph.node)) if timing is None else timing.order
        nodes = [model.graph.node[place] for place in order]
        with _Raw(out / _RAW_DATA_NAME) as raw:
            weights = _weights(model.graph, raw)
            places = graphs.first_reads(nodes, weights.keys())
            sizes = {name: len(raw.bytes_of(weights[name])) for name in places}
            tables = graphs.tables(model.graph, [weights[name] for name in places], sizes)
            streamed_first = sorted(places, key=lambda name: name in tables)
            files, tensors = _write_data(out / ONNX_DATA_NAME, raw, [weights[name] for name in streamed_first])
        layers = _layers(graphs.groups(places, sizes, tables, () if timing is None else timing.node_s))
        _drop(model.graph, weights.keys() - places.keys())
        onnx.save(model, out / GRAPH_NAME)
        for name in (_RAW_NAME, _RAW_DATA_NAME):
            (out / name).unlink(missing_ok=True)
        saved = (out / GRAPH_NAME).read_bytes()
        graph = DataFile(GRAPH_NAME, len(saved), hashlib.sha256(saved).hexdigest())
        index = Index(key, "onnx", "traced", source_sha256, files, tensors, layers, {}, graph=graph)
        index = dataclasses.replace(index, setup_s=_setup_s(index, out))
        (out / INDEX_NAME).write_bytes(index.dumps())
    return index


def _check_source(onnx: Any, path: Path) -> None:
    """Raises BadDefinition with what a person can do about it."""
    from google.protobuf.message import DecodeError

    if path.stat().st_size > _PROTOBUF_BYTES_MAX:
        raise BadDefinition(
            f"{path.name} is larger than 2 GB, which no ONNX model in one file can be; deploy a smaller one"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BadDefinition(f"{path.name} is not an ONNX model, or is cut short; export it again") from error
    if not model.graph.node:
        raise BadDefinition(f"{path.name} is an ONNX model without nodes; export it again")
    for graph in graphs.every_graph(model.graph):
        for tensor in graph.initializer:
            if tensor.external_data:
                where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
                text = f"{path.name} keeps its weights in another file ({where}), which is not deployed with it"
                raise BadDefinition(f"{text}; save it as one file: onnx.save(onnx.load(path), path)")


def _optimise(path: Path, out: Path) -> None:
    """Have onnxruntime write its optimised graph, weights aside. Raises BadDefinition if it refuses the model."""
    import onnxruntime

    from rewarm.worker.sessions import PROVIDERS, settings

    made = settings({"graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED})
    made.optimized_model_filepath = str(out / _RAW_NAME)
    made.add_session_config_entry("session.optimized_model_external_initializers_file_name", _RAW_DATA_NAME)
    least_bytes = str(EXTERNAL_BYTES)
    made.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", least_bytes)
    made.add_session_config_entry("session.disable_prepacking", "1")
    try:
        onnxruntime.InferenceSession(str(path), made, providers=PROVIDERS, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common class
        if shutil.disk_usage(out).free < path.stat().st_size:  # it does not say that the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
        raise BadDefinition(f"onnxruntime cannot open {path.name}: {' '.join(str(error).split())[:300]}") from error


def _settle(model: Any) -> None:
    """Weights of subgraphs go to the main graph, and what is no input in truth is not listed as one."""
    if model.ir_version < 4:  # then every initialiser had to be listed, and could not be fed all the same
        own = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in own]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        model.ir_version = 4
    graphs.hoist(model.graph, lambda tensor: bool(tensor.external_data) and tensor.data_type in _DTYPES)
    graphs.merge_equal(model.graph)


class _Raw:
    """The file with weights that onnxruntime wrote; there is none if all of them are small."""

    def __init__(self, path: Path) -> None:
        self._mapping: mmap.mmap | None = None
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> _Raw:
        return self

    def __exit__(self, *_: object) -> None:
        if self._mapping is not None:
            self._mapping.close()

    def bytes_of(self, tensor: Any) -> bytes:
        """A copy: of one tensor at a time. Raises BadDefinition if they are not there."""
        told = {entry.key: entry.value for entry in tensor.external_data}
        begin, size_bytes = int(told.get("offset", 0)), int(told["length"])
        if self._mapping is None or begin + size_bytes > len(self._mapping):
            raise BadDefinition(f"onnxruntime did not write tensor {tensor.name!r}; export the model again")
        return self._mapping[begin : begin + size_bytes]


def _weights(graph: Any, raw: _Raw) -> dict[str, Any]:
    """The initialisers that can be external data, by name; brings the data of all others into the graph.

    One that callers may feed, or that is an answer, stays inside: a caller may write to an answer, but not to a mapping
    that is read-only.
    """
    told = {value.name for value in (*graph.input, *graph.output)}
    weights = {}
    for each in graphs.every_graph(graph):
        for tensor in each.initializer:
            if not tensor.external_data:
                continue
            if each is graph and tensor.name not in told and tensor.data_type in _DTYPES:
                weights[tensor.name] = tensor
            else:
                tensor.raw_data = raw.bytes_of(tensor)
                del tensor.external_data[:]
                tensor.data_location = _INSIDE
    return weights


def _write_data(path: Path, raw: _Raw, weights: Sequence[Any]) -> tuple[tuple[DataFile, ...], dict[str, TensorEntry]]:
    """Write `weights` one after another, aligned, and point them there. No file if there are none."""
    tensors: dict[str, TensorEntry] = {}
    if not weights:
        return (), tensors
    digest = hashlib.sha256()
    end = 0
    with path.open("xb") as writer:
        for tensor in weights:
            data = raw.bytes_of(tensor)
            padding = bytes(-end % ALIGN_BYTES)
            begin, end = end + len(padding), end + len(padding) + len(data)
            for part in (padding, data):
                writer.write(part)
                digest.update(part)
            dtype, shape = _DTYPES[tensor.data_type], tuple(tensor.dims)
            tensors[tensor.name] = TensorEntry(dtype, shape, 0, begin, end, tensor_digest(dtype, shape, data))
            _point(tensor, begin, len(data))
    sha256 = digest.hexdigest()
    return (DataFile(f"{sha256}.data", end, sha256),), tensors


def _point(tensor: Any, begin: int, size_bytes: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", ONNX_DATA_NAME), ("offset", begin), ("length", size_bytes)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _drop(graph: Any, names: Iterable[str]) -> None:
    unread = set(names)
    kept = [tensor for tensor in graph.initializer if tensor.name not in unread]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _layers(found: Iterable[graphs.Group]) -> tuple[LayerEntry, ...]:
    """A layer is called like its first tensor."""
    return tuple(
        LayerEntry(group.tensors[0] if group.tensors else "graph", group.tensors, group.on_demand, group.compute_s)
        for group in found
    )


def _setup_s(index: Index, out: Path) -> float:
    """Seconds to make the session of an instance: the second one here, as an instance finds the runtime warm."""
    from rewarm.worker.sessions import PackedSession

    for _ in range(2):
        since_s = time.perf_counter()
        PackedSession(Pack(index, out, out), None, {}, repack=False)
        setup_s = time.perf_counter() - since_s
    return setup_s
