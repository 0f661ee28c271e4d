"""Calls that warm up an instance before its snapshot is taken: what a person gave, else made of the declared inputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from rewarm import wire
from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, Tensor

_ANY_LENGTH = 4  # of a dimension that may have any
_SEED = 5
_ELEMENTS_MAX = 1 << 22  # of one made input: more than that is for a person to choose

Draw = Callable[[Tensor], Any]


def samples_of(spec: FunctionSpec, code_dir: Path) -> list[wire.AnyItem]:
    """The bodies of `spec.samples`; else one random call and one of zeros if all inputs are declared; else none.

    Raises BadDefinition if a file is missing or no JSON.
    """
    if spec.samples:
        return [_item(_read(code_dir, name)) for name in spec.samples]
    if spec.kind != "predict" or not spec.inputs:
        return []
    tensors = {name: tensor for name, tensor in spec.inputs if tensor is not None and _size(tensor) <= _ELEMENTS_MAX}
    if len(tensors) < len(spec.inputs):
        return []
    drawn = random.Random(_SEED)
    draws: tuple[Draw, ...] = (lambda tensor: _random(tensor, drawn), _zero)
    return [
        _item(orjson.dumps({name: _fill(tensor, list(tensor.shape), draw) for name, tensor in tensors.items()}))
        for draw in draws
    ]  # fmt: skip


def _read(code_dir: Path, name: str) -> bytes:
    path = code_dir / name
    try:
        if not path.resolve().is_relative_to(code_dir.resolve()):
            raise BadDefinition(f"samples: {name!r} leads out of the deployed folder; give a path inside it")
        body = path.read_bytes()
        orjson.loads(body)
    except OSError as error:
        raise BadDefinition(
            f"samples: {name!r} cannot be read: {error.strerror}; is it deployed with the code?"
        ) from None
    except orjson.JSONDecodeError as error:
        raise BadDefinition(f"samples: {name!r} is not JSON: {error}") from None
    return body


def _item(body: bytes) -> wire.AnyItem:
    return wire.Item(wire.KIND_JSON, b"", body)


def _size(tensor: Tensor) -> int:
    size = 1
    for length in tensor.shape:
        size *= _ANY_LENGTH if length == -1 else length
    return size


def _fill(tensor: Tensor, shape: list[int], draw: Draw) -> Any:
    """Nested lists of this shape."""
    if not shape:
        return draw(tensor)
    length = _ANY_LENGTH if shape[0] == -1 else shape[0]
    return [_fill(tensor, shape[1:], draw) for _ in range(length)]


def _random(tensor: Tensor, drawn: random.Random) -> Any:
    """From 0 to 1: what images are made of; and as an index it is in any table."""
    if tensor.dtype.startswith("float"):
        return drawn.random()
    if tensor.dtype == "object":
        return f"sample {drawn.randrange(10)}"
    return bool(drawn.randrange(2)) if tensor.dtype == "bool" else drawn.randrange(2)


def _zero(tensor: Tensor) -> Any:
    if tensor.dtype == "object":
        return ""
    return {"f": 0.0, "b": False}.get(tensor.dtype[0], 0)
