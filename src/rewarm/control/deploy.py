"""From an uploaded archive to a revision in the store: unpack, look inside, apply overrides, publish.

The uploaded code is imported here once, in a process of its own with limits on time and memory: what deploys, imports.
All of this blocks and runs in a thread.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rewarm import kernel
from rewarm.control import overrides
from rewarm.errors import BadDefinition, from_code
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.policy import registry
from rewarm.store import archive
from rewarm.store.store import Store

INSPECT_TIMEOUT_S = 120.0
_INSPECT_DATA_BYTES = 4 << 30
_REPORT_BYTES_MAX = 1 << 20
_REAP_S = 5.0
_POLL_S = 0.01


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
        # The policy is built as it will be: one that plans with a profile says now that there is none.
        admit = functools.partial(registry.batching, spec.batching, spec)
        revision, unchanged = store.deploy(staged, spec, admit)
    except BaseException:
        if staged.exists():
            store.discard(staged)
        raise
    return revision, unchanged


def _look_inside(staged: Path, request: archive.DeployRequest) -> FunctionSpec:
    found = inspect(staged / request.file, request.select, request.handler)
    return FunctionSpec.from_json(found["spec"])


def inspect(file: Path, select: str | None, handler: str | None) -> dict[str, Any]:
    """The one function of `file`, as `rewarm.worker.inspect` tells it in a process of its own.

    Raises the error that it reports, and BadDefinition if there are several.
    """
    command = [sys.executable, "-P", "-m", "rewarm.worker.inspect", str(file)]
    command += ["--select", select] if select else []
    command += ["--handler", handler] if handler else []
    scratch = tempfile.mkdtemp(prefix="rewarm-inspect-")
    env = {**os.environ, **kernel.SINGLE_THREADED_ENV, "TMPDIR": scratch}
    try:
        # A file and not a pipe: what the import started may hold it open for ever.
        with tempfile.TemporaryFile() as out:
            status = _run(command, env, out)
            out.seek(max(0, out.seek(0, os.SEEK_END) - _REPORT_BYTES_MAX))
            lines = out.read().splitlines()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if status is None:
        raise BadDefinition(f"importing {file.name} took longer than {INSPECT_TIMEOUT_S:.0f} s")
    try:
        report = dict(json.loads(lines[-1]))
        ok = report["ok"]
    except (IndexError, ValueError, TypeError, KeyError):
        raise BadDefinition(f"{file.name} does not import: its process ended with status {status}") from None
    if not ok:
        raise from_code(report["code"], report["error"])
    functions = report["functions"]
    if len(functions) > 1:
        names = ", ".join(function["entry"].rpartition(":")[2] for function in functions)
        text = f"{file.name} defines {len(functions)} functions ({names}): choose one with {file.name}:NAME"
        raise BadDefinition(text)
    return dict(functions[0])


def _run(command: list[str], env: dict[str, str], out: IO[bytes]) -> int | None:
    """Run to the end and leave no process behind → exit status, None if it took too long.

    In a process group of its own, to be killed with all that it started, but in the session of the server: foreign
    sessions are swept (sandbox.reaper).
    """
    server = os.getpid()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL, env=env, process_group=0,
        preexec_fn=lambda: _limit(server),
    )  # fmt: skip
    try:
        ended = _has_ended(process.pid)
    finally:
        # Before it is reaped: until then nobody else can get the number of its group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        _reap_group(process.pid)
    return status if ended else None


def _has_ended(pid: int) -> bool:
    """Wait for a child without reaping it; False if it takes too long."""
    end_s = time.monotonic() + INSPECT_TIMEOUT_S
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end_s:
            return False
        time.sleep(_POLL_S)
    return True


def _reap_group(group: int) -> None:
    """The server adopts orphans, so what was killed of the group is its child by now."""
    end_s = time.monotonic() + _REAP_S
    with suppress(ChildProcessError):
        while time.monotonic() < end_s:
            if os.waitpid(-group, os.WNOHANG)[0] == 0:
                time.sleep(_POLL_S)


def _limit(server: int) -> None:
    """In the child, before it runs: it dies with the server and cannot take all memory."""
    kernel.die_with(server)
    resource.setrlimit(resource.RLIMIT_DATA, (_INSPECT_DATA_BYTES, _INSPECT_DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
