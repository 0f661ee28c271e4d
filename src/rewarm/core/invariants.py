"""What must be true of the core after every event. Called by tests and by the testing world, never on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain

from rewarm.core.bares import IDLE_MAX
from rewarm.core.pool import Pool
from rewarm.core.state import FunctionState, LayerState
from rewarm.facts.sandbox import SandboxState as State


def check(functions: Mapping[str, FunctionState], pool: Pool) -> None:
    """Raises AssertionError, naming the record, unless the node's records agree with each other."""
    check_pool(pool)
    seen: set[int] = set()
    for fn in functions.values():
        assert fn.rising == sum(s.rising for s in fn.sandboxes.values()), fn
        leaving = any(s.state is State.DYING or s.revision is not fn.revision for s in fn.sandboxes.values())
        assert len(fn.sandboxes) <= fn.revision.spec.max_instances or leaving, fn
        for request in chain(fn.queue, *(s.batch or () for s in fn.sandboxes.values())):
            assert id(request) not in seen, f"{request} is in two places"
            seen.add(id(request))


def check_pool(pool: Pool) -> None:
    """The same for sandboxes, Lang layers, Bares, models and the ledger."""
    pool.ledger.check()
    for sandbox in pool.sandboxes.values():
        fn = sandbox.function
        assert fn.sandboxes.get(sandbox.id) is sandbox, sandbox
        assert sandbox.id in pool.ledger, sandbox
        assert (sandbox.batch is not None) == (sandbox.state is State.BUSY), sandbox
        assert (sandbox in fn.idle) == (sandbox.state is State.READY), sandbox
        assert sandbox.holds_lang or not sandbox.key.forks, f"{sandbox} does not hold its zygote"
    bares = pool.bares.layers
    assert all(node in pool.ledger for node in (*pool.langs, *bares)), "a layer that is on no account"
    assert len(bares) <= IDLE_MAX, f"{len(bares)} Bares"
    assert not bares.keys() & pool.sandboxes.keys(), "a Bare that is somebody's"
    held = Counter(s.key for s in pool.sandboxes.values() if s.holds_lang)
    assert +pool.children == held, "holders of Lang layers counted wrongly"
    ending: set[object] = {s.id for s in pool.sandboxes.values() if s.state is State.DYING}
    ending |= {lang.key for lang in pool.langs.values() if lang.state is LayerState.DYING}
    ending |= {bare.id for bare in bares.values() if bare.state is LayerState.DYING}
    assert pool.ledger.ending == ending, "dying counted wrongly"
    gone = len(pool.ledger) - len(pool.sandboxes) - len(pool.langs) - len(bares) - _check_models(pool)
    assert gone == 0, f"{gone} accounts of something that is gone"


def _check_models(pool: Pool) -> int:
    """The same for models. Returns how many are pinned in part."""
    models = pool.models
    used = {(name, key) for key, model in models.by_key.items() for name in model.wishes}
    assert used == {(name, model.key) for name, model in models.by_function.items()}, "models and functions disagree"
    for model in models.by_key.values():
        assert model.wishes, f"{model} is nobody's"
        streamed = sum(layer.size_bytes for layer in model.layers if not layer.on_demand)
        assert 0 <= model.pinned_bytes <= streamed, model
        assert pool.ledger.of(model.node) == model.pinned_bytes, model
    return sum(model.node in pool.ledger for model in models.by_key.values())
