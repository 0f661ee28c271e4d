"""Values that never change, compared by what they say: events, effects, and what policies ask and answer.

Plain classes, compiled (adr/0008): a start takes some twenty of them, and what makes named tuples and frozen
dataclasses is interpreted code.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Value:
    """`__match_args__` names the fields, in the order in which `__init__` takes them."""

    __match_args__: ClassVar[tuple[str, ...]] = ()

    def values(self) -> tuple[Any, ...]:
        """What it says, in order."""
        return tuple([getattr(self, name) for name in type(self).__match_args__])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Value) and self.values() == other.values()

    def __hash__(self) -> int:
        return hash((type(self), self.values()))

    def __repr__(self) -> str:
        said = ", ".join([f"{name}={getattr(self, name)!r}" for name in type(self).__match_args__])
        return f"{type(self).__name__}({said})"
