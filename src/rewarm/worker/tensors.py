"""From bodies to arrays: plain JSON and raw rows, and Open Inference Protocol v2 with its binary extension.

Every function raises BadTensor or BadRequest with a sentence that names the input.
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np
import orjson

from rewarm.errors import BadRequest, BadTensor
from rewarm.facts.function import DATATYPES, Tensor

Array = np.ndarray[Any, Any]

_NUMBERS = {bool, int, float}
_ELEMENTS_MAX = 1 << 40  # of a v2 shape; what a body can really hold is checked against its bytes
_EMPTY_DIMENSION_MAX = 1 << 20  # where a dimension is 0 there are no bytes to check the others against
_DIMENSIONS_MAX = 32
_HEADER_DIGITS_MAX = 12
_TEXT_BYTES_MAX = 64 << 20  # numpy gives each string of an array the room of the longest


class Input(NamedTuple):
    """One parameter of predict: `tensor` is None if it was not declared; `size` is the elements of a row if fixed."""

    name: str
    tensor: Tensor | None
    dtype: np.dtype[Any] | None
    size: int | None


def make_input(name: str, tensor: Tensor | None) -> Input:
    if tensor is None:
        return Input(name, None, None, None)
    dtype = np.dtype(object if tensor.dtype == "object" else tensor.dtype).newbyteorder("<")
    return Input(name, tensor, dtype, math.prod(tensor.shape) if -1 not in tensor.shape else None)


class Wanted(NamedTuple):
    """What a v2 caller wants back: its id, which outputs (empty: all), and which of them as binary."""

    request_id: str | None
    outputs: dict[str, bool]
    binary_default: bool


def row_from_json(body: Any, inputs: list[Input]) -> dict[str, Array]:
    """One row from a plain JSON body: the value itself for a single input, else an object by input name."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    names = [spec.name for spec in inputs]
    if isinstance(value, dict):
        if set(value) != set(names):
            raise BadTensor(f"the body names inputs {sorted(map(str, value))}, the function takes {names}")
    elif len(inputs) == 1:
        value = {names[0]: value}
    else:
        raise BadTensor(f"the function takes several inputs: send an object with {names}")
    return {spec.name: _row(spec, value[spec.name])[np.newaxis] for spec in inputs}


def _row(spec: Input, value: Any) -> Array:
    if spec.dtype is None or spec.tensor is None:
        count, longest = _extent(value)
        if 4 * count * longest > _TEXT_BYTES_MAX:
            text = f"as an array its strings would take {4 * count * longest} bytes, at most {_TEXT_BYTES_MAX}"
            raise BadTensor(f"input {spec.name!r}: {text}; declare it with dtype object")
        try:
            row = np.asarray(value)
        except ValueError:
            raise BadTensor(f"input {spec.name!r} is ragged: nested lists must have equal lengths") from None
        if row.dtype.kind == "O":
            raise BadTensor(f"input {spec.name!r} is not an array of numbers or of strings")
        return row
    return _fit(spec, _convert(value, spec.dtype, spec.name), spec.tensor.shape)


def _types(value: Any) -> set[type]:
    """The types of all that nested lists hold. Raises RecursionError if they are nested absurdly deep."""
    if type(value) is not list:
        return {type(value)}
    types = set(map(type, value))
    if list in types:
        types.remove(list)
        for part in value:
            if type(part) is list:
                types |= _types(part)
    return types


def _extent(value: Any) -> tuple[int, int]:
    """How many leaves nested lists have, and how long the longest string among them is."""
    if type(value) is not list:
        return 1, len(value) if type(value) is str else 0
    if list not in set(map(type, value)):
        return len(value), max((len(v) for v in value if type(v) is str), default=0)
    parts = [_extent(part) for part in value]
    return sum(count for count, _ in parts), max(longest for _, longest in parts)


