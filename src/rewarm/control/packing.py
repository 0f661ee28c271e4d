"""Packing at deploy: the uploaded class is constructed and run once, in a process of its own, and its weights are put
in the order in which they are needed (see `rewarm.worker.packing` and `rewarm.weights`).

A function that cannot be packed is deployed all the same, and reads its weights as its code says; why is in the
answer. What would be dangerous or wrong in any case, as a checkpoint with code in it, refuses the deploy.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rewarm.control import child
from rewarm.errors import from_code
from rewarm.store.store import Store, ToPack
from rewarm.weights.format import Index
from rewarm.weights.writer import Known, dump_known

SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".onnx"})
PACK_TIMEOUT_S = 900.0
_DATA_BYTES_MIN = 4 << 30


def pack(store: Store, what: ToPack) -> dict[str, Any]:
    """Make the pack of a revision that is about to be published, unless it is there → `{"packed", "why", …}`.

    Blocks. Raises BadDefinition for weights that must not or cannot be served, SystemFault if the disk fails.
    """
    if what.weights.suffix not in SUFFIXES:
        return {"packed": False, "why": f"{what.weights.suffix or 'this kind of'} files are read as they are"}
    known = store.sound_pack(what.key)
    if known is not None:
        return {"packed": True, **describe(known.index)}
    folder = store.stage()
    try:
        report = run(what, folder, store.home.tensors_dir, store.known_tensors())
        if not report["packed"]:
            return report
        placed = store.publish_pack(folder)
        return {"packed": True, **describe(placed.index)}
    finally:
        if folder.exists():
            store.discard(folder)


def run(what: ToPack, out: Path, tensors_dir: Path, known: Known) -> dict[str, Any]:
    """Pack into the empty directory `out` → `{"packed", "why"}`. Raises what the packing process refuses with."""
    limit = max(_DATA_BYTES_MIN, 4 * what.weights.stat().st_size)
    with tempfile.TemporaryDirectory(prefix="rewarm-pack-") as folder:
        known_file, order_file = Path(folder, "known.json"), Path(folder, "order.json")
        known_file.write_bytes(dump_known(known))
        order = {
            "spec": what.spec.to_json(), "code_dir": str(what.code_dir), "weights_path": str(what.weights),
            "weights_sha256": what.weights_sha, "key": what.key, "out": str(out), "tensors_dir": str(tensors_dir),
            "known": str(known_file),
        }  # fmt: skip
        order_file.write_text(json.dumps(order), encoding="utf-8")
        try:
            report, status = child.report_of(
                "rewarm.worker.packing", [str(order_file)], timeout_s=PACK_TIMEOUT_S, data_bytes=limit
            )
        except TimeoutError:
            return {"packed": False, "why": f"packing took longer than {PACK_TIMEOUT_S:.0f} s"}
    if "ok" not in report:
        return {"packed": False, "why": f"the process that packs it ended with status {status}"}
    if not report["ok"]:
        raise from_code(report["code"], report["error"])
    return {"packed": bool(report.get("packed", True)), "why": report.get("why")}


def describe(index: Index) -> dict[str, Any]:
    """A pack in a few figures."""
    facts = index.facts()
    return {
        "order": index.order, "layers": len(index.layers), "bytes": facts.total_bytes,
        "streamed_bytes": facts.streamed_bytes,
    }  # fmt: skip
