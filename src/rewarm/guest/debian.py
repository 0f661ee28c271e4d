"""Debian packages without root: found by apt, downloaded into a cache, unpacked without running their scripts.

The machine's own apt is asked, with its sources and its keys: nothing comes from elsewhere, and what it downloads is
held to the sha256 of its signed lists.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import MicrovmUnavailable, SystemFault
from rewarm.guest.workshop import run

_NEEDS_APT = "apt: guests are made of Debian packages, on Debian"
_GROUP = 6  # packages a download
_DOWNLOAD_S = 600.0  # of a group
_DEPENDENCY = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)")


class Deb(NamedTuple):
    """One package in the version that apt would install."""

    name: str
    version: str
    architecture: str  # "amd64", "all"
    sha256: str
    size_bytes: int
    depends: tuple[tuple[str, ...], ...]  # names; of each tuple one is enough

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def check_machine() -> None:
    """Raises MicrovmUnavailable where no guest can be made."""
    if platform.machine() != "x86_64":
        raise MicrovmUnavailable(f"guests are made for x86_64, and this machine is {platform.machine()}")


def _names(alternatives: str) -> tuple[str, ...]:
    return tuple(found[1] for each in alternatives.split("|") if (found := _DEPENDENCY.match(each)))


class Apt:
    """The machine's own, with a cache of its lists in `scratch`, since containers often forbid it to keep one."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._options = (
            "-o", f"Dir::Cache={scratch}", "-o", "Dir::Cache::pkgcache=pkgcache.bin",
            "-o", "Dir::Cache::srcpkgcache=srcpkgcache.bin",
        )  # fmt: skip

    def show(self, names: Iterable[str]) -> dict[str, Deb]:
        """What apt knows of these packages; one that it does not know is left out. Raises MicrovmUnavailable."""
        wanted = sorted(set(names))
        try:
            text = run(["apt-cache", *self._options, "show", "--no-all-versions", *wanted], needs=_NEEDS_APT)
        except SystemFault as error:
            if isinstance(error, MicrovmUnavailable):
                raise
            text = ""  # it fails if it knows none of them
        debs = {}
        for stanza in text.split("\n\n"):
            fields = dict(
                line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" ")
            )
            if fields.get("Package") in wanted and "SHA256" in fields:
                depends = [fields[field] for field in ("Pre-Depends", "Depends") if field in fields]
                debs[fields["Package"]] = Deb(
                    fields["Package"], fields["Version"], fields["Architecture"], fields["SHA256"], int(fields["Size"]),
                    tuple(_names(each) for line in depends for each in line.split(",")),
                )  # fmt: skip
        return debs

    def one(self, name: str) -> Deb:
        """Raises MicrovmUnavailable if apt does not know it."""
        found = self.show([name]).get(name)
        if found is None:
            raise MicrovmUnavailable(
                f"apt knows no package {name}: run apt-get update as root; "
                "if it still does not, this system's Debian has another version of it"
            )
        return found

    def closure(self, names: Collection[str], without: Callable[[str], bool]) -> list[Deb]:
        """These packages and all that they depend on, sorted by name; what `without` says is not followed.

        Of alternatives the first that apt knows is taken. Raises MicrovmUnavailable if something is not known.
        """
        found: dict[str, Deb] = {}
        wanted: set[tuple[str, ...]] = {(name,) for name in names}
        while wanted:
            known = self.show(name for alternatives in wanted for name in alternatives)
            fresh: list[Deb] = []
            for alternatives in wanted:
                chosen = next((known[name] for name in alternatives if name in known), None)
                if chosen is None:
                    self.one(alternatives[0])  # raises
                elif chosen.name not in found:
                    found[chosen.name] = chosen
                    fresh.append(chosen)
            wanted = {
                alternatives
                for deb in fresh
                for alternatives in deb.depends
                if not any(name in found or without(name) for name in alternatives)
            }
        return [found[name] for name in sorted(found)]

    def fetch(self, debs: Collection[Deb], cache_dir: Path, progress: Callable[[int, int], None]) -> list[Path]:
        """Their files in the cache, downloaded if they are not there. `progress(bytes, of bytes)`.

        Raises MicrovmUnavailable if the network or a mirror does not have them, OSError.
        """
        cache_dir.mkdir(mode=0o700, exist_ok=True)
        total = sum(deb.size_bytes for deb in debs)
        missing = [deb for deb in debs if not _whole(cache_dir / deb.file_name, deb)]
        done = total - sum(deb.size_bytes for deb in missing)
        progress(done, total)
        for begin in range(0, len(missing), _GROUP):
            group = missing[begin : begin + _GROUP]
            try:
                run(
                    ["apt-get", "-q", "download", *(f"{d.name}={d.version}" for d in group)],
                    needs=_NEEDS_APT,
                    cwd=self._scratch,
                    within_s=_DOWNLOAD_S,
                )
            except SystemFault as error:
                raise MicrovmUnavailable(
                    f"{error.message}; run apt-get update as root and see that its mirrors can be reached"
                ) from error
            for deb in group:
                if not _whole(self._scratch / deb.file_name, deb):
                    raise MicrovmUnavailable(
                        f"apt-get downloaded something else than {deb.name} {deb.version}; try again"
                    )
                os.replace(self._scratch / deb.file_name, cache_dir / deb.file_name)
            done += sum(deb.size_bytes for deb in group)
            progress(done, total)
        return [cache_dir / deb.file_name for deb in debs]


def _whole(path: Path, deb: Deb) -> bool:
    if not path.is_file() or path.stat().st_size != deb.size_bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == deb.sha256


def unpack(deb_file: Path, folder: Path) -> None:
    """Its files, as this user's; none of its scripts is run. Raises SystemFault, MicrovmUnavailable."""
    run(["dpkg-deb", "-x", str(deb_file), str(folder)], needs="dpkg")
