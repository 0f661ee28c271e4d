"""What a deploy sends: one file with the local modules and weights it needs, or a folder.

A file is imported once in a process of its own (`rewarm.worker.inspect`) to find what to ship; user code never runs
in the caller. A folder says what it is in its `rewarm.toml` and goes whole, save for hidden files and caches:

    file = "app.py"             # required
    select = "Digits"           # or handler = "app.main"; name = "digits"
    [overrides]
    memory = "512MB"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewarm.bench.api import Api, Progress
from rewarm.errors import BadDefinition, NotFound, SystemFault, from_code

FOLDER_FILE = "rewarm.toml"
_FOLDER_KEYS = {"file", "select", "handler", "name", "overrides"}
_LEFT_OUT = {"__pycache__", "node_modules"}  # and everything whose name begins with a dot, .venv among it
_INSPECT_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller said beside the path. None and empty: as the file says."""

    handler: str | None = None
    name: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


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
    if path.suffix != ".py":
        raise BadDefinition(f"{str(path)!r} is not a .py file and not a folder with {FOLDER_FILE}")
    found = _inspect(path, select, wish.handler)
    root = path.parent
    files = {path.name: path}
    for relative in [*found.get("files", ()), *([found["weights"]] if found.get("weights") else ())]:
        files[_inside(root, str(relative))] = root / relative
    missing = sorted(name for name, file in files.items() if not file.is_file())
    if missing:
        raise BadDefinition(f"{path.name} needs {missing[0]!r}, which is not in {root.resolve()}")
    return Shipment(files, _manifest(path.name, select, wish.handler, wish.name, wish.overrides))


def _inspect(path: Path, select: str | None, handler: str | None) -> Mapping[str, Any]:
    """The one function of the file, as the inspecting process saw it."""
    command = [sys.executable, "-m", "rewarm.worker.inspect", str(path)]
    command += ["--select", select] if select else []
    command += ["--handler", handler] if handler else []
    # Files, not pipes: a process that the import starts and leaves behind would hold a pipe open.
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        try:
            done = subprocess.run(command, stdout=said, stderr=complained, timeout=_INSPECT_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            raise BadDefinition(f"importing {path} took more than {_INSPECT_TIMEOUT_S:g} s") from None
        said.seek(0)
        complained.seek(0)
        output, errors = said.read(), complained.read()
    try:
        # User code may print while it is imported: the answer is the last line.
        found = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        why = (errors.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BadDefinition(f"importing {path} ended the process: {why}") from None
    if not found.get("ok"):
        raise from_code(str(found.get("code", BadDefinition.code)), str(found.get("error", f"cannot import {path}")))
    functions = found["functions"]
    if not functions:
        raise BadDefinition(f"{path} defines no function: use @rewarm.function or --handler {path.stem}.NAME")
    if len(functions) > 1:
        names = ", ".join(str(entry["entry"]).rpartition(":")[2] for entry in functions)
        raise BadDefinition(f"{path} defines {len(functions)} functions ({names}): choose one with {path}:NAME")
    chosen: Mapping[str, Any] = functions[0]
    return chosen


def _of_folder(folder: Path, wish: Wish) -> Shipment:
    said = _read_folder_file(folder)
    files = _walk(folder)
    if said["file"] not in files:
        raise BadDefinition(f"{folder / FOLDER_FILE}: file = {said['file']!r} is not in the folder")
    handler = wish.handler or said.get("handler")
    select = None if wish.handler else said.get("select")
    overrides = {**said.get("overrides", {}), **wish.overrides}
    return Shipment(files, _manifest(said["file"], select, handler, wish.name or said.get("name"), overrides))


def _read_folder_file(folder: Path) -> dict[str, Any]:
    path = folder / FOLDER_FILE
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadDefinition(
            f'a folder needs a {FOLDER_FILE}: create {path} with file = "app.py", or deploy the .py file itself'
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


def _walk(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("."))
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


def find_example(name: str, given: Path | None = None) -> Path:
    """The folder `examples/NAME`: the one given, one under the working directory, or that of a source checkout."""
    tried = [given] if given else [Path("examples", name), Path(__file__).parents[3] / "examples" / name]
    for path in tried:
        if path.is_dir():
            return path
    raise SystemFault(
        f"cannot find the example {name}: run this in a checkout of rewarm, or name its folder with --app"
    )
