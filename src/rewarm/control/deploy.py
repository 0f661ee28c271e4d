"""From an uploaded archive to a revision in the store: unpack, look inside, apply overrides, publish.

The uploaded code is imported here once, in a process of its own with limits on time and memory: what deploys, imports.
All of this blocks and runs in a thread.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rewarm.control import overrides
from rewarm.errors import BadDefinition, from_code
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.kernel import SINGLE_THREADED_ENV
from rewarm.store import archive
from rewarm.store.store import Store

INSPECT_TIMEOUT_S = 120.0
_INSPECT_DATA_BYTES = 4 << 30


def deploy(store: Store, upload: Path) -> tuple[Revision, bool]:
    """Publish what `upload` (a tar file, see store.archive) holds.

    Returns the revision and whether it was already the current one. Raises BadRequest, BadDefinition, StartFailed
    (does not import), or a SystemFault of the store; nothing is left behind then.
    """
    staged = store.stage()
    try:
        request = archive.extract(upload, staged)
        spec = _look_inside(staged, request)
        spec = overrides.apply(spec, request.name, request.overrides)
        revision, unchanged = store.deploy(staged, spec)
    except BaseException:
        if staged.exists():
            store.discard(staged)
        raise
    return revision, unchanged


def _look_inside(staged: Path, request: archive.DeployRequest) -> FunctionSpec:
    report = inspect(staged / request.file, request.select, request.handler)
    functions = report["functions"]
    if len(functions) > 1:
        names = ", ".join(sorted(f["name"] for f in functions))
        raise BadDefinition(
            f"{request.file} defines {len(functions)} functions: {names}; name one: {request.file}:NAME"
        )
    return FunctionSpec.from_json(functions[0]["spec"])


def inspect(file: Path, select: str | None, handler: str | None) -> dict[str, Any]:
    """Run `rewarm.worker.inspect` on `file` in a process of its own. Raises the error that it reports."""
    command = [sys.executable, "-P", "-m", "rewarm.worker.inspect", str(file)]
    command += ["--select", select] if select else []
    command += ["--handler", handler] if handler else []
    scratch = tempfile.mkdtemp(prefix="rewarm-inspect-")
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=INSPECT_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False,
            env={**os.environ, **SINGLE_THREADED_ENV, "TMPDIR": scratch}, preexec_fn=_limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BadDefinition(f"importing {file.name} took longer than {INSPECT_TIMEOUT_S:.0f} s") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    try:
        report = json.loads(done.stdout.decode().splitlines()[-1])
    except (IndexError, ValueError):
        raise BadDefinition(f"{file.name} does not import: its process ended with status {done.returncode}") from None
    if not report["ok"]:
        raise from_code(report["code"], report["error"])
    return dict(report)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_INSPECT_DATA_BYTES, _INSPECT_DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
