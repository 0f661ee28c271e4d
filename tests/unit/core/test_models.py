"""Models: where pins go, who frees them, and what is learned for them. In virtual time."""

from __future__ import annotations

from typing import cast

import pytest

from rewarm.core.model import BANDWIDTH_PRIOR_BYTES_S, HALF_LIFE_S, Model
from rewarm.core.models import BARRED_S, REFUSED_S, REPLAN_S, RETRY_S
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.facts.pack import LayerFacts, PackFacts
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.policy.keepalive.none import NoKeepalive
from rewarm.sim.costs import Costs
from rewarm.sim.machine import Machine
from rewarm.sim.traces.base import Trace
from rewarm.testing import Seconds, World
from rewarm.testing.world import PIN_S

MB = 1 << 20
INSTANCE = 32  # MB that the core believes in before anything is measured
ZYGOTE = 24
START_S = 12_345.678
STARTED_S = 0.5  # a request comes, an instance starts, and the request is done
SLOW = 10 * MB  # bytes a second: so slow that pins are worth more than idle instances


def pack(key: str, mb: int, layers: int = 1) -> PackFacts:
    """A model of `mb` in layers that take no time: all of it is waited for."""
    return PackFacts(key, tuple(LayerFacts(f"layer {n}", mb * MB // layers, 0.0) for n in range(layers)))


def world(mb: int = 1 << 20, **more: object) -> World:
    return World(mb * MB, **{"keepalive": NoKeepalive(), "start_s": START_S, **more})  # type: ignore[arg-type]


def model(w: World, key: str) -> Model:
    return w.node.pool.models.by_key[key]


def pinned_mb(w: World) -> dict[str, float]:
    return {key: model.pinned_bytes / MB for key, model in w.node.pool.models.by_key.items()}


def call(w: World, name: str, times: int = 1) -> None:
    """One cold start after the other."""
    for _ in range(times):
        request = w.arrive(name)
        w.run_for(STARTED_S)
        assert w.ok(request)
        assert w.held_bytes <= w.node.pool.ledger.budget_bytes


def settle(w: World) -> None:
    w.run_for(REPLAN_S + PIN_S)


# ---------------------------------------------------------------- where pins go


def test_nothing_is_pinned_of_what_nobody_called() -> None:
    w = world()
    w.deploy("f", pack=pack("f", 100))
    w.run_for(100.0)
    assert w.done(m.Pin) == []


def test_a_cold_start_is_followed_by_a_pin_of_all_that_is_waited_for() -> None:
    w = world()
    w.deploy("f", pack=PackFacts("f", (LayerFacts("a", 60 * MB, 0.02), LayerFacts("b", 60 * MB, 0.02))))
    w.arrive("f")
    w.run_for(REPLAN_S - 0.001)
    assert w.done(m.Pin) == []  # the start is left alone
    w.run_for(0.001)
    w.run_for(PIN_S)
    assert w.done(m.Pin) == [m.Pin("f", 120 * MB - int(BANDWIDTH_PRIOR_BYTES_S * 0.02))]
    assert w.held_bytes == model(w, "f").pinned_bytes  # no instance is left


def test_a_burst_is_one_order() -> None:
    w = world()
    w.deploy("f", pack=pack("f", 100))
    w.deploy("g", pack=pack("g", 100))
    for _ in range(3):
        call(w, "f")
        call(w, "g")
    settle(w)
    w.run_for(100.0)
    assert w.done(m.Pin) == [m.Pin("f", 100 * MB), m.Pin("g", 100 * MB)]


def test_eight_models_of_three_gigabytes_under_one() -> None:
    """Where cold starts times seconds saved per byte is highest; the last gets what is left."""
    w = world(1024)
    names = [f"f{n}" for n in range(8)]
    for n, name in enumerate(names):
        w.deploy(name, pack=pack(name, 384))
        call(w, name, 2**n)
    for _ in range(4):  # a disk of its own, 256 times slower: f0 is now worth twice as much as f7
        w.tell(m.Loaded("f0", 384 * MB, 384 * MB / BANDWIDTH_PRIOR_BYTES_S * 256))
        for name in names[1:]:
            w.tell(m.Loaded(name, 384 * MB, 384 * MB / BANDWIDTH_PRIOR_BYTES_S))
    settle(w)
    assert pinned_mb(w) == {**dict.fromkeys(names, 0.0), "f0": 384.0, "f7": 384.0, "f6": 256.0}
    for name in names:
        call(w, name)  # all answer, and are started in memory that pins gave back


def test_pins_take_what_is_free() -> None:
    w = world(200, keepalive=FixedKeepalive(600.0))
    w.deploy("f", pack=pack("f", 500))
    call(w, "f")
    settle(w)
    assert pinned_mb(w) == {"f": 200 - INSTANCE - ZYGOTE}
    assert len(w.ids("f")) == 1  # and displace nothing


def test_memory_that_comes_free_is_used_some_seconds_later() -> None:
    w = world(200, keepalive=FixedKeepalive(30.0))
    w.deploy("f", pack=pack("f", 500))
    call(w, "f")
    w.run_for(30.0)
    assert not w.ids("f")
    w.run_for(30.0 + RETRY_S)
    assert pinned_mb(w) == {"f": 200.0}


def test_a_second_instance_and_one_ahead_of_its_use_are_no_cold_starts() -> None:
    w = world(keepalive=FixedKeepalive(600.0), seconds=Seconds(run=5.0))
    w.deploy("f", pack=pack("f", 100), max_instances=2)
    w.arrive("f")
    w.run_for(2.0)
    once = model(w, "f").cold_per_s(w.now)
    w.arrive("f")
    w.run_for(20.0)
    assert len(w.ids("f")) == 2
    assert model(w, "f").cold_per_s(w.now) <= once
    w.tell(m.Unload("f"))
    w.run_for(1.0)
    fn = w.fn("f")
    w.node.pool.prewarm(fn, w.now + 1.0)
    w.run_for(2.0)
    assert w.ids("f")
    assert model(w, "f").cold_per_s(w.now) <= once


def test_a_cold_start_counts_half_an_hour_later() -> None:
    w = world()
    w.deploy("f", pack=pack("f", 100))
    call(w, "f")
    before = model(w, "f").cold_per_s(w.now)
    w.run_for(HALF_LIFE_S)
    assert model(w, "f").cold_per_s(w.now) == pytest.approx(before / 2)


def test_pins_do_not_follow_small_differences() -> None:
    w = world(100)
    for name in ("f", "g"):
        w.deploy(name, pack=pack(name, 100))
    call(w, "f", 8)
    settle(w)
    assert pinned_mb(w) == {"f": 100.0, "g": 0.0}
    call(w, "g", 9)
    w.run_for(60.0)
    assert pinned_mb(w) == {"f": 100.0, "g": 0.0}  # but for what its starts needed, and got back
    call(w, "g", 9)
    w.run_for(60.0)
    assert pinned_mb(w) == {"f": 0.0, "g": 100.0}


# ---------------------------------------------------------------- what a person says


def test_all_none_and_so_many_bytes() -> None:
    w = world()
    w.deploy("all", pin="all", pack=pack("a", 100))
    w.deploy("some", pin=30 * MB, pack=pack("s", 100))
    w.deploy("none", pin="none", pack=pack("n", 100))
    call(w, "none")
    settle(w)
    assert pinned_mb(w) == {"a": 100.0, "s": 30.0, "n": 0.0}


def test_what_was_asked_for_is_pinned_to_the_byte() -> None:
    """Less than a step too, unlike what nobody asked for."""
    w = world()
    small = PackFacts("small", (LayerFacts("layer", 5000, 0.0),))
    w.deploy("all", pin="all", pack=small)
    w.deploy("some", pin=10 * MB + 1, pack=pack("p", 100))
    w.deploy("auto", pack=PackFacts("auto", (LayerFacts("layer", 5000, 0.0),)))
    call(w, "auto", 5)
    settle(w)
    assert {key: model.pinned_bytes for key, model in w.node.pool.models.by_key.items()} == {
        "small": 5000, "p": 10 * MB + 1, "auto": 0,
    }  # fmt: skip
    w.deploy("some", pin=10 * MB, pack=pack("p", 100))
    settle(w)
    assert model(w, "p").pinned_bytes == 10 * MB


# ---------------------------------------------------------------- tables


def with_table(key: str, table_mb: int = 50, mb: int = 100) -> PackFacts:
    return PackFacts(key, (LayerFacts("layer", mb * MB, 0.1), LayerFacts("table", table_mb * MB, 0.0, True)))


def looked_up(w: World, key: str, seconds: float) -> None:
    w.tell(m.Computed(key, (0.1, 0.0), ((1, seconds),)))


def test_a_table_is_pinned_once_its_rows_were_waited_for() -> None:
    w = world()
    w.deploy("f", pack=with_table("f"))
    call(w, "f")
    settle(w)
    assert w.done(m.Pin)[-1] == m.Pin("f", 100 * MB)
    before_s = model(w, "f").ttfi_s
    looked_up(w, "f", 0.05)
    assert model(w, "f").ttfi_s == pytest.approx(before_s + 0.05)
    settle(w)
    assert w.done(m.Pin)[-1] == m.Pin("f", 150 * MB, (1,))
    assert model(w, "f").ttfi_s == pytest.approx(before_s)
    assert w.held_bytes == 150 * MB
    looked_up(w, "f", 0.0001)  # of a pinned one that says nothing
    assert model(w, "f").layers[1].rows_s == 0.05


def test_what_rows_take_is_a_mean_and_nonsense_is_not_believed() -> None:
    w = world(100)  # no room for the table
    w.deploy("f", pack=with_table("f"))
    for seconds in (0.02, 0.04):
        looked_up(w, "f", seconds)
    for nonsense in (-1.0, float("nan"), float("inf")):
        looked_up(w, "f", nonsense)
    w.tell(m.Computed("f", (0.1, 0.0), ((0, 5.0), (9, 5.0))))  # no tables
    assert [layer.rows_s for layer in model(w, "f").layers] == [0.0, pytest.approx(0.03)]


def with_a_pinned_table() -> World:
    """Of less worth per byte than the front; and another function, for which there is no room beside both."""
    w = world(180)
    w.deploy("f", pack=with_table("f"))
    w.deploy("other")
    call(w, "f")
    looked_up(w, "f", 0.01)
    settle(w)
    assert w.done(m.Pin)[-1] == m.Pin("f", 150 * MB, (1,))
    return w


def test_a_table_goes_before_the_front_if_that_is_worth_more() -> None:
    w = with_a_pinned_table()
    call(w, "other")
    assert w.done(m.Pin)[-1].tables == ()
    assert w.done(m.Pin)[-1].size_bytes >= 100 * MB - MB


def test_a_table_that_made_room_does_not_come_and_go() -> None:
    """Another function is started once a minute, for an hour, and each time its instance needs the room."""
    w = with_a_pinned_table()
    for _ in range(60):
        call(w, "other")
        w.run_for(60.0)
    changes = [order for order in w.done(m.Pin) if order.tables]
    assert len(changes) <= 1 + 3600.0 / BARRED_S
    w.run_for(2 * BARRED_S)
    assert model(w, "f").tables == (1,), "nothing else wants the room any more"


def test_part_of_a_table_is_never_kept() -> None:
    """One that is worth more than the front: the front goes first, and then all of the table."""
    w = world(240)
    w.deploy("f", pack=with_table("f", table_mb=150, mb=20))
    call(w, "f")
    looked_up(w, "f", 10.0)
    settle(w)
    assert w.done(m.Pin)[-1] == m.Pin("f", 170 * MB, (1,))
    out: list[m.Effect] = []
    for size_mb in (5, 10, 5, 1):
        w.node.pool.models.release(model(w, "f"), size_mb * MB, w.now, out)
    assert out == [m.Pin("f", 165 * MB, (1,)), m.Pin("f", 155 * MB, (1,)), m.Pin("f", 150 * MB, (1,)), m.Pin("f", 0)]


def test_no_pass_takes_longer_than_an_hour() -> None:
    w = world()
    w.deploy("f", pack=with_table("f"))
    before = model(w, "f").layers
    for nonsense in (1e308, 3601.0):
        w.tell(m.Computed("f", (nonsense, 0.0)))
        w.tell(m.Computed("f", (0.1, 0.0), ((1, nonsense),)))
        w.tell(m.Computed("f", (0.1, 0.0), (), nonsense))
    assert model(w, "f").layers == before
    assert model(w, "f").setup_s == 0.0
    w.tell(m.Computed("f", (0.1, 0.0), (), 0.5))
    assert model(w, "f").setup_s == 0.25


def test_all_is_all_even_of_what_nobody_looked_up() -> None:
    w = world()
    w.deploy("f", pin="all", pack=with_table("f"))
    settle(w)
    assert w.done(m.Pin) == [m.Pin("f", 150 * MB, (1,))]


def test_of_a_refused_table_nothing_is_left_over() -> None:
    w = world(pins=lambda order: min(order.size_bytes, 20 * MB))
    w.deploy("f", pin="all", pack=with_table("f"))
    settle(w)
    w.run_for(REPLAN_S + PIN_S)
    assert pinned_mb(w) == {"f": 20.0}
    assert model(w, "f").tables == (), "a part of a table saves nothing"


def test_how_often_models_are_started_is_known_after_a_restart() -> None:
    w = world()
    for name in ("often", "seldom", "never"):
        w.deploy(name, pack=pack(name, 100))
    call(w, "often", 3)
    call(w, "seldom")
    known = w.node.pool.models.cold_per_s(w.now)
    assert set(known) == {"often", "seldom"} and known["often"] > 2 * known["seldom"] > 0.0
    later = world(150)
    later.node.pool.models.remember(known, HALF_LIFE_S)
    for name in ("seldom", "often", "never"):
        later.deploy(name, pack=pack(name, 100))
    now = later.now
    assert model(later, "often").cold_per_s(now) == pytest.approx(known["often"] / 2)
    settle(later)
    assert pinned_mb(later) == {"often": 100.0, "seldom": 50.0, "never": 0.0}, "before anything was started"


def test_functions_with_one_pack_share_one_pin() -> None:
    """Of what they say the most counts: all, then the largest size, then auto."""
    w = world()
    shared = pack("p", 100)
    w.deploy("none", pin="none", pack=shared)
    call(w, "none")
    settle(w)
    assert pinned_mb(w) == {"p": 0.0}
    w.deploy("auto", pack=shared)
    settle(w)
    assert pinned_mb(w) == {"p": 100.0}
    w.deploy("few", pin=10 * MB, pack=shared)
    w.deploy("some", pin=20 * MB, pack=shared)
    settle(w)
    assert pinned_mb(w) == {"p": 20.0}
    w.deploy("all", pin="all", pack=shared)
    settle(w)
    assert pinned_mb(w) == {"p": 100.0}
    assert w.held_bytes == 100 * MB


def test_the_last_function_that_goes_releases_the_pins() -> None:
    w = world()
    shared = pack("p", 100)
    for name in ("f", "g"):
        w.deploy(name, pin="all", pack=shared)
    settle(w)
    w.tell(m.Removed("f"))
    settle(w)
    assert pinned_mb(w) == {"p": 100.0}
    w.tell(m.Removed("g"))
    assert w.done(m.Pin)[-1] == m.Pin("p", 0)
    assert w.held_bytes == 0
    w.run_for(100.0)
    assert pinned_mb(w) == {}


def test_a_new_revision_may_have_another_pack_or_none() -> None:
    w = world()
    w.deploy("f", pin="all", pack=pack("old", 100))
    settle(w)
    w.deploy("f", pin="all", pack=pack("new", 60))
    settle(w)
    assert pinned_mb(w) == {"new": 60.0}
    w.deploy("f", pin="none", pack=pack("new", 60))  # only what is said of it has changed
    settle(w)
    assert pinned_mb(w) == {"new": 0.0}
    w.deploy("f", pack=None)
    settle(w)
    assert (pinned_mb(w), w.held_bytes) == ({}, 0)


# ---------------------------------------------------------------- when memory is short


def test_pins_shrink_by_what_an_instance_needs() -> None:
    w = world(200)
    w.deploy("f", pack=pack("f", 500))
    w.deploy("g")
    call(w, "f")
    settle(w)
    assert pinned_mb(w) == {"f": 200.0}
    w.arrive("g")
    assert w.done(m.Pin)[-1] == m.Pin("f", (200 - INSTANCE - ZYGOTE) * MB)
    w.run_for(0.1)
    assert w.held_bytes == 200 * MB
    w.run_for(REPLAN_S + RETRY_S + STARTED_S)
    assert pinned_mb(w) == {"f": 200.0}  # and have it back


def test_the_pin_that_is_worth_least_goes_first() -> None:
    w = world(200)
    for name in ("f", "g", "h"):
        w.deploy(name, pack=pack(name, 100))
    call(w, "g", 4)
    call(w, "f", 2)
    settle(w)
    assert pinned_mb(w) == {"f": 100.0, "g": 100.0, "h": 0.0}
    w.arrive("h")
    assert pinned_mb(w) == {"f": 100.0 - INSTANCE - ZYGOTE, "g": 100.0, "h": 0.0}


def test_idle_layers_that_are_worth_less_go_before_pins() -> None:
    w = world(200, keepalive=FixedKeepalive(600.0))
    w.deploy("f", pack=pack("f", 500))
    w.deploy("g", preload=("a",))
    w.deploy("h", preload=("b",))
    w.tell(m.Loaded("f", 100 * MB, 100 * MB / SLOW))
    call(w, "f", 2)
    w.tell(m.Unload("f"))
    call(w, "g")
    w.run_for(REPLAN_S + RETRY_S)
    before = pinned_mb(w)
    call(w, "h")
    assert not w.ids("g")
    assert pinned_mb(w) == before


def test_pins_that_an_evicted_layer_made_needless_stay() -> None:
    """The instance that goes after the pin is larger than what is short: the pin need not go."""
    w = world(200, keepalive=FixedKeepalive(600.0))
    w.deploy("f", pack=pack("f", 20))
    w.deploy("g")
    w.deploy("h")
    call(w, "f")
    settle(w)
    w.tell(m.Unload("f"))
    call(w, "g")
    w.tell(m.Measured(w.ids("g")[0], (200 - ZYGOTE - 20) * MB))
    w.arrive("h")
    assert not [order for order in w.done(m.Pin) if order.size_bytes < 20 * MB]
    assert pinned_mb(w) == {"f": 20.0}
    w.run_for(1.0)
    assert not w.ids("g")


def test_what_was_asked_for_by_size_goes_last_but_goes() -> None:
    w = world(200, keepalive=FixedKeepalive(600.0))
    w.deploy("f", pin="all", pack=pack("f", 140))
    w.deploy("g")
    w.deploy("h", max_instances=1)
    settle(w)
    call(w, "g")
    assert pinned_mb(w) == {"f": 140.0}
    call(w, "h")
    assert (pinned_mb(w), w.ids("g")) == ({"f": 140.0}, [])
    w.tell(m.Measured(w.ids("h")[0], 100 * MB))
    assert w.ids("h")  # it stays, and is over the budget with the zygote
    w.run_for(1.0)
    assert w.held_bytes <= 200 * MB


def test_a_pin_for_which_no_memory_was_freed_is_not_touched() -> None:
    """Even all of it would not be enough: the function waits, and nothing is given up for it."""
    w = world(100, keepalive=FixedKeepalive(600.0), seconds=Seconds(run=5.0))
    w.deploy("f", pin="all", pack=pack("f", 20))
    w.deploy("g")
    w.deploy("h")
    settle(w)
    w.arrive("g")
    w.run_for(0.4)
    w.tell(m.Measured(w.ids("g")[0], 56 * MB))
    waiting = w.arrive("h")
    assert (pinned_mb(w), w.ids("h")) == ({"f": 20.0}, [])
    w.run_for(10.0)
    assert w.ok(waiting)


# ---------------------------------------------------------------- what is really held


def test_what_was_refused_goes_to_others_and_is_asked_for_again() -> None:
    refused = [True]
    w = world(
        100, pins=lambda order: min(order.size_bytes, 8 * MB) if order.key == "f" and refused else order.size_bytes
    )
    for name, times in (("f", 8), ("g", 1)):
        w.deploy(name, pack=pack(name, 100))
        call(w, name, times)
    settle(w)
    settle(w)
    assert pinned_mb(w) == {"f": 8.0, "g": 92.0}
    asked = len(w.done(m.Pin))
    w.run_for(REFUSED_S / 2)
    assert len(w.done(m.Pin)) == asked
    refused.clear()
    w.run_for(REFUSED_S)
    assert pinned_mb(w) == {"f": 100.0, "g": 0.0}


def test_pins_that_were_lost_are_ordered_again() -> None:
    """The process that held them ended."""
    w = world()
    w.deploy("f", pin="all", pack=pack("f", 100))
    settle(w)
    w.tell(m.Pinned("f", 0))
    assert w.held_bytes == 0
    w.run_for(REFUSED_S + PIN_S)
    assert pinned_mb(w) == {"f": 100.0}


def test_an_answer_to_an_order_overtaken_since_changes_nothing() -> None:
    w = world()
    w.deploy("f", pin="all", pack=pack("f", 100))
    w.run_for(REPLAN_S)
    w.deploy("f", pin=20 * MB, pack=pack("f", 100))
    w.run_for(REPLAN_S)
    w.tell(m.Pinned("f", 100 * MB))
    assert pinned_mb(w) == {"f": 20.0}
    w.tell(m.Pinned("unknown", 5))


def test_no_more_is_asked_for_while_an_order_is_being_carried_out() -> None:
    w = world(pins=lambda order: 0)
    w.deploy("f", pin=20 * MB, pack=pack("f", 100))
    w.run_for(REPLAN_S)
    node, now = w.node, w.now
    assert [type(effect) for effect in w.effects] == [m.Pin]
    for pin in ("all", 5 * MB, "all"):  # more, less, more
        revision = w.deploy("f", pin=pin, pack=pack("f", 100))
        assert revision.spec.pin == pin
        now += REPLAN_S
        effects = node.handle(m.Tick(), now)
        assert effects == ([] if pin == "all" else [m.Pin("f", 5 * MB)])
    node.handle(m.Pinned("f", 5 * MB), now)
    assert node.handle(m.Tick(), now + RETRY_S) == [m.Pin("f", 100 * MB)]


# ---------------------------------------------------------------- what is learned


def test_bandwidth_is_the_lower_quartile_of_the_last_loads() -> None:
    w = world()
    for name in ("f", "g"):
        w.deploy(name, pack=pack(name, 100))
    assert model(w, "f").bandwidth_bytes_s == BANDWIDTH_PRIOR_BYTES_S
    for mb_s in (100, 400, 300, 200):
        w.tell(m.Loaded("f", 50 * MB, 50 / mb_s))
    assert model(w, "f").bandwidth_bytes_s == pytest.approx(200 * MB)
    assert model(w, "g").bandwidth_bytes_s == pytest.approx(200 * MB)  # nothing is known of its own
    w.tell(m.Loaded("g", 50 * MB, 0.05))
    assert model(w, "g").bandwidth_bytes_s == pytest.approx(1000 * MB)
    for _ in range(16):
        w.tell(m.Loaded("f", 50 * MB, 0.01))
    assert model(w, "f").bandwidth_bytes_s == pytest.approx(5000 * MB)


def test_loads_that_say_nothing_are_ignored() -> None:
    w = world()
    w.deploy("f", pack=pack("f", 100))
    for event in (
        m.Loaded("f", MB - 1, 0.1), m.Loaded("f", 5 * MB, 0.0), m.Loaded("f", 5 * MB, float("nan")),
        m.Loaded("unknown", 5 * MB, 0.1),
    ):  # fmt: skip
        w.tell(event)
    assert model(w, "f").bandwidth_bytes_s == BANDWIDTH_PRIOR_BYTES_S


def test_a_slower_disk_needs_larger_pins_and_a_little_slower_one_does_not() -> None:
    w = world()
    facts = PackFacts("f", (LayerFacts("a", 50 * MB, 0.25), LayerFacts("b", 50 * MB, 0.25)))
    w.deploy("f", pack=facts)
    w.tell(m.Loaded("f", 100 * MB, 0.5))
    call(w, "f")
    settle(w)
    assert pinned_mb(w) == {"f": 50.0}
    w.tell(m.Loaded("f", 100 * MB, 0.51))
    w.run_for(100.0)
    assert pinned_mb(w) == {"f": 50.0}
    for _ in range(4):
        w.tell(m.Loaded("f", 100 * MB, 1.0))
    settle(w)
    assert pinned_mb(w) == {"f": 75.0}
    assert model(w, "f").ttfi_s == pytest.approx(0.5)


def test_compute_measured_in_service_counts() -> None:
    w = world()
    w.deploy("f", pack=PackFacts("f", (LayerFacts("a", 50 * MB, 0.0), LayerFacts("b", 50 * MB, 0.0))))
    w.tell(m.Loaded("f", 100 * MB, 1.0))
    call(w, "f")
    settle(w)
    assert pinned_mb(w) == {"f": 100.0}
    w.tell(m.Computed("f", (0.4, 0.4)))  # the mean of two: what was packed with, and this
    settle(w)
    assert pinned_mb(w) == {"f": 80.0}
    orders = len(w.done(m.Pin))
    for compute_s in ((0.4,), (float("inf"), 0.1), (-1.0, 0.1), (float("nan"), 0.1), (0.2, 0.2)):
        w.tell(m.Computed("f", compute_s))
    w.tell(m.Computed("unknown", (0.4,)))
    settle(w)
    assert len(w.done(m.Pin)) == orders
    assert [layer.compute_s for layer in model(w, "f").layers] == [pytest.approx(0.2)] * 2


# ---------------------------------------------------------------- the end


def test_nothing_is_pinned_while_draining() -> None:
    w = world()
    w.deploy("f", pin="all", pack=pack("f", 100))
    w.tell(m.Draining())
    w.run_for(100.0)
    assert w.done(m.Pin) == []


def test_without_packs_there_are_no_timers_and_no_orders() -> None:
    w = world()
    w.deploy("f")
    call(w, "f", 3)
    w.run_for(1000.0)
    assert w.done(m.Pin) == []
    assert w.node.pool.models.timer_at_s == float("inf")
    assert repr(Model(pack("p", 1), w.node.pool.models._machine)).startswith("<model p")


def test_the_simulator_pins_at_once() -> None:
    """The machine alone, with no calls: what is ordered is held, and answered for."""
    trace = cast(Trace, None)  # nothing is read of it
    machine = Machine(NoKeepalive(), trace, cast(Costs, None), budget_bytes=60 * MB, max_instances=1, seed=1)
    spec = FunctionSpec("f", "handler", "app:main", pin="all")
    machine.tell(m.Deployed(Revision(spec, "d", 1, "", pack=pack("f", 100))), 0.0)
    machine.advance(REPLAN_S + 0.001)
    held = machine.node.pool.models.by_key["f"]
    assert (held.pinned_bytes, held.waiting) == (60 * MB, False)
