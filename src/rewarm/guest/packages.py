"""The drive with what a Lang key imports: rewarm's worker and the key's packages, as they are installed here.

So what runs inside a micro-VM is what this server itself would run, and a drive is made anew when that changes: its
name is a digest over the versions and checksums that installers record (RECORD) and over rewarm's own files.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import rewarm
from rewarm.errors import BadDefinition, MicrovmUnavailable
from rewarm.guest.build import find_guest
from rewarm.guest.bytecode import compile_tree
from rewarm.guest.images import link_or_copy, made_once

if TYPE_CHECKING:
    from importlib.metadata import Distribution

#: Where the guest mounts it.
MOUNT = "/packages"
_FORMAT = b"1"  # counts what changes the image of the same packages
#: What the worker imports, of rewarm and of others.
_OWN = ("__init__.py", "define.py", "errors.py", "hooks.py", "kernel.py", "sealed.py", "units.py", "wire.py",
        "facts", "policy", "weights", "worker")  # fmt: skip
_WORKER_NEEDS = ("orjson", "simdjson")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?([^;]*)(?:;(.*))?", re.DOTALL)
_EXTRA = re.compile(r"\bextra\b")


def packages_image(home_dir: Path, packages: tuple[str, ...]) -> Path:
    """The drive for a Lang key with `packages` (names as they are imported). Made once; asks the file system each time.

    Raises BadDefinition for a package that is not installed here or not in a way that can be copied,
    MicrovmUnavailable if there is no guest or one of another Python, SystemFault.
    """
    guest, own = find_guest(home_dir), f"{sys.version_info[0]}.{sys.version_info[1]}"
    if guest.python != own:
        raise MicrovmUnavailable(
            f"the guest has Python {guest.python} and this server runs on {own}; run: rewarm microvm build"
        )
    needed = distributions((*_WORKER_NEEDS, *packages))
    own_files = list(_own_files())

    def fill(tree: Path) -> None:
        for distribution in needed:
            _copy(_installed_files(distribution), tree)
        _copy(own_files, tree)
        for package in packages:
            _check_copied(package, tree)
        compile_tree(tree, MOUNT)

    return made_once(home_dir, f"packages-{_digest(needed, own_files)[:32]}.img", "rewarm-packages", fill)


def distributions(packages: Iterable[str]) -> list[Distribution]:
    """What has these packages, and all that it requires without being asked for extras, sorted by name.

    A requirement that is not installed is one of another platform or Python, else its owner would not work here either.
    Raises BadDefinition for a package that is not installed.
    """
    from importlib import metadata  # brings csv and zipfile: only whoever makes an image waits for them

    providers = metadata.packages_distributions()
    found: dict[str, Distribution] = {}
    wanted = []
    for package in packages:
        top = package.split(".")[0]
        if top in providers:
            wanted += providers[top]
        elif top not in sys.stdlib_module_names:
            raise BadDefinition(
                f"preload names {package}, which is not installed where the server runs; install it there with pip"
            )
    while wanted:
        name = _normal(wanted.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        wanted += _required(found[name])
    return [found[name] for name in sorted(found)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _required(distribution: Distribution) -> Iterator[str]:
    for requirement in distribution.requires or ():
        parsed = _REQUIREMENT.fullmatch(requirement)
        if parsed is not None and not _EXTRA.search(parsed[3] or ""):
            yield parsed[1]


def _own_files() -> Iterator[tuple[PurePosixPath, Path]]:
    """The same sources that run here; what is compiled of them stays here, and no worker knows the difference."""
    room = Path(rewarm.__file__).parent
    for name in _OWN:
        for path in sorted((room / name).rglob("*.py")) if (room / name).is_dir() else [room / name]:
            yield PurePosixPath("rewarm", path.relative_to(room).as_posix()), path


def _installed_files(distribution: Distribution) -> Iterator[tuple[PurePosixPath, Path]]:
    """What it has among Python's packages, without scripts, compiled files and tests."""
    for file in distribution.files or ():
        parts = file.parts
        if parts[0] == ".." or file.is_absolute() or file.suffix == ".pyc":
            continue
        if "tests" in parts[:-1] and (file.name.startswith("test_") or "data" in parts):
            continue
        path = Path(os.path.realpath(str(distribution.locate_file(file))))
        if path.is_file():
            yield PurePosixPath(file.as_posix()), path


def _copy(files: Iterable[tuple[PurePosixPath, Path]], tree: Path) -> None:
    for relative, path in files:
        target = tree / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # two may share one, an __init__.py of a namespace for example
            link_or_copy(path, target)


def _check_copied(package: str, tree: Path) -> None:
    top = package.split(".")[0]
    if top not in sys.stdlib_module_names and not any(tree.glob(f"{top}.*")) and not (tree / top).is_dir():
        raise BadDefinition(
            f"{package} is installed in a way that cannot be copied into a micro-VM (an editable install?); "
            "install it with pip, not with pip install -e"
        )


def _digest(needed: Iterable[Distribution], own_files: Iterable[tuple[PurePosixPath, Path]]) -> str:
    digest = hashlib.sha256(_FORMAT + b"%d.%d" % sys.version_info[:2])
    for distribution in needed:
        record = sorted(line for line in (distribution.read_text("RECORD") or "").splitlines() if ".pyc," not in line)
        digest.update("\n".join(("", distribution.metadata["Name"], distribution.version, *record)).encode())
    for relative, path in own_files:
        digest.update(f"\n{relative}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
