"""What is alive, what it holds and what that was good for: the answer behind `rewarm ps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarm.control.models import ModelDesk
from rewarm.core.meter import Meter
from rewarm.core.model import Model
from rewarm.core.node import Node
from rewarm.core.tree import Branch, lang_id, tree
from rewarm.facts.sandbox import Layer
from rewarm.obs.stats import FunctionStats
from rewarm.units import MB

_LAYERS = (Layer.BARE, Layer.LANG, Layer.USER)


def nodes(node: Node, pids: Mapping[Any, int], now: float) -> list[dict[str, Any]]:
    """Every layer with its parent. `pids` is by sandbox or Lang key, as drivers tell it; Bares have no process."""
    pid_of = {_id(owner): pid for owner, pid in pids.items()}
    versions = {_id(sandbox.id): sandbox.revision.version for sandbox in node.pool.sandboxes.values()}
    return [
        {**_branch(branch), "pid": pid_of.get(branch.id), "version": versions.get(branch.id)}
        for branch in tree(node, now)
    ]


def _id(owner: Any) -> str:
    return f"instance:{owner}" if isinstance(owner, int) else lang_id(owner)


def _branch(branch: Branch) -> dict[str, Any]:
    above = (branch.parent or "").removeprefix("lang:")
    key = {Layer.LANG: branch.name, Layer.USER: above, Layer.ASLEEP: above}.get(branch.layer)
    return {
        "id": branch.id, "parent": branch.parent, "layer": branch.layer.name.lower(), "name": branch.name,
        "function": branch.name if branch.layer in (Layer.USER, Layer.ASLEEP) else None, "key": key,
        "state": branch.state, "children": branch.children, "resident_bytes": branch.resident_bytes,
        "disk_bytes": branch.disk_bytes, "startup_s": branch.startup_s,
        "uses": branch.uses, "saved_s": branch.saved_s, "idle_s": branch.idle_s, "expires_in_s": branch.expires_s,
    }  # fmt: skip


def models(node: Node, desk: ModelDesk, stats: Mapping[str, FunctionStats], now: float) -> list[dict[str, Any]]:
    """Every pack that functions use: its size, what is pinned of it and why, and how its last load went."""
    return [
        {
            "key": model.key, "functions": sorted(model.wishes), "pin": model.pin,
            "weights_bytes": model.total_bytes,
            "streamed_bytes": model.streamed_bytes,
            "pinned_bytes": model.pinned_bytes, "pinned_tables": [model.layers[no].name for no in model.tables],
            "bandwidth_bytes_s": model.bandwidth_bytes_s,
            "cold_per_h": model.cold_per_s(now) * 3600.0, "expected_ttfi_ms": model.ttfi_s * 1e3,
            **desk.told(model.key), "last_load": _last_load(model, stats),
        }
        for model in node.pool.models.by_key.values()
    ]  # fmt: skip


def _last_load(model: Model, stats: Mapping[str, FunctionStats]) -> dict[str, float] | None:
    """Of whichever of its functions loaded it last; that cannot be told, so of the first that did."""
    loadings = (stats[name].loadings for name in sorted(model.wishes) if name in stats)
    return next((dict(loading[-1]) for loading in loadings if loading), None)


def ledger(node: Node, branches: list[dict[str, Any]]) -> dict[str, Any]:
    """The account and its sums by layer. `ending_bytes` are of what was told to end and has not gone yet.

    `disk`: the other account, of snapshots. What is asleep holds no memory.
    """
    account = node.pool.ledger
    disk = node.pool.ground.disk
    by_layer = {layer.name.lower(): 0 for layer in (Layer.ASLEEP, *_LAYERS)}
    by_layer["model"] = sum(account.of(model.node) for model in node.pool.models.by_key.values())
    for branch in branches:
        by_layer[branch["layer"]] += branch["resident_bytes"]
    return {
        "budget_bytes": account.budget_bytes, "held_bytes": account.held_bytes, "ending_bytes": account.ending_bytes,
        "by_layer": by_layer, "disk": {"budget_bytes": disk.budget_bytes, "held_bytes": disk.held_bytes},
    }  # fmt: skip


def metered(meter: Meter, now: float) -> dict[str, Any]:
    """Idle memory over time since the server started, MB of 2**20 bytes.

    `used_mb_s` was idle and then used, `wasted_mb_s` ended unused, `open_mb_s` is idle still.
    """
    pending = meter.pending_byte_s(now)
    by_layer = {
        layer.name.lower(): {
            "used_mb_s": meter.used_byte_s[layer] / MB, "wasted_mb_s": meter.wasted_byte_s[layer] / MB,
            "open_mb_s": pending[layer] / MB,
        }
        for layer in _LAYERS
    }  # fmt: skip
    totals = {name: sum(sums[name] for sums in by_layer.values()) for name in ("used_mb_s", "wasted_mb_s", "open_mb_s")}
    starts = {kind.value: count for kind, count in meter.starts.items() if count}
    return {**totals, "evictions": meter.evictions, "starts": starts, "by_layer": by_layer}
