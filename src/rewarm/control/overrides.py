"""What the command line may change of a definition when it is deployed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rewarm.define import check_spec, pin_of
from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, PolicySpec
from rewarm.policy import registry
from rewarm.units import seconds, size_bytes


def _policy(value: Any) -> PolicySpec:
    return PolicySpec.from_json(value) if isinstance(value, Mapping) else registry.parse(str(value))


def _whole(value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise BadDefinition(f"{value!r} is not a whole number") from None


def _names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _env(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise BadDefinition("env must be an object of names and values")
    return tuple(sorted((str(k), str(v)) for k, v in value.items()))


#: override → (field of FunctionSpec, how to read it)
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "memory": ("memory_bytes", size_bytes),
    "timeout": ("timeout_s", seconds),
    "slo": ("slo_s", seconds),
    "batching": ("batching", _policy),
    "keepalive": ("keepalive", _policy),
    "max_instances": ("max_instances", _whole),
    "queue_max": ("queue_max", _whole),
    "preload": ("preload", _names),
    "pin": ("pin", pin_of),
    "env": ("env", _env),
    "batched": ("batched", bool),
    "isolation": ("isolation", str),
    "samples": ("samples", _names),
}


def apply(spec: FunctionSpec, name: str | None, overrides: Mapping[str, Any]) -> FunctionSpec:
    """The specification with `name` and `overrides` put over it. Raises BadDefinition for what cannot be meant."""
    unknown = set(overrides) - set(_FIELDS)
    if unknown:
        raise BadDefinition(f"unknown overrides {sorted(unknown)}; there are {sorted(_FIELDS)}")
    changes: dict[str, Any] = {"name": name} if name else {}
    for key, value in overrides.items():
        if value is not None:
            field, read = _FIELDS[key]
            changes[field] = read(value)
    fresh = dataclasses.replace(spec, **changes)
    check_spec(fresh)
    return fresh
