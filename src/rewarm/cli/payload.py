"""The body of a call from what the command line gave; and an example of one."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.errors import BadRequest, NotFound, UsageError

JSON_TYPE = "application/json"
RAW_TYPE = "application/octet-stream"
_EXAMPLE_VALUES_MAX = 16  # more are no help to somebody who pastes them
_NPZ = re.compile(r"(?P<file>.+):(?P<key>[^:\[\]]+)(?:\[(?P<index>\d+)\])?")


@dataclass(frozen=True, slots=True)
class Body:
    content: bytes
    content_type: str = JSON_TYPE


def body_of(
    data: str | None = None,
    file: str | None = None,
    raw_file: str | None = None,
    npz: str | None = None,
    divide: float | None = None,
) -> Body:
    """At most one of the sources; with none, the empty event {}. Raises UsageError, NotFound or BadRequest."""
    given = [
        option
        for option, value in (("--data", data), ("--file", file), ("--raw-file", raw_file), ("--npz", npz))
        if value
    ]
    if len(given) > 1:
        raise UsageError(f"give one body, not {' and '.join(given)}")
    if divide is not None and (npz is None or divide == 0):
        raise UsageError("--divide goes with --npz and takes a number other than 0")
    if raw_file:
        return Body(_read(raw_file), RAW_TYPE)
    if npz:
        return Body(_npz_row(npz, divide))
    if file:
        return Body(_checked(_read(file), f"the file {file}"))
    return Body(_checked((data or "{}").encode(), "--data"))


def _checked(content: bytes, what: str) -> bytes:
    """The bytes as they are; parsed only so that a slip is told here, with its place."""
    try:
        json.loads(content)
    except ValueError as error:
        raise BadRequest(f"{what} is not JSON: {error}") from None
    return content


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).expanduser().read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {file!r}") from None
    except OSError as error:
        raise UsageError(f"cannot read {file!r}: {error.strerror}") from None


def _npz_row(text: str, divide: float | None) -> bytes:
    match = _NPZ.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not FILE:KEY or FILE:KEY[ROW]; write for example test.npz:images[7]")
    array = _npz_array(match["file"], match["key"])
    if match["index"] is not None:
        row = int(match["index"])
        if array.ndim == 0 or row >= len(array):
            raise UsageError(
                f"{match['key']} in {match['file']} has {len(array) if array.ndim else 0} rows, no row {row}"
            )
        array = array[row]
    if divide is not None:
        array = (array / divide).round(6)
    return json.dumps(array.tolist()).encode()


def _npz_array(file: str, key: str) -> Any:
    import numpy as np

    try:
        with np.load(Path(file).expanduser(), allow_pickle=False) as arrays:
            if key not in arrays:
                raise UsageError(f"{file} has no array {key!r}; it has {', '.join(arrays)}")
            return arrays[key]
    except FileNotFoundError:
        raise NotFound(f"there is no file {file!r}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot read {file!r} as a .npz file: {error}") from None


def example(inputs: Sequence[Mapping[str, Any]]) -> str | None:
    """A body, as JSON, that a function with these inputs (as in its specification) takes. None where not all of them
    are declared, or it would be long."""
    if not inputs or not all("dtype" in one for one in inputs):
        return None
    shapes = [[max(1, size) for size in one["shape"]] for one in inputs]
    if sum(math.prod(shape) for shape in shapes) > _EXAMPLE_VALUES_MAX:
        return None
    rows = {one["name"]: _zeros(one["dtype"], shape) for one, shape in zip(inputs, shapes, strict=True)}
    return json.dumps(rows if len(rows) > 1 else next(iter(rows.values())), separators=(",", ":"))


def _zeros(dtype: str, shape: Sequence[int]) -> Any:
    if not shape:
        return {"bool": False, "object": ""}.get(dtype, 0)
    return [_zeros(dtype, shape[1:])] * shape[0]
