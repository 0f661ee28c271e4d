"""What must be true of the core after every event. Called by tests and by the testing world, never on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain

from rewarm.core.pool import Pool
from rewarm.core.state import FunctionState, LangState
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
    """The same for sandboxes, Lang layers and the ledger."""
    pool.ledger.check()
    for sandbox in pool.sandboxes.values():
        fn = sandbox.function
        assert fn.sandboxes.get(sandbox.id) is sandbox, sandbox
        assert sandbox.id in pool.ledger, sandbox
        assert (sandbox.batch is not None) == (sandbox.state is State.BUSY), sandbox
        assert (sandbox in fn.idle) == (sandbox.state is State.READY), sandbox
    assert all(key in pool.ledger for key in pool.langs), "a zygote that is on no account"
    assert +pool.children == Counter(s.key for s in pool.sandboxes.values()), "children counted wrongly"
    dying = {s.id for s in pool.sandboxes.values() if s.state is State.DYING}
    dying_langs = {lang.key for lang in pool.langs.values() if lang.state is LangState.DYING}
    assert set(pool.dying) == dying | dying_langs, "dying counted wrongly"
    assert len(pool.ledger) == len(pool.sandboxes) + len(pool.langs), "an account of something that is gone"
