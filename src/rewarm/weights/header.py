"""What a safetensors file says that it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rewarm.errors import BadDefinition
from rewarm.weights.format import TensorEntry, tensor_bytes
from rewarm.weights.pages import Mapped

_HEADER_BYTES_MAX = 100_000_000  # as the safetensors library has it
_PADDING = "__pad__."  # tensors of this name fill the gaps in data files that rewarm wrote


def entries(mapped: Mapped) -> dict[str, TensorEntry]:
    """Its tensors, in file 0, without digests; checked against the size. Raises BadDefinition if it is no such file."""
    view = mapped.buffer
    length = int.from_bytes(view[:8], "little")
    if mapped.size_bytes < 8 or length > min(_HEADER_BYTES_MAX, mapped.size_bytes - 8):
        raise _bad(mapped, "its header would be longer than the file")
    try:
        fields = dict(json.loads(bytes(view[8 : 8 + length])))
        fields.pop("__metadata__", None)
        return {
            name: _entry(field, 8 + length, mapped.size_bytes)
            for name, field in fields.items()
            if not name.startswith(_PADDING)
        }
    except (BadDefinition, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _bad(mapped, str(error)) from None


def _entry(field: Mapping[str, Any], base: int, size_bytes: int) -> TensorEntry:
    begin, end = (base + offset for offset in field["data_offsets"])
    shape = tuple(field["shape"])
    if end > size_bytes:
        raise ValueError(f"it ends at byte {size_bytes}, and a tensor at {end}: it was cut short")
    if not base <= begin <= end or end - begin != tensor_bytes(field["dtype"], shape):
        raise ValueError(f"{end - begin} bytes cannot hold {field['dtype']} {list(shape)}")
    return TensorEntry(field["dtype"], shape, 0, begin, end, "")


def _bad(mapped: Mapped, why: str) -> BadDefinition:
    return BadDefinition(f"{mapped.path.name} is not a safetensors file: {why}; save it again with safetensors")
