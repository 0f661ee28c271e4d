"""Checks that the parameters of several rules share. Each raises BadDefinition with what would be right."""

from __future__ import annotations

import math

from rewarm.errors import BadDefinition


def duration_s(name: str, value: float) -> float:
    """0 or more seconds."""
    if _is_number(value) and 0 <= value < math.inf:
        return float(value)
    raise BadDefinition(f"{name} must be 0 or more seconds, not {value!r}")


def positive(name: str, value: float) -> float:
    """More than 0 and finite."""
    if _is_number(value) and 0 < value < math.inf:
        return float(value)
    raise BadDefinition(f"{name} must be more than 0, not {value!r}")


def share(name: str, value: float) -> float:
    """Between 0 and 1, both excluded."""
    if _is_number(value) and 0 < value < 1:
        return float(value)
    raise BadDefinition(f"{name} must lie between 0 and 1, both excluded, not {value!r}")


def whole(name: str, value: int) -> int:
    """A whole number, 1 or more."""
    if type(value) is int and value >= 1:
        return value
    raise BadDefinition(f"{name} must be a whole number from 1, not {value!r}")


def switch(name: str, value: bool | str) -> bool:
    """True or False; text, as the command line gives it, may say "true" or "false"."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise BadDefinition(f"{name} must be true or false, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
