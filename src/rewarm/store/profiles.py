"""Measured profiles: `profiles/<function>/<digest>.json`, replaced by one rename.

The digest stands for what was measured: code, weights, and what of the specification an instance runs with. How its
queue is batched, how long it is kept and how many there may be are not part of it, so a function can be measured under
one batching policy and then deployed with another. Any other change makes the profile stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarm.errors import BadDefinition
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.facts.profile import Profile
from rewarm.store.disk import Disk, disk_errors
from rewarm.store.home import Home
from rewarm.store.registry import canonical

_KEPT = 4  # of one function: going back to an older deploy finds its profile again
_NOT_MEASURED = ("batching", "keepalive", "slo_s", "timeout_s", "max_instances", "queue_max")


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """A profile with what it was measured of (`version` is the function's then) and when (seconds since the epoch)."""

    profile: Profile
    digest: str
    version: int
    measured_at: float

    def to_json(self) -> dict[str, Any]:
        return {
            "digest": self.digest, "version": self.version, "measured_at": self.measured_at, **self.profile.to_json(),
        }  # fmt: skip


def measured_digest(spec: FunctionSpec, code_sha: str, weights_sha: str | None) -> str:
    """What two deploys share if one's profile holds for the other."""
    fields = {key: value for key, value in spec.to_json().items() if key not in _NOT_MEASURED}
    return hashlib.sha256(canonical({"spec": fields, "code": code_sha, "weights": weights_sha}).encode()).hexdigest()


def digest_of(revision: Revision) -> str:
    """`measured_digest` of a stored revision."""
    weights_sha = Path(revision.weights_path).parent.name if revision.weights_path is not None else None
    return measured_digest(revision.spec, Path(revision.code_dir).name, weights_sha)


class Profiles:
    """The profiles of one home. Methods raise SystemFault if the disk fails."""

    def __init__(self, home: Home, disk: Disk) -> None:
        self._home = home
        self._disk = disk

    def put(self, name: str, stored: StoredProfile) -> None:
        """Durable when this returns. The oldest beyond four go."""
        folder, staged = self._folder(name), self._home.fresh()
        try:
            with disk_errors("store the profile", folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                self._disk.sync(folder.parent)
                file = staged / "profile.json"
                file.write_text(json.dumps(stored.to_json()) + "\n", encoding="utf-8")
                self._disk.sync(file)
                self._disk.replace(file, self._file(name, stored.digest))
                self._disk.sync(folder)
                for old in self._all(name)[_KEPT:]:
                    self._disk.unlink(self._file(name, old.digest))
        finally:
            with contextlib.suppress(OSError):
                self._disk.remove_tree(staged)

    def get(self, name: str, digest: str) -> StoredProfile | None:
        """None if there is none, or it is damaged: it is measured again in seconds."""
        return self._read(self._file(name, digest))

    def newest(self, name: str) -> StoredProfile | None:
        """The one measured last, whatever of."""
        with disk_errors("read the profiles", self._folder(name)):
            return next(iter(self._all(name)), None)

    def remove(self, name: str) -> bool:
        """Forgets all of a function's; whether there were any."""
        folder = self._folder(name)
        with disk_errors("remove the profiles", folder):
            there = folder.is_dir()
            self._disk.remove_tree(folder)
            return there

    def _all(self, name: str) -> list[StoredProfile]:
        folder = self._folder(name)
        found = [self._read(path) for path in folder.glob("*.json")] if folder.is_dir() else []
        return sorted((stored for stored in found if stored is not None), key=lambda s: -s.measured_at)

    def _read(self, path: Path) -> StoredProfile | None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError, BadDefinition):
            data = json.loads(path.read_text(encoding="utf-8"))
            return StoredProfile(Profile.from_json(data), path.stem, int(data["version"]), float(data["measured_at"]))
        return None

    def _folder(self, name: str) -> Path:
        return self._home.profiles_dir / name  # the name of a function is safe in a path

    def _file(self, name: str, digest: str) -> Path:
        return self._folder(name) / f"{digest}.json"
