"""The key of a Lang layer; a file of its own, compiled (adr/0008): keys are hashed a dozen times in each start."""

from __future__ import annotations

import re
from typing import Any, Final

from rewarm.errors import BadDefinition

_PACKAGE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")


class LangKey:
    """The key of a Lang layer: a runtime with a set of packages imported. Keys form a tree by inclusion.

    Never changed once made. `packages` are sorted, each once. `forks` is False if a started runtime of this key is no
    zygote but becomes one instance, and is used up by that. Raises BadDefinition.
    """

    __slots__ = ("_hash", "forks", "packages", "runtime")

    def __init__(self, packages: tuple[str, ...] = (), runtime: str = "python") -> None:
        for package in packages:
            if not isinstance(package, str) or _PACKAGE.fullmatch(package) is None:
                raise BadDefinition(f"{package!r} in preload is not the name of a package")
        self.packages: Final[tuple[str, ...]] = tuple(sorted(set(packages)))
        self.runtime: Final[str] = runtime
        self.forks: Final[bool] = runtime != "nodejs"
        self._hash: Final[int] = hash((self.packages, runtime))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, LangKey):
            return NotImplemented
        return self._hash == other._hash and self.packages == other.packages and self.runtime == other.runtime

    def __reduce__(self) -> tuple[Any, ...]:
        return LangKey, (self.packages, self.runtime)  # made anew: hashes of text differ between processes

    def covers(self, other: LangKey) -> bool:
        """True if a zygote of this key may be the ancestor of `other` (equal keys included)."""
        return self.forks and self.runtime == other.runtime and set(self.packages) <= set(other.packages)

    def __str__(self) -> str:
        return "+".join((self.runtime, *self.packages))

    def __repr__(self) -> str:
        return f"LangKey({self.packages!r}, {self.runtime!r})"