def _convert(value: Any, dtype: np.dtype[Any], name: str) -> Array:
    """Nested lists to an array of `dtype`; numbers must be in range and integers whole, nothing is silently cut."""
    try:
        if dtype.kind == "O":
            return np.asarray(value, dtype=object)
        foreign = _types(value) - _NUMBERS  # before numpy sees them: it would make room for the longest string each
        if foreign:
            held = ", ".join(sorted("null" if t is type(None) else t.__name__ for t in foreign))
            raise BadTensor(f"input {name!r} holds {held} values where {dtype.name} is wanted")
        raw = np.asarray(value)
        if raw.size == 0:
            return raw.astype(dtype)
        if raw.dtype.kind not in "biuf" or (raw.dtype.kind == "b") != (dtype.kind == "b"):
            raise BadTensor(f"input {name!r} holds {raw.dtype.name} values where {dtype.name} is wanted")
        if dtype.kind in "iu" and raw.dtype.kind in "iuf":
            if raw.dtype.kind == "f" and not np.all(np.mod(raw, 1) == 0):
                raise BadTensor(f"input {name!r} holds fractions where {dtype.name} is wanted")
            limits = np.iinfo(dtype)
            # A float cannot tell 2**63 - 1 from 2**63: the latter is the first that is out of range.
            too_large = raw.max() >= float(limits.max) + 1.0 if raw.dtype.kind == "f" else raw.max() > limits.max
            if raw.min() < limits.min or too_large:
                raise BadTensor(f"input {name!r} holds values outside the range of {dtype.name}")
        with np.errstate(over="ignore"):  # said to the caller, not in the function's log
            array = raw.astype(dtype)
        if dtype.kind == "f" and not np.isfinite(array).all():  # JSON has no infinity: it was a number
            raise BadTensor(f"input {name!r} holds values outside the range of {dtype.name}")
        return array
    except BadTensor:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise BadTensor(f"input {name!r} is not an array of {dtype.name}: ragged, or not numbers") from None


def _fit(spec: Input, row: Array, shape: tuple[int, ...]) -> Array:
    """Check a row against the declared shape; a flat list is accepted for any fixed shape of as many elements."""
    if len(row.shape) == len(shape) and all(want in (-1, got) for want, got in zip(shape, row.shape, strict=True)):
        return row
    if row.ndim == 1 and spec.size == row.size:
        return row.reshape(shape)
    text = f"input {spec.name!r}: one row has shape {list(shape)}, the body has {list(row.shape)}"
    if row.ndim == len(shape) + 1:
        text += "; several rows go to POST /v2/models/NAME/infer"
    raise BadTensor(text)


def row_from_raw(body: Any, inputs: list[Input]) -> dict[str, Array]:
    """One row from an octet-stream body: the declared dtype, little-endian, row-major."""
    if len(inputs) != 1 or inputs[0].dtype is None or inputs[0].dtype.kind == "O" or inputs[0].tensor is None:
        raise BadTensor("raw bytes need a function with one input whose dtype and shape are declared (inputs=…)")
    spec = inputs[0]
    shape, dtype = spec.tensor.shape, spec.dtype  # type: ignore[union-attr]
    if len(body) % dtype.itemsize:  # type: ignore[union-attr]
        raise BadTensor(f"input {spec.name!r}: {len(body)} bytes are not a whole number of {dtype.name}")  # type: ignore[union-attr]
    flat: Array = np.frombuffer(body, dtype=dtype)
    try:
        return {spec.name: flat.reshape(shape)[np.newaxis]}
    except ValueError:
        text = f"input {spec.name!r}: one row has shape {list(shape)}, the body has {flat.size} elements"
        raise BadTensor(text) from None


# ------------------------------------------------------------------ Open Inference Protocol v2


def rows_from_v2(body: memoryview, meta: bytes, inputs: list[Input]) -> tuple[dict[str, Array], Wanted]:
    """All inputs of one v2 request, each with a leading batch axis of the same length; and what is wanted back.

    `meta` is the value of `Inference-Header-Content-Length` (empty: the whole body is JSON).
    """
    head_bytes = len(body)
    if meta:
        if not meta.isdigit() or len(meta) > _HEADER_DIGITS_MAX or not 0 < int(meta) <= len(body):
            said = repr(meta[:40].decode("latin-1"))
            raise BadRequest(f"Inference-Header-Content-Length {said} does not fit the body of {len(body)} bytes")
        head_bytes = int(meta)
    try:
        head = orjson.loads(body[:head_bytes])
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the inference request is not JSON: {error}") from None
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise BadRequest('an inference request is an object with a list "inputs"')
    rest = body[head_bytes:]
    arrays: dict[str, Array] = {}
    by_name = {spec.name: spec for spec in inputs}
    for tensor in head["inputs"]:
        spec, array, used = _tensor(tensor, by_name, rest)
        rest = rest[used:]
        if spec.name in arrays:
            raise BadTensor(f"input {spec.name!r} is given twice")
        arrays[spec.name] = array
    if len(rest):
        raise BadRequest(f"{len(rest)} bytes follow the last tensor")
    missing = [spec.name for spec in inputs if spec.name not in arrays]
    if missing:
        raise BadTensor(f"inputs {missing} are missing")
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1:
        raise BadTensor(f"the inputs disagree on the number of rows: {sorted(rows)}")
    return arrays, _wanted(head)


