"""The tensors of packs and of `.safetensors` files as numpy arrays: views of the mapped file, so read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rewarm.errors import BadDefinition
from rewarm.weights import header
from rewarm.weights.format import Index, TensorEntry
from rewarm.weights.pages import Mapped

Array = np.ndarray[Any, Any]

#: Code of a dtype in safetensors → numpy's.
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


def of_pack(index: Index, mappings: Sequence[Mapped]) -> dict[str, Array]:
    """By name, other names of tied tensors included. Raises BadDefinition for a dtype that numpy does not have."""
    found = _views(index.tensors, mappings)
    found.update({alias: found[name] for alias, name in index.tied.items()})
    return found


def of_file(path: Path) -> dict[str, Array]:
    """Of a `.safetensors` file. Raises BadDefinition also if it is none, OSError."""
    mapped = Mapped(path, path.stat().st_size)
    return _views(header.entries(mapped), [mapped])


def _views(entries: Mapping[str, TensorEntry], mappings: Sequence[Mapped]) -> dict[str, Array]:
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            text = f"numpy has no dtype for tensor {name!r}, which is {entry.dtype}"
            raise BadDefinition(f"{text}; use weights.module(), or save it in another dtype")
    buffers = [mapped.buffer for mapped in mappings]
    return {
        name: np.frombuffer(buffers[entry.file][entry.begin : entry.end], _DTYPES[entry.dtype]).reshape(entry.shape)
        for name, entry in entries.items()
    }
