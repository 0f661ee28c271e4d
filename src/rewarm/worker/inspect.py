"""Look into a file before it is deployed: which functions does it define, and what do they need?

    python -m rewarm.worker.inspect FILE [--select NAME | --handler module.attribute]

Imports FILE in this (separate, short-lived) process, JavaScript in a node process, and prints one JSON line:

    {"ok": true, "functions": [{"name", "entry", "weights", "files", "spec"}]}
    {"ok": false, "code": "...", "error": "..."}

`files` are the modules of the file's own folder that importing it pulled in, relative to that folder.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

from rewarm import define
from rewarm.errors import RewarmError
from rewarm.facts.function import FunctionSpec
from rewarm.worker.node import inspect as node_inspect
from rewarm.worker.user import UserError, find_entry


def inspect_file(file: Path, select: str | None, handler: str | None) -> list[dict[str, Any]]:
    """The functions that `file` offers, narrowed by `select` or `handler`. Raises UserError."""
    folder = file.resolve().parent
    if not file.is_file():
        raise UserError(f"{file} is not a file", "FileNotFoundError", "bad_definition")
    if file.suffix in node_inspect.SUFFIXES:
        return [_node_function(file.resolve(), select, handler)]
    if not file.stem.isidentifier():
        raise UserError(f"{file.name} is not the name of a Python module; rename it", "ValueError", "bad_definition")
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    if handler is not None:
        specs = [_handler_spec(file, handler, str(folder))]
    else:
        specs = _decorated(file, select, str(folder))
    files = _local_modules(folder)
    return [_entry(spec, files) for spec in specs]


def _handler_spec(file: Path, handler: str, folder: str) -> FunctionSpec:
    module, _, attribute = handler.rpartition(".")
    if not module:
        raise UserError(f"--handler is module.attribute, not {handler!r}", "ValueError", "bad_definition")
    target = find_entry(f"{module}:{attribute}", folder)
    if not callable(target):
        raise UserError(f"{handler} is not a function", "TypeError", "bad_definition")
    declared = getattr(target, "__rewarm__", None)
    if isinstance(declared, FunctionSpec):
        return declared
    if inspect.isclass(target):
        raise UserError(f"{handler} is a class: mark it with @rewarm.function", "TypeError", "bad_definition")
    batching = define.default_batching(False)
    return FunctionSpec(_default_name(file, attribute), "handler", f"{module}:{attribute}", batching=batching)


def _default_name(file: Path, attribute: str) -> str:
    """A function of a usual name is called as its file is."""
    return file.stem if attribute in ("handler", "main", "lambda_handler", "default") else attribute


def _node_function(file: Path, select: str | None, handler: str | None) -> dict[str, Any]:
    export = node_inspect.export_name(file, select, handler)
    found = node_inspect.look_inside(file, export)
    spec = _said(_default_name(file, export), found["says"])
    spec = dataclasses.replace(spec, entry=f"{file.name}:{export}", runtime="nodejs")
    return _entry(spec, found["files"])


def _said(name: str, says: dict[str, Any]) -> FunctionSpec:
    """What the decorator makes of the same words. Raises UserError."""

    def stand_in(event: object, context: object) -> None: ...

    try:
        define.function(**{"name": name, **says})(stand_in)
    except (TypeError, ValueError, AttributeError) as error:  # an argument that there is not, or of a wrong kind
        text = f"the property rewarm of {name} takes what @rewarm.function takes for a handler: {error}"
        raise UserError(text, type(error).__name__, "bad_definition") from error
    spec: FunctionSpec = stand_in.__rewarm__  # type: ignore[attr-defined]
    return spec


def _entry(spec: FunctionSpec, files: list[str]) -> dict[str, Any]:
    return {"name": spec.name, "entry": spec.entry, "weights": spec.weights, "files": files, "spec": spec.to_json()}


def _decorated(file: Path, select: str | None, folder: str) -> list[FunctionSpec]:
    module = find_entry(f"{file.stem}:__dict__", folder)
    found: dict[str, FunctionSpec] = {}
    for name, thing in module.items():
        spec = getattr(thing, "__rewarm__", None)
        if isinstance(spec, FunctionSpec) and getattr(thing, "__module__", None) == file.stem:
            found[name] = spec
    if select is not None:
        chosen = [spec for name, spec in found.items() if select in (name, spec.name)]
        if not chosen:
            raise UserError(
                f"{file.name} has no function {select!r}; it has {sorted(found)}", "NameError", "bad_definition"
            )
        return chosen[:1]
    if not found:
        text = f"{file.name} has no function: mark one with @rewarm.function, or name a handler with --handler"
        raise UserError(text, "NameError", "bad_definition")
    return list(found.values())


def _local_modules(folder: Path) -> list[str]:
    files = set()
    for module in list(sys.modules.values()):
        origin = getattr(module, "__file__", None)
        if not origin or not os.path.isabs(origin) or "site-packages" in origin:
            continue  # torch.classes says "_classes.py", which is no path at all
        if Path(origin).resolve().is_relative_to(folder):
            files.add(str(Path(origin).resolve().relative_to(folder)))
    return sorted(files)


def main() -> None:
    parser = argparse.ArgumentParser(prog="rewarm.worker.inspect")
    parser.add_argument("file", type=Path)
    parser.add_argument("--select")
    parser.add_argument("--handler")
    arguments = parser.parse_args()
    # What the file prints while it is imported must not get between us and our reader.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            functions = inspect_file(arguments.file, arguments.select, arguments.handler)
            report: dict[str, Any] = {"ok": True, "functions": functions}
        except (UserError, RewarmError) as error:
            report = {"ok": False, "code": error.code, "error": error.message}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # threads and exit handlers of the file must not hold it up