def _tensor(tensor: Any, by_name: dict[str, Input], rest: memoryview) -> tuple[Input, Array, int]:
    if not isinstance(tensor, dict):
        raise BadRequest("each input is an object with name, shape, datatype and data")
    name = tensor.get("name")
    spec = by_name.get(name) if isinstance(name, str) else None
    if spec is None:
        raise BadTensor(f"there is no input {name!r}; the function takes {list(by_name)}")
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise BadTensor(f"input {name!r}: unknown datatype {datatype!r}; use one of {', '.join(DATATYPES)}")
    if spec.tensor is not None and spec.tensor.datatype != datatype:
        raise BadTensor(f"input {name!r} is {spec.tensor.datatype}, not {datatype}")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and n >= 0 for n in shape):
        raise BadTensor(
            f"input {name!r}: the shape must be a list of whole numbers that begins with the rows, not {shape!r}"
        )
    if shape[0] == 0:
        raise BadTensor(f"input {name!r} has no rows")
    if len(shape) > _DIMENSIONS_MAX or math.prod(max(n, 1) for n in shape) > (
        _EMPTY_DIMENSION_MAX if 0 in shape else _ELEMENTS_MAX
    ):
        raise BadTensor(f"input {name!r}: no array has the shape {str(shape)[:200]}")
    want = spec.tensor.shape if spec.tensor is not None else None
    if want is not None and (
        len(shape) != len(want) + 1 or any(w not in (-1, n) for w, n in zip(want, shape[1:], strict=True))
    ):
        raise BadTensor(f"input {name!r} has shape {shape}; declared is {[-1, *want]}")
    dtype = np.dtype(DATATYPES[datatype]).newbyteorder("<")
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise BadTensor(f"input {name!r}: binary_data_size {size!r}, but {len(rest)} bytes follow")
        return spec, _binary(rest[:size], dtype, shape, spec.name), size
    if "data" not in tensor:
        raise BadTensor(f"input {name!r} has neither data nor parameters.binary_data_size")
    array = _convert(tensor["data"], dtype, spec.name)
    if array.size != math.prod(shape):
        raise BadTensor(f"input {name!r}: shape {shape} needs {math.prod(shape)} elements, data has {array.size}")
    return spec, array.reshape(shape), 0


def _binary(chunk: memoryview, dtype: np.dtype[Any], shape: list[int], name: str) -> Array:
    count = math.prod(shape)
    if dtype.kind == "O":
        return _strings(chunk, count, name).reshape(shape)
    if len(chunk) != count * dtype.itemsize:
        raise BadTensor(
            f"input {name!r}: shape {shape} is {count * dtype.itemsize} bytes, binary_data_size says {len(chunk)}"
        )
    return np.frombuffer(chunk, dtype=dtype).reshape(shape)


def _strings(chunk: memoryview, count: int, name: str) -> Array:
    """BYTES: each element is a little-endian u32 length and as many bytes."""
    if count * 4 > len(chunk):
        raise BadTensor(f"input {name!r}: {count} strings wanted, {len(chunk)} bytes do not hold as many lengths")
    out = np.empty(count, dtype=object)
    at = 0
    for index in range(count):
        if at + 4 > len(chunk):
            raise BadTensor(f"input {name!r}: {count} strings wanted, the bytes end at the {index}th")
        (length,) = struct.unpack_from("<I", chunk, at)
        at += 4
        if at + length > len(chunk):
            raise BadTensor(f"input {name!r}: the {index}th string is longer than the bytes that follow")
        out[index] = bytes(chunk[at : at + length])
        at += length
    if at != len(chunk):
        raise BadTensor(f"input {name!r}: {len(chunk) - at} bytes follow the last string")
    return out


def _wanted(head: dict[str, Any]) -> Wanted:
    parameters = head.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequest("parameters must be an object")
    outputs: dict[str, bool] = {}
    binary_default = bool(parameters.get("binary_data_output", False))
    wanted = head.get("outputs") or []
    if not isinstance(wanted, list):
        raise BadRequest("outputs must be a list")
    for output in wanted:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise BadRequest("each output is an object with a name")
        asked = output.get("parameters") or {}
        if not isinstance(asked, dict):
            raise BadRequest("the parameters of an output must be an object")
        outputs[output["name"]] = bool(asked.get("binary_data", binary_default))
    request_id = head.get("id")
    return Wanted(str(request_id) if request_id is not None else None, outputs, binary_default)
