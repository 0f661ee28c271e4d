"""Sizes and durations as people write them: "200ms", "1.5s", "10min", "512MB", "1GiB".

Numbers without a unit are seconds and bytes. MB and GB are 1024-based, as AWS Lambda and most memory limits mean
them (a 1024 MB function has 1 GiB); KiB/MiB/GiB are accepted and mean the same.
"""

from __future__ import annotations

import math
import re

from rewarm.errors import BadDefinition

MB = 1 << 20

_DURATION_S = {
    "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0,
}  # fmt: skip
_SIZE_BYTES = {
    "b": 1, "k": 1 << 10, "kb": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "mib": 1 << 20,
    "g": 1 << 30, "gb": 1 << 30, "gib": 1 << 30, "t": 1 << 40, "tb": 1 << 40, "tib": 1 << 40,
}  # fmt: skip
_PATTERN = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ]*)\s*")


def _split(text: str, units: dict[str, float] | dict[str, int], what: str) -> tuple[float, float]:
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise BadDefinition(f"{text!r} is not a {what}; write a number and a unit, one of {', '.join(units)}")
    unit = match[2] if match[2] in units else match[2].lower()
    if unit and unit not in units:
        raise BadDefinition(f"{text!r}: unknown unit {match[2]!r} for a {what}; use one of {', '.join(units)}")
    return float(match[1]), units[unit] if unit else 1


def seconds(value: str | float | int) -> float:
    """A duration in seconds from "200ms" or a number of seconds. Raises BadDefinition."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadDefinition(f"{value!r} is not a duration; write for example '200ms' or a number of seconds")
    if isinstance(value, str):
        number, unit = _split(value, _DURATION_S, "duration")
        value = number * unit
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer beyond what a float can hold
        finite = False
    if not finite or value < 0:
        raise BadDefinition(f"a duration must be finite and not negative, not {value!r}")
    return float(value)


def size_bytes(value: str | int) -> int:
    """A size in bytes from "512MB" or a number of bytes. Raises BadDefinition."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadDefinition(f"{value!r} is not a size; write for example '512MB' or a whole number of bytes")
    if isinstance(value, str):
        number, unit = _split(value, _SIZE_BYTES, "size")
        if not math.isfinite(number * unit):
            raise BadDefinition(f"{value!r} is not a size that a machine can have")
        value = math.ceil(number * unit)
    if value < 0:
        raise BadDefinition(f"a size must not be negative, not {value!r}")
    return int(value)


def human_bytes(count: float) -> str:
    """For people: 1536 → "1.5 KB"."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1024 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def human_seconds(duration_s: float) -> str:
    """For people: 0.0123 → "12.3 ms", 75 → "1.2 min"."""
    if duration_s < 1:
        return f"{duration_s * 1e3:.1f} ms"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    return f"{duration_s / 60:.1f} min" if duration_s < 3600 else f"{duration_s / 3600:.1f} h"


def counted(count: int, what: str) -> str:
    """For people: 1, "layer" → "1 layer"; 2, "layer" → "2 layers"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
