"""From an uploaded archive to a revision in the store: unpack, look inside, apply overrides, publish.

The uploaded code is imported here once, in a process of its own with limits on time and memory: what deploys, imports.
All of this blocks and runs in a thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewarm.control import child, overrides, packing
from rewarm.errors import BadDefinition, BadRequest, from_code
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.policy import registry
from rewarm.store import archive
from rewarm.store.store import Candidate, Store, ToPack

INSPECT_TIMEOUT_S = 120.0
_INSPECT_DATA_BYTES = 4 << 30


def deploy(
    store: Store, upload: Path, prove: Callable[[Candidate], object] = lambda _: None
) -> tuple[Revision, bool, dict[str, Any]]:  # fmt: skip
    """Publish what `upload` (a tar file, see store.archive) holds, unless `prove` raises something.

    Returns the revision, whether it was already the current one, and what became of packing its weights ({} if it has
    none). Raises BadRequest, BadDefinition, StartFailed
    (does not import), or a SystemFault of the store; nothing is left behind then.
    """
    staged = store.stage()
    try:
        request = archive.extract(upload, staged)
        spec = _look_inside(staged, request)
        spec = overrides.apply(spec, request.name, request.overrides)
    except BaseException:
        store.discard(staged)
        raise
    return _publish(store, staged, spec, prove)


def deploy_again(
    store: Store, name: str, version: int | None, prove: Callable[[Candidate], object] = lambda _: None
) -> tuple[Revision, bool, dict[str, Any]]:
    """Publish a kept revision once more, as the newest; None: the one before the current one. Returns as `deploy`.

    Its code is not imported again to see what it defines, but its weights are packed and its guest proved as at any
    deploy. Raises NotFound and BadRequest, and what `deploy` raises.
    """
    kept = {revision.version: revision for revision in store.history(name)}  # the current one is the newest, and first
    if len(kept) == 1:
        raise BadRequest(f"of {name} only version {next(iter(kept))} is kept, which is the current one")
    if version is None:
        version = list(kept)[1]
    if version not in kept:
        there = ", ".join(str(number) for number in sorted(kept))
        raise BadRequest(f"version {version} of {name} is not kept; there are {there}")
    chosen = kept[version]
    return _publish(store, store.stage_again(chosen), chosen.spec, prove)


def _publish(
    store: Store, staged: Path, spec: FunctionSpec, prove: Callable[[Candidate], object]
) -> tuple[Revision, bool, dict[str, Any]]:  # fmt: skip
    try:
        # The policy is built as it will be: one that plans with a profile says now that there is none.
        admit = functools.partial(registry.batching, spec.batching, spec)
        packed: dict[str, Any] = {}

        def pack(what: ToPack) -> None:
            if spec.isolation == "process":  # a guest reads its weights through a page cache of its own
                packed.update(packing.pack(store, what))

        revision, unchanged = store.deploy(staged, spec, admit, pack, prove)
    except BaseException:
        if staged.exists():
            store.discard(staged)
        raise
    return revision, unchanged, packed


def _look_inside(staged: Path, request: archive.DeployRequest) -> FunctionSpec:
    found = inspect(staged / request.file, request.select, request.handler)
    return FunctionSpec.from_json(found["spec"])


def inspect(file: Path, select: str | None, handler: str | None) -> dict[str, Any]:
    """The one function of `file`, as `rewarm.worker.inspect` tells it in a process of its own.

    Raises the error that it reports, and BadDefinition if there are several.
    """
    arguments = [str(file)]
    arguments += ["--select", select] if select else []
    arguments += ["--handler", handler] if handler else []
    try:
        report, status = child.report_of(
            "rewarm.worker.inspect", arguments, timeout_s=INSPECT_TIMEOUT_S, data_bytes=_INSPECT_DATA_BYTES
        )
    except TimeoutError:
        raise BadDefinition(f"importing {file.name} took longer than {INSPECT_TIMEOUT_S:.0f} s") from None
    if "ok" not in report:
        raise BadDefinition(f"{file.name} does not import: its process ended with status {status}")
    if not report["ok"]:
        raise from_code(report["code"], report["error"])
    functions = report["functions"]
    if len(functions) > 1:
        names = ", ".join(function["entry"].rpartition(":")[2] for function in functions)
        text = f"{file.name} defines {len(functions)} functions ({names}): choose one with {file.name}:NAME"
        raise BadDefinition(text)
    return dict(functions[0])
