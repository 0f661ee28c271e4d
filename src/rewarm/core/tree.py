"""What `rewarm ps` shows: every layer, what it holds, what it costs to raise and what keeping it has saved.

A runtime that has ended, or was used up, is still there while instances of its key live or sleep: they are its
branches.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewarm.core.node import Node
from rewarm.core.pool import Pool
from rewarm.core.state import INF, FunctionState, Sandbox, Snapshot, SnapshotState
from rewarm.facts.function import LangKey
from rewarm.facts.sandbox import Layer, SandboxState

BARE_ID = "bare"


@dataclass(frozen=True, slots=True)
class Branch:
    """One node of the tree. All Bares are one node. Durations in seconds; `startup_s` is 0.0 while it is unknown."""

    id: str  # "bare", "lang:KEY", "asleep:FUNCTION" or "instance:NUMBER"
    parent: str | None  # of a Lang key its nearest ancestor here; of an instance or a snapshot its Lang key
    layer: Layer
    name: str  # of the function, or the Lang key
    state: str  # of a Lang key without a living runtime "gone"; of the Bares how many are "3 idle"; "making", "asleep"
    children: int  # branches whose parent it is
    resident_bytes: int
    disk_bytes: int  # of a snapshot, and of the Lang layer of a micro-VM, which is one
    startup_s: float  # what raising this layer costs, running mean; of a snapshot what waking from it takes
    uses: int  # requests served, sandboxes forked or restored, or Bares taken
    saved_s: float  # of start-up, each time that the layer was there already when it was needed
    idle_s: float | None  # None: it is in use, or not there
    expires_s: float | None  # when its policy is asked again, from now; None: no limit, or in use


def tree(node: Node, now: float) -> list[Branch]:
    """The Bares, then each Lang key followed by what sleeps and its instances; keys and functions by name, instances
    by number."""
    pool = node.pool
    asleep = [fn for _, fn in sorted(node.functions.items()) if _shown(fn) is not None]
    used = [*(fn.key for fn in asleep), *(sandbox.key for sandbox in pool.sandboxes.values())]
    keys = sorted({*pool.langs, *used}, key=str)
    by_key: dict[LangKey, list[Sandbox]] = {key: [] for key in keys}
    for _, sandbox in sorted(pool.sandboxes.items()):
        by_key[sandbox.key].append(sandbox)
    parents = {key: _parent(key, keys) for key in keys}
    branches = [_bares(pool, now)]
    for key, instances in by_key.items():
        sleeping = [_asleep(pool, snapshot, now) for fn in asleep if fn.key == key and (snapshot := _shown(fn))]
        children = len(sleeping) + len(instances) + sum(parent == key for parent in parents.values())
        branches.append(_lang(pool, key, parents[key], children, now))
        branches += sleeping
        branches += [_instance(pool, sandbox, now) for sandbox in instances]
    return branches


def _parent(key: LangKey, keys: list[LangKey]) -> LangKey | None:
    ancestors = [other for other in keys if other != key and other.covers(key)]
    return max(ancestors, key=lambda other: (len(other.packages), str(other)), default=None)


def _bares(pool: Pool, now: float) -> Branch:
    bares, idle = pool.bares, pool.bares.idle
    return Branch(
        BARE_ID, None, Layer.BARE, BARE_ID, f"{len(idle)} idle", 0,
        sum(pool.ledger.of(sandbox_id) for sandbox_id in bares.layers), 0, bares.seconds.value, bares.taken,
        bares.taken * bares.seconds.value, now - idle[0].idle_since_s if idle else None,
        _left(min((bare.expires_s for bare in idle), default=INF), now),
    )  # fmt: skip


def _lang(pool: Pool, key: LangKey, parent: LangKey | None, children: int, now: float) -> Branch:
    lang, runtimes = pool.langs.get(key), pool.runtimes
    known = runtimes.of(key)
    startup_s = runtimes.seconds_of(key)
    idle = lang is not None and runtimes.idle(lang)
    return Branch(
        lang_id(key), lang_id(parent) if parent is not None else None, Layer.LANG, str(key),
        lang.state.value if lang is not None else "gone", children, pool.ledger.of(key),
        pool.ground.disk.of(key), startup_s,
        known.uses, known.reuses * startup_s, now - lang.idle_since_s if lang and idle else None,
        _left(lang.expires_s, now) if lang and idle else None,
    )  # fmt: skip


def _shown(fn: FunctionState) -> Snapshot | None:
    snapshot = fn.snapshot
    return snapshot if snapshot is not None and snapshot.state is not SnapshotState.NONE else None


def _asleep(pool: Pool, snapshot: Snapshot, now: float) -> Branch:
    fn, idle = snapshot.function, snapshot.idle
    return Branch(
        f"asleep:{fn.name}", lang_id(fn.key), Layer.ASLEEP, fn.name, snapshot.state.value, 0, 0,
        pool.ground.disk.of(snapshot.node), snapshot.restore_s.value, snapshot.uses,
        snapshot.uses * max(0.0, snapshot.saved_s), now - snapshot.idle_since_s if idle else None,
        _left(snapshot.expires_s, now) if idle else None,
    )  # fmt: skip


def _instance(pool: Pool, sandbox: Sandbox, now: float) -> Branch:
    idle = sandbox.state is SandboxState.READY
    fn = sandbox.function
    startup_s = fn.up_s.value if fn.up_s is not fn.user_s or fn.user_s.count else 0.0
    return Branch(
        f"instance:{sandbox.id}", lang_id(sandbox.key), Layer.USER, fn.name, sandbox.state.value, 0,
        pool.ledger.of(sandbox.id), 0, startup_s, sandbox.uses, sandbox.reuses * startup_s,
        now - sandbox.idle_since_s if idle else None, _left(sandbox.expires_s, now) if idle else None,
    )  # fmt: skip


def lang_id(key: LangKey) -> str:
    return f"lang:{key}"


def _left(expires_s: float, now: float) -> float | None:
    return max(0.0, expires_s - now) if expires_s < INF else None
