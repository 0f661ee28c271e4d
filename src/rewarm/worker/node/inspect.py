"""Look into a JavaScript file before it is deployed, with `inspect.mjs` in a node process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rewarm import kernel
from rewarm.errors import SystemFault
from rewarm.worker.user import UserError

SUFFIXES = (".mjs", ".cjs", ".js")
#: The first that tells a program what it imports (`module.register`); older ones are out of support.
VERSION_MIN = (18, 19)
INSTALL = f"install Node.js {'.'.join(map(str, VERSION_MIN))} or newer (node on the PATH)"

_SCRIPT = Path(__file__).with_name("inspect.mjs")


def version() -> str:
    """Of the node on the PATH, such as "20.11.1". Raises SystemFault if there is none or it is too old."""
    try:
        said = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemFault(f"node cannot be run ({error}); for Node.js functions {INSTALL}") from None
    found = re.match(r"v(\d+)\.(\d+)\.\S+", said)
    if found is None or (int(found[1]), int(found[2])) < VERSION_MIN:
        raise SystemFault(f"node says it is {said.strip()!r}, which is too old; for Node.js functions {INSTALL}")
    return said.strip().removeprefix("v")


def export_name(file: Path, select: str | None, handler: str | None) -> str:
    """The name under which `file` exports the function: what was asked for, else "handler". Raises UserError."""
    if handler is None:
        return select or "handler"
    for prefix in (f"{file.name}.", f"{file.stem}."):
        if handler.startswith(prefix) and handler != prefix:
            return handler.removeprefix(prefix)
    raise UserError(f"--handler is {file.stem}.EXPORT for {file.name}, not {handler!r}", "ValueError", "bad_definition")


def look_inside(file: Path, export: str) -> dict[str, Any]:
    """Import `file` (an absolute path): the `files` that this pulled in, and what its function `says` about itself.

    Raises UserError, or SystemFault without a usable node. The process dies with this one.
    """
    version()
    parent = os.getpid()
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        done = subprocess.run(
            ["node", str(_SCRIPT), str(file), export, report.name], cwd=file.parent, stdin=subprocess.DEVNULL,
            stdout=sys.stderr, preexec_fn=lambda: kernel.die_with(parent), check=False,
        )  # fmt: skip
        try:
            found = dict(json.loads(Path(report.name).read_bytes()))
        except ValueError:
            text = f"{file.name} does not import: its process ended with status {done.returncode}"
            raise UserError(text, "Error", "bad_definition") from None
    if not found["ok"]:
        raise UserError(str(found["error"]), "Error", str(found["code"]))
    return found
