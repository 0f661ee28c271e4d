"""The door to everything that survives a restart."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NamedTuple

from rewarm.clock import Clock
from rewarm.errors import BadDefinition, WeightsCorrupt
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.facts.profile import Profile
from rewarm.store import packs
from rewarm.store.artifacts import StoredWeights, copy_weights, drop, is_whole, place, place_weights, seal
from rewarm.store.disk import Disk, disk_errors
from rewarm.store.home import Home
from rewarm.store.profiles import Profiles, digest_of, measured_digest
from rewarm.store.registry import Broken, Connect, Registry, canonical, connect
from rewarm.store.snapshots import Snapshots
from rewarm.store.verified import Verified, identity
from rewarm.weights.format import Pack, verify
from rewarm.weights.writer import Known


class ToPack(NamedTuple):
    """Code and weights that are about to be published, where they lie now, and the key of their pack."""

    spec: FunctionSpec
    code_dir: Path
    weights: Path
    weights_sha: str
    key: str


class Candidate(NamedTuple):
    """What is about to become a function's revision, where it lies now."""

    spec: FunctionSpec
    digest: str
    version: int
    code_dir: Path
    weights: Path | None


class Store:
    """An open home with its registry. Every method may be called from any thread.

    Hashing and copying run beside each other; only the renames and the registry wait for a lock, which also keeps a
    collection from taking what a deploy has just found there.
    """

    def __init__(self, home: Home, registry: Registry, disk: Disk, wall_clock: Clock) -> None:
        self.home = home
        self.profiles = Profiles(home, disk)
        self.verified = Verified(home, disk)
        self.snapshots = Snapshots(home, disk)
        self._registry = registry
        self._disk = disk
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._packing: list[str] = []  # keys of the packs of deploys under way: no revision has them yet

    @classmethod
    def open(
        cls,
        home_path: str | Path,
        *,
        disk: Disk | None = None,
        connect: Connect = connect,
        wall_clock: Clock = time.time,
    ) -> Store:
        """Opens or creates a home and locks it. Raises HomeLocked, HomeTooNew, SystemFault."""
        disk = disk or Disk()
        home = Home.open(home_path, disk)
        try:
            registry = Registry.open(home, connect)
            try:
                with disk_errors("open the home", home.path):
                    disk.sync(home.path)  # the registry's own name
            except BaseException:
                registry.close()
                raise
        except BaseException:
            home.close()
            raise
        return cls(home, registry, disk, wall_clock)

    def stage(self) -> Path:
        """A fresh directory to unpack an upload into; end it with `deploy` or `discard`. Raises SystemFault."""
        return self.home.fresh()

    def stage_again(self, revision: Revision) -> Path:
        """The code and the weights of a kept revision as `stage` and an upload would have them. Raises SystemFault."""
        staged = self.stage()
        try:
            with disk_errors("copy the revision", self.home.path):
                shutil.copytree(revision.code_dir, staged, dirs_exist_ok=True)
                for folder, _, _ in os.walk(staged):
                    self._disk.chmod(Path(folder), 0o755)  # the store's own are read-only
                if revision.weights_path is not None and revision.spec.weights is not None:
                    weights = staged / revision.spec.weights
                    weights.parent.mkdir(parents=True, exist_ok=True)
                    os.link(revision.weights_path, weights)
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def discard(self, staged: Path) -> None:
        """Removes a staged directory, if it is still there. What resists goes when the home is next opened."""
        self._check_staged(staged)
        with contextlib.suppress(OSError):
            self._disk.remove_tree(staged)

    def deploy(
        self, staged_dir: Path, spec: FunctionSpec, admit: Callable[[Profile | None], object] = lambda _: None,
        pack: Callable[[ToPack], object] = lambda _: None, prove: Callable[[Candidate], object] = lambda _: None,
    ) -> tuple[Revision, bool]:  # fmt: skip
        """Makes the staged code what the function's name means → (revision, unchanged).

        `admit` is told the profile that holds for it, before the name changes its meaning; what it raises is raised.
        So is what `pack` raises, which is called after it, if there are weights, to publish their pack; and what
        `prove` raises, the last to be asked.

        `staged_dir` comes from `stage` and is gone afterwards, whatever happens. When this returns, the revision is
        durable; when it raises, the name means what it meant before. (One exception: if the disk fails in the very
        commit, the new revision may stand.) Raises BadDefinition if `spec.weights` is not in the folder or leads out
        of it, SystemFault if the disk or the registry fails.
        """
        self._check_staged(staged_dir)
        weights_dir = None
        weights = None
        key = None
        try:
            with disk_errors("store the deploy", self.home.path):
                if spec.weights is not None:
                    source = _find_weights(staged_dir, spec)
                    weights_dir = self.stage()
                    weights = copy_weights(source, weights_dir, self._disk)
                    self._disk.unlink(source)
                code_sha = seal(staged_dir, self._disk)
                weights_sha = weights.sha256 if weights else None
                profile = self.profiles.get(spec.name, measured_digest(spec, code_sha, weights_sha))
                admit(profile.profile if profile is not None else None)
                if weights is not None and weights_dir is not None:
                    key = packs.pack_key(spec, code_sha, weights.sha256)
                    self._packing.append(key)
                    pack(ToPack(spec, staged_dir, weights_dir / weights.file, weights.sha256, key))
                digest = revision_digest(spec, code_sha, weights_sha)
                with self._lock:
                    version = self._registry.version_for(spec.name, digest)
                weights_path = weights_dir / weights.file if weights is not None and weights_dir is not None else None
                prove(Candidate(spec, digest, version, staged_dir, weights_path))
                with self._lock:
                    if weights is not None and weights_dir is not None:
                        place_weights(self.home, weights_dir, weights, self._disk)
                    place(self.home, staged_dir, code_sha, self._disk)
                    return self._registry.put(spec, digest, code_sha, weights, self._wall_clock())
        finally:
            if key is not None:
                self._packing.remove(key)
            for leftover in (staged_dir, weights_dir):
                if leftover is not None:
                    self.discard(leftover)

    def get(self, name: str) -> Revision:
        """The current revision. Raises NotFound."""
        with self._lock:
            return self._registry.get(name)

    def revisions(self) -> list[Revision]:
        """The current revision of every function whose files are there, by name."""
        return self._survey()[0]

    def broken(self) -> list[Broken]:
        """The current revisions that `revisions` leaves out, and why."""
        return self._survey()[1]

    def history(self, name: str) -> list[Revision]:
        """The revisions of a function that are kept, newest first, which is the current one. Raises NotFound."""
        with self._lock:
            return self._registry.revisions(name)

    def remove(self, name: str) -> None:
        """Forgets a function and its profiles; `collect` frees its files. Raises NotFound."""
        with self._lock:
            self._registry.remove(name)
        self.profiles.remove(name)

    def profile(self, revision: Revision) -> Profile | None:
        """The run times measured of what this revision runs."""
        stored = self.profiles.get(revision.name, digest_of(revision))
        return stored.profile if stored is not None else None

    def pack(self, revision: Revision) -> Pack | None:
        """The pack of a revision, None if it was not packed. Raises WeightsCorrupt (deploy again), SystemFault."""
        key = packs.key_of(revision)
        return packs.open(self.home, key) if key is not None and self.home.pack_dir(key).is_dir() else None

    def sound_pack(self, key: str) -> Pack | None:
        """The pack with this key if every byte of it is what was written. Reads them all. Raises SystemFault.

        None if there is none; a damaged one is taken away first, so that packing again mends it.
        """
        try:
            pack = packs.open(self.home, key)
            verify(pack)
        except WeightsCorrupt:
            with self._lock:
                packs.discard(self.home, key, self._disk)
            return None
        return pack

    def known_tensors(self) -> Known:
        """What need not be written again by who packs. Raises SystemFault."""
        with self._lock:
            return packs.known_tensors(self.home)

    def publish_pack(self, staged_dir: Path) -> Pack:
        """Places what was packed into a directory from `stage`, which is gone afterwards, whatever happens.

        A pack lives as long as a kept revision has its key (`packs.key_of`). Raises WeightsCorrupt if the files are
        not what their index says, Unavailable if a known tensor was collected meanwhile, SystemFault.
        """
        self._check_staged(staged_dir)
        try:
            index = packs.seal_pack(self.home, staged_dir, self._disk)
            with self._lock:
                placed = packs.place_pack(self.home, staged_dir, index, self._disk)
                self.verified.note(placed, identity(placed))
                return placed
        finally:
            self.discard(staged_dir)

    def unreferenced(self) -> list[Path]:
        """The directories of code, weights and packs that no kept revision uses, and data files of no used pack."""
        with self._lock:
            return self._unreferenced()

    def collect(self, keep: Iterable[str | Path] = ()) -> list[Path]:
        """Keeps the current and the previous revision of each function and removes every other file → what went.

        `keep` are the code folders, weights files and pack folders that somebody still uses, whatever revision they
        belong to; a later collection takes them. Raises SystemFault; what was removed until then stays removed.
        """
        spared = {folder for path in map(Path, keep) for folder in (path, path.parent)}
        with self._lock:
            self._registry.prune()
            gone = [path for path in self._unreferenced(spared) if path not in spared]
            for path in gone:
                drop(self.home, path, self._disk)
            return gone

    def close(self) -> None:
        """Lets go of registry and home. Idempotent."""
        with self._lock:
            self._registry.close()
            self.home.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _survey(self) -> tuple[list[Revision], list[Broken]]:
        with self._lock:
            found, broken = self._registry.current()
        good: list[Revision] = []
        for revision in found:
            missing = _missing(self.home, revision)
            if missing is None:
                good.append(revision)
            else:
                broken.append(Broken(revision.name, revision.version, f"{missing}; deploy the function again"))
        return good, broken

    def _unreferenced(self, spared: Iterable[Path] = ()) -> list[Path]:
        code, weights = self._registry.used()
        keys = {key for revision in self._registry.kept() if (key := packs.key_of(revision)) is not None}
        keys |= set(self._packing)
        keys |= {path.name for path in spared if path.parent == self.home.packs_dir}
        with disk_errors("list the home", self.home.path):
            unused = [path for path in self.home.artifacts_dir.iterdir() if path.name not in code]
            unused += [path for path in self.home.weights_dir.iterdir() if path.name not in weights]
            return sorted(unused) + packs.unused(self.home, keys)

    def _check_staged(self, staged: Path) -> None:
        # A mistake of our own caller, and too dangerous to follow: what is staged gets removed.
        if staged.parent != self.home.tmp_dir:
            raise ValueError(f"{staged} was not staged in {self.home.tmp_dir}")


