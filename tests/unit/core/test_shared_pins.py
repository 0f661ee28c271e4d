"""Models that have weights in common: what is pinned for several is held, and counted, once."""

from __future__ import annotations

from rewarm.core.models import REPLAN_S, RETRY_S
from rewarm.facts import messages as m
from rewarm.facts.pack import LayerFacts, PackFacts
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.testing import World
from rewarm.testing.world import PIN_S

MB = 1 << 20
BODY, HEAD = 100, 5  # MB of a fine-tuned variant: what all have, and what is its own


def variant(name: str) -> PackFacts:
    layers = (LayerFacts("body", BODY * MB, 0.0), LayerFacts("head", HEAD * MB, 0.0))
    return PackFacts(name, layers, spans=(("body", 0, BODY * MB), (name, 0, HEAD * MB)))


def world(mb: int, *variants: str) -> World:
    w = World(mb * MB, NoKeepalive(), start_s=12_345.678)
    for name in variants:
        w.deploy(name, pack=variant(name))
    return w


def call(w: World, name: str, times: int = 1) -> None:
    for _ in range(times):
        request = w.arrive(name)
        w.run_for(0.5)
        assert w.ok(request)
        assert w.held_bytes <= w.node.pool.ledger.budget_bytes


def settle(w: World) -> None:
    w.run_for(REPLAN_S + PIN_S)


def pinned_mb(w: World) -> dict[str, float]:
    return {key: model.pinned_bytes / MB for key, model in w.node.pool.models.by_key.items()}


def counted_mb(w: World) -> float:
    pool = w.node.pool
    return sum(pool.ledger.of(model.node) for model in pool.models.by_key.values()) / MB


def test_eight_variants_fit_where_two_models_do_not() -> None:
    names = [f"v{n}" for n in range(8)]
    w = world(BODY + 8 * HEAD + 60, *names)  # and room for an instance
    for name in names:
        call(w, name)
    settle(w)
    assert pinned_mb(w) == dict.fromkeys(names, float(BODY + HEAD))
    assert counted_mb(w) == BODY + 8 * HEAD


def test_a_table_that_two_have_is_counted_once() -> None:
    """And one of them lets go of it without freeing it."""

    def model(name: str) -> PackFacts:
        layers = (LayerFacts("table", BODY * MB, 0.0, True), LayerFacts("head", HEAD * MB, 0.0))
        return PackFacts(name, layers, spans=((name, 0, HEAD * MB),), table_spans=((0, "table", 0, BODY * MB),))

    w = World((BODY + 2 * HEAD + 60) * MB, NoKeepalive(), start_s=12_345.678)
    for name in ("v", "w"):
        w.deploy(name, pack=model(name), pin="all")
    settle(w)
    assert pinned_mb(w) == {"v": BODY + HEAD, "w": BODY + HEAD}
    assert counted_mb(w) == BODY + 2 * HEAD
    w.tell(m.Removed("v"))
    settle(w)
    assert counted_mb(w) == BODY + HEAD
    assert w.done(m.Pin)[-1] == m.Pin("v", 0)


def test_what_a_change_gives_back_is_room_for_what_it_brings() -> None:
    """150 MB for a table of 50 in place of as much of the front, though none of it is free."""
    layers = (LayerFacts("front", 120 * MB, 0.1), LayerFacts("table", 50 * MB, 0.0, True))
    spans, tables = (("f", 0, 120 * MB),), ((1, "t", 0, 50 * MB),)
    w = World(150 * MB, NoKeepalive(), start_s=12_345.678)
    w.deploy("f", pack=PackFacts("f", layers, spans=spans, table_spans=tables))
    w.deploy("g", pack=PackFacts("g", layers[:1], spans=spans), pin="none")  # a sharer
    call(w, "f")
    settle(w)
    assert pinned_mb(w)["f"] == 120.0
    w.tell(m.Computed("f", (0.1, 0.0), ((1, 5.0),)))
    settle(w)
    assert w.done(m.Pin)[-1] == m.Pin("f", 150 * MB, (1,))
    assert counted_mb(w) == 150.0


def test_what_is_short_comes_from_what_is_ones_own_first_and_then_from_all() -> None:
    w = world(BODY + 2 * HEAD + 60, "v", "w")
    w.deploy("other")
    for name in ("v", "w", "v"):
        call(w, name)
    settle(w)
    assert counted_mb(w) == BODY + 2 * HEAD
    request = w.arrive("other")
    w.run_for(0.1)
    (instance,) = w.ids("other")
    w.tell(m.Measured(instance, (60 + HEAD) * MB))  # with its zygote it is above the budget by more than a head
    assert w.held_bytes <= w.node.pool.ledger.budget_bytes
    assert pinned_mb(w)["w"] < BODY + HEAD, "the one that is started less often lets go"
    w.tell(m.Measured(instance, (30 + BODY) * MB))
    assert w.held_bytes <= w.node.pool.ledger.budget_bytes
    assert max(pinned_mb(w).values()) < BODY, "to let go of one was not enough: the other holds the same"
    w.run_for(1.0)
    assert w.ok(request)
    w.run_for(RETRY_S + REPLAN_S + PIN_S)
    assert counted_mb(w) == BODY + 2 * HEAD  # the instance is gone


def test_what_the_first_leaves_is_on_the_account_of_the_next() -> None:
    w = world(400, "v", "w")
    for name in ("v", "w"):
        call(w, name)
    settle(w)
    ledger = w.node.pool.ledger
    assert (ledger.of(("pins", "v")), ledger.of(("pins", "w"))) == ((BODY + HEAD) * MB, HEAD * MB)
    w.tell(m.Removed("v"))
    assert (ledger.of(("pins", "v")), ledger.of(("pins", "w"))) == (0, (BODY + HEAD) * MB)
    w.deploy("x", pack=variant("x"))
    call(w, "x")
    settle(w)
    assert counted_mb(w) == BODY + 2 * HEAD


def test_a_byte_is_worth_what_all_are_saved_by_it() -> None:
    """Twice and twice is more than three times."""
    w = world(BODY + 2 * HEAD + 20, "v", "w")
    w.deploy("alone", pack=PackFacts("alone", (LayerFacts("all", (BODY + HEAD) * MB, 0.0),)))
    for name in ("v", "w", "alone", "v", "w", "alone", "alone"):
        call(w, name)
    w.run_for(60.0)
    assert pinned_mb(w) == {"v": BODY + HEAD, "w": BODY + HEAD, "alone": 20}
