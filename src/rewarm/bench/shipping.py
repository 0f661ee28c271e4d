"""What a deploy sends: one file with the local modules and weights it needs, or a folder.

A file is imported once in a process of its own (`rewarm.worker.inspect`) to find what to ship; user code never runs
in the caller. A folder goes whole, save for hidden files and caches, and says what it is in its `rewarm.toml` (which a
handler named by the caller can stand in for):

    file = "app.py"             # required
    select = "Digits"           # or handler = "app.main"; name = "digits"
    [overrides]
    memory = "512MB"
"""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewarm.bench.api import Api, Progress
from rewarm.errors import BadDefinition, NotFound

FOLDER_FILE = "rewarm.toml"
_FOLDER_KEYS = {"file", "select", "handler", "name", "overrides"}
_SUFFIXES = (".py", ".mjs", ".js", ".cjs")
_PACKAGES = "node_modules"
_LEFT_OUT = {"__pycache__"}  # and everything whose name begins with a dot, .venv among it


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller said beside the path. None and empty: as the file says."""

    handler: str | None = None
    name: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[str, ...] = ()  # files here with calls to warm up with, beside or below what is deployed


@dataclass(frozen=True, slots=True)
class Shipment:
    """Path inside the archive → file here, and the manifest that goes with them."""

    files: Mapping[str, Path]
    manifest: Mapping[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def of_target(target: str, wish: Wish) -> Shipment:
    """The shipment of "app.py", "app.py:Name" or a folder. Raises NotFound, BadDefinition or what inspecting found."""
    path, select = _split(target)
    if select is not None and wish.handler is not None:
        raise BadDefinition(f"{target!r} names {select!r} and --handler names {wish.handler!r}: give one of them")
    if path.is_dir():
        if select is not None:
            raise BadDefinition(f"write select = {select!r} into {path / FOLDER_FILE}, a folder takes no :Name")
        return _of_folder(path, wish)
    return _of_file(path, select, wish)


def upload(api: Api, shipment: Shipment, progress: Progress | None = None) -> dict[str, Any]:
    """Packs the shipment into a temporary file and deploys it: `{name, version, digest, unchanged}`."""
    from rewarm.store.archive import pack

    with tempfile.TemporaryFile(prefix="rewarm-deploy-") as archive:
        pack(shipment.files, dict(shipment.manifest), archive)
        size_bytes = archive.seek(0, os.SEEK_END)
        archive.seek(0)
        return api.deploy(archive, size_bytes, progress)


def _split(target: str) -> tuple[Path, str | None]:
    path = Path(target).expanduser()
    if path.exists():
        return path, None
    head, colon, tail = target.rpartition(":")
    if colon and Path(head).expanduser().exists():
        if not tail:
            raise BadDefinition(f"{target!r} ends with ':' and names nothing after it")
        return Path(head).expanduser(), tail
    raise NotFound(f"there is no file or folder {str(path)!r}")


def _of_file(path: Path, select: str | None, wish: Wish) -> Shipment:
    from rewarm.control.deploy import inspect

    if path.suffix not in _SUFFIXES:
        raise BadDefinition(f"{str(path)!r} is not a .py file, not JavaScript and not a folder with {FOLDER_FILE}")
    found = inspect(path, select, wish.handler)
    root = path.parent
    overrides = _overrides(root, wish)
    samples = overrides.get("samples", found["spec"]["samples"])
    files = {path.name: path}
    for relative in [*found.get("files", ()), *([found["weights"]] if found.get("weights") else ()), *samples]:
        files[_inside(root, str(relative))] = root / relative
    if any(name.split("/")[0] == _PACKAGES for name in files):
        handler = found["entry"].replace(f"{path.suffix}:", ".")
        raise BadDefinition(
            f"{path.name} imports packages from {_PACKAGES}: deploy its folder, which goes whole, "
            f"with: rewarm deploy {root} --handler {handler}"
        )
    missing = sorted(name for name, file in files.items() if not file.is_file())
    if missing:
        raise BadDefinition(f"{path.name} needs {missing[0]!r}, which is not in {root.resolve()}")
    return Shipment(files, _manifest(path.name, select, wish.handler, wish.name, overrides))


def _of_folder(folder: Path, wish: Wish) -> Shipment:
    said = _read_folder_file(folder, wish.handler)
    files = _walk(folder, {*_LEFT_OUT, _PACKAGES} if said["file"].endswith(".py") else _LEFT_OUT)
    if said["file"] not in files:
        raise BadDefinition(f"{folder / FOLDER_FILE}: file = {said['file']!r} is not in the folder")
    handler = wish.handler or said.get("handler")
    select = None if wish.handler else said.get("select")
    overrides = {**said.get("overrides", {}), **_overrides(folder, wish)}
    return Shipment(files, _manifest(said["file"], select, handler, wish.name or said.get("name"), overrides))


def _overrides(root: Path, wish: Wish) -> dict[str, Any]:
    """Those of the caller, with the samples as they are called in the archive."""
    if not wish.samples:
        return dict(wish.overrides)
    names = [_inside(root, os.path.relpath(sample, root)) for sample in wish.samples]
    return {**wish.overrides, "samples": names}


def _read_folder_file(folder: Path, handler: str | None) -> dict[str, Any]:
    path = folder / FOLDER_FILE
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if handler is not None:
            return {"file": _file_of(folder, handler)}
        raise BadDefinition(
            f'a folder needs a {FOLDER_FILE}: create {path} with file = "app.py", or name a handler with --handler, '
            "or deploy the file itself"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadDefinition(f"{path}: {error}") from None
    unknown = sorted(set(said) - _FOLDER_KEYS)
    if unknown:
        raise BadDefinition(f"{path}: unknown key {unknown[0]!r}; use {', '.join(sorted(_FOLDER_KEYS))}")
    for key in _FOLDER_KEYS - {"overrides"}:
        if key in said and not isinstance(said[key], str):
            raise BadDefinition(f"{path}: {key} must be a string")
    if "file" not in said:
        raise BadDefinition(f'{path} must say which file holds the function: file = "app.py"')
    if not isinstance(said.get("overrides", {}), dict):
        raise BadDefinition(f"{path}: overrides must be a table, written [overrides]")
    if "select" in said and "handler" in said:
        raise BadDefinition(f"{path}: give select or handler, not both")
    return said


def _file_of(folder: Path, handler: str) -> str:
    """The file that holds `handler` where no rewarm.toml says so: app.py or app.mjs for "app.handler"."""
    module = handler.partition(".")[0]
    found = [module + suffix for suffix in _SUFFIXES if (folder / (module + suffix)).is_file()]
    if len(found) != 1:
        names = ", ".join(found or (module + suffix for suffix in _SUFFIXES))
        what = "has several files" if found else "has no file"
        raise BadDefinition(f"{folder} {what} for --handler {handler} ({names}): say which in {folder / FOLDER_FILE}")
    return found[0]


def _walk(folder: Path, left_out: set[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("."))
        for name in sorted(names):
            path = Path(here, name)
            if not name.startswith(".") and path.is_file():
                files[path.relative_to(folder).as_posix()] = path
    return files


def _inside(root: Path, relative: str) -> str:
    """The archive path of a file that must lie in the folder of the deployed one."""
    inside = os.path.normpath(relative)
    if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
        raise BadDefinition(
            f"{relative!r} lies outside {root.resolve()}: what is deployed must be beside or below the file"
        )
    return Path(inside).as_posix()


def _manifest(
    file: str, select: str | None, handler: str | None, name: str | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    return {"file": file, "select": select, "handler": handler, "name": name, "overrides": dict(overrides)}


def find_example(name: str, given: Path | None = None, option: str | None = None) -> Path:
    """The folder `examples/NAME`: the one given, one under the working directory, or that of a source checkout.

    Raises NotFound; `option` is what it tells the caller to name another folder with.
    """
    tried = [given] if given else [Path("examples", name), Path(__file__).parents[3] / "examples" / name]
    for path in tried:
        if path.is_dir():
            return path
    remedy = f", or name its folder with {option}" if option else ""
    raise NotFound(f"cannot find the example {name}: run this in a checkout of rewarm{remedy}")
