"""The key of a Lang layer; a file of its own, compiled (adr/0008): keys are hashed a dozen times in each start."""

from __future__ import annotations

import re
from typing import Any, Final

from rewarm.errors import BadDefinition

_PACKAGE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")


class LangKey:
    """The key of a Lang layer: a runtime with a set of packages imported. Keys form a tree by inclusion.

    Never changed once made. `packages` are sorted, each once. `forks` is False if a started runtime of this key is no
    zygote but becomes one instance, and is used up by that. `vm_bytes` above 0 is the memory of a micro-VM: such a Lang
    layer is a snapshot on disk of a guest of this size, from which any number of instances are restored, and it is no
    other key's ancestor. Raises BadDefinition.
    """

    __slots__ = ("_hash", "forks", "packages", "runtime", "vm_bytes")

    def __init__(self, packages: tuple[str, ...] = (), runtime: str = "python", vm_bytes: int = 0) -> None:
        for package in packages:
            if not isinstance(package, str) or _PACKAGE.fullmatch(package) is None:
                raise BadDefinition(f"{package!r} in preload is not the name of a package")
        self.packages: Final[tuple[str, ...]] = tuple(sorted(set(packages)))
        self.runtime: Final[str] = runtime
        self.forks: Final[bool] = runtime != "nodejs"
        self.vm_bytes: Final[int] = vm_bytes
        self._hash: Final[int] = hash((self.packages, runtime, vm_bytes))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, LangKey):
            return NotImplemented
        if self._hash != other._hash or self.vm_bytes != other.vm_bytes:
            return False
        return self.packages == other.packages and self.runtime == other.runtime

    def __reduce__(self) -> tuple[Any, ...]:
        # Made anew: hashes of text differ between processes.
        return LangKey, (self.packages, self.runtime, self.vm_bytes)

    def covers(self, other: LangKey) -> bool:
        """True if a zygote of this key may be the ancestor of `other` (equal keys included)."""
        if self.vm_bytes or other.vm_bytes:
            return self == other
        if not self.forks or self.runtime != other.runtime or len(self.packages) > len(other.packages):
            return False
        for package in self.packages:  # noqa: SIM110 - compiled, a loop costs less
            if package not in other.packages:
                return False
        return True

    def __str__(self) -> str:
        name = "+".join((self.runtime, *self.packages))
        return f"microvm-{self.vm_bytes >> 20}mb+{name}" if self.vm_bytes else name

    def __repr__(self) -> str:
        return f"LangKey({self.packages!r}, {self.runtime!r}, {self.vm_bytes})"
