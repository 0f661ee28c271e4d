"""What must be true of the core after every event. Called by tests and by the testing world, never on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain

from rewarm.core.bares import IDLE_MAX
from rewarm.core.pool import Pool
from rewarm.core.state import FunctionState, LayerState, SnapshotState
from rewarm.facts.sandbox import SandboxState as State
from rewarm.facts.sandbox import StartKind


def check(functions: Mapping[str, FunctionState], pool: Pool) -> None:
    """Raises AssertionError, naming the record, unless the node's records agree with each other."""
    check_pool(pool)
    check_disk(functions, pool)
    seen: set[int] = set()
    for fn in functions.values():
        assert fn.rising == sum(s.rising for s in fn.sandboxes.values()), fn
        leaving = any(s.state is State.DYING or s.revision is not fn.revision for s in fn.sandboxes.values())
        assert len(fn.sandboxes) <= fn.revision.spec.max_instances or leaving, fn
        for request in chain(fn.queue, *(s.batch or () for s in fn.sandboxes.values())):
            assert id(request) not in seen, f"{request} is in two places"
            seen.add(id(request))


def check_pool(pool: Pool) -> None:
    """The same for sandboxes, Lang layers, Bares, models and the memory ledger."""
    pool.ledger.check()
    for sandbox in pool.sandboxes.values():
        fn = sandbox.function
        assert fn.sandboxes.get(sandbox.id) is sandbox, sandbox
        assert sandbox.id in pool.ledger, sandbox
        assert (sandbox.batch is not None) == (sandbox.state is State.BUSY), sandbox
        assert (sandbox in fn.idle) == (sandbox.state is State.READY), sandbox
        restored = sandbox.found is StartKind.RESTORED
        assert sandbox.holds_lang != restored or not sandbox.key.forks, f"{sandbox}: does it hold its zygote?"
    bares = pool.bares.layers
    langs = [lang for lang in pool.langs.values() if not lang.key.vm_bytes]
    assert all(node in pool.ledger for node in (*(lang.key for lang in langs), *bares)), "a layer that is on no account"
    assert len(bares) <= IDLE_MAX, f"{len(bares)} Bares"
    assert not bares.keys() & pool.sandboxes.keys(), "a Bare that is somebody's"
    held = Counter(s.key for s in pool.sandboxes.values() if s.holds_lang)
    counted = {key: known.holders for key, known in pool.runtimes.known.items() if known.holders}
    assert counted == held, "holders of Lang layers counted wrongly"
    ending: set[object] = {s.id for s in pool.sandboxes.values() if s.state is State.DYING}
    ending |= {lang.key for lang in langs if lang.state is LayerState.DYING}
    ending |= {bare.id for bare in bares.values() if bare.state is LayerState.DYING}
    assert pool.ledger.ending == ending, "dying counted wrongly"
    gone = len(pool.ledger) - len(pool.sandboxes) - len(langs) - len(bares) - _check_models(pool)
    assert gone == 0, f"{gone} accounts of something that is gone"


def check_disk(functions: Mapping[str, FunctionState], pool: Pool) -> None:
    """The same for what is on disk: snapshots, and the Lang layers of micro-VMs."""
    disk = pool.ground.disk
    disk.check()
    langs = {key: lang for key, lang in pool.langs.items() if key.vm_bytes}
    snapshots = [fn.snapshot for fn in functions.values() if fn.snapshot is not None]
    for snapshot in snapshots:
        fn = snapshot.function
        assert fn.snapshot is snapshot and fn.revision is snapshot.revision, f"{snapshot} is of another revision"
        there = snapshot.state is SnapshotState.THERE
        assert (snapshot.node in disk) == there, f"{snapshot} and the disk account disagree"
        assert (fn.up_s is snapshot.restore_s) == there, f"{snapshot}: what waking costs is another's"
    there_count = sum(snapshot.node in disk for snapshot in snapshots)
    assert len(disk) == there_count + len(langs), "disk accounts of something that is gone"
    assert disk.ending == {key for key, lang in langs.items() if lang.state is LayerState.DYING}, "dying on disk"


def _check_models(pool: Pool) -> int:
    """The same for models. Returns how many are pinned in part."""
    models = pool.models
    used = {(name, key) for key, model in models.by_key.items() for name in model.wishes}
    assert used == {(name, model.key) for name, model in models.by_function.items()}, "models and functions disagree"
    for model in models.by_key.values():
        assert model.wishes, f"{model} is nobody's"
        assert 0 <= model.pinned_bytes <= model.total_bytes, model
        assert model.pinned_bytes or not model.tables, model
        assert all(models.by_key[other.key] is other and model in other.sharers for other in model.sharers), model
        if not model.sharers:
            assert pool.ledger.of(model.node) == model.pinned_bytes, model
    counted_bytes = sum(pool.ledger.of(model.node) for model in models.by_key.values())
    assert counted_bytes == models.held_by(list(models.by_key.values())), "pins are not counted once each"
    return sum(model.node in pool.ledger for model in models.by_key.values())