def revision_digest(spec: FunctionSpec, code_sha: str, weights_sha: str | None) -> str:
    """What makes two deploys of a name the same: specification, code and weights."""
    text = canonical({"spec": spec.to_json(), "code": code_sha, "weights": weights_sha})
    return hashlib.sha256(text.encode()).hexdigest()


def _missing(home: Home, revision: Revision) -> str | None:
    if not Path(revision.code_dir).is_dir():
        return f"{revision.code_dir} is missing"
    if revision.weights_path is not None:
        path = Path(revision.weights_path)
        if not is_whole(home, StoredWeights(path.parent.name, path.name, revision.weights_bytes)):
            return f"{path} is missing or has another size"
    return None


def _find_weights(staged: Path, spec: FunctionSpec) -> Path:
    """The weights file inside the staged folder. Raises BadDefinition."""
    said = f"weights={spec.weights!r} of function {spec.name!r}"
    relative = PurePosixPath(spec.weights or "")
    source = staged / relative
    if relative.is_absolute() or ".." in relative.parts or not source.resolve().is_relative_to(staged.resolve()):
        raise BadDefinition(f"{said} leads out of the deployed folder; give a path inside it")
    if source.is_symlink() or not source.is_file():
        beside = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
        listed = ", ".join(beside[:8]) + (", …" if len(beside) > 8 else "") if beside else "nothing"
        raise BadDefinition(f"{said} is not a file in the deployed folder, which holds {listed}")
    return source
