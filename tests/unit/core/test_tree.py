"""What `rewarm ps` shows."""

from __future__ import annotations

import pytest

from rewarm.core.tree import Branch, tree
from rewarm.facts import messages as m
from rewarm.facts.sandbox import Layer
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.testing import Outcome, Seconds, World

MB = 1 << 20


def world(**more: object) -> World:
    return World(
        start_s=1000.0, behave=lambda request: Outcome(request.payload or "ok"), seconds=Seconds(bare=0.5), **more,  # type: ignore[arg-type]
    )  # fmt: skip


def branches(w: World) -> dict[str, Branch]:
    found = tree(w.node, w.now)
    assert len({branch.id for branch in found}) == len(found)
    seen: set[str] = set()
    for branch in found:
        assert branch.parent is None or branch.parent in {other.id for other in found}
        assert branch.children == sum(other.parent == branch.id for other in found)
        seen.add(branch.id)
    return {branch.id: branch for branch in found}


def test_nothing_yet() -> None:
    (bare,) = tree(world().node, 1000.0)
    assert bare == Branch("bare", None, Layer.BARE, "bare", "0 idle", 0, 0, 0, 0.0, 0, 0.0, None, None)


def test_the_parents() -> None:
    w = world()
    w.deploy("f")
    w.deploy("g", preload=("a",))
    w.deploy("h", preload=("a", "b"), max_instances=2)
    w.deploy("n", runtime="nodejs")
    for name in "fghn":
        w.arrive(name)
        w.run_for(5.0)
    w.fake.kill(w.fn("g").key)
    found = branches(w)
    assert {id: branch.parent for id, branch in found.items()} == {
        "bare": None,
        "lang:nodejs": None,
        "instance:4": "lang:nodejs",
        "lang:python": None,
        "instance:1": "lang:python",
        "lang:python+a": "lang:python",
        "instance:2": "lang:python+a",
        "lang:python+a+b": "lang:python+a",
        "instance:3": "lang:python+a+b",
    }
    gone = found["lang:python+a"]
    assert (gone.state, gone.resident_bytes, gone.idle_s, gone.expires_s) == ("gone", 0, None, None)
    assert gone.startup_s > 0 and gone.uses == 1


def test_what_an_instance_holds_costs_and_saved() -> None:
    w = world(keepalive=FixedKeepalive(user_s=60.0, lang_s=60.0))
    w.deploy("f")
    w.arrive("f")
    assert branches(w)["instance:1"].startup_s == 0.0, "not known yet"
    w.run_for(5.0)
    w.tell(m.Measured(1, 7 * MB))
    one = branches(w)["instance:1"]
    assert (one.layer, one.name, one.state, one.resident_bytes) == (Layer.USER, "f", "ready", 7 * MB)
    assert (one.uses, one.saved_s) == (1, 0.0)
    for uses in (2, 3):
        w.arrive("f")
        w.run_for(5.0)
        one = branches(w)["instance:1"]
        assert (one.uses, one.saved_s) == (uses, pytest.approx((uses - 1) * 0.05))
        assert one.idle_s == pytest.approx(5.0, abs=0.1)
        assert one.expires_s == pytest.approx(55.0, abs=0.1)
    w.arrive("f", payload="hangs")
    one = branches(w)["instance:1"]
    assert (one.state, one.idle_s, one.expires_s, one.saved_s) == ("busy", None, None, pytest.approx(0.15))


def test_a_queue_that_is_worked_off_saves_nothing() -> None:
    w = world()
    w.deploy("f", max_instances=1)
    w.burst("f", 5)
    w.run_for(5.0)
    one = branches(w)["instance:1"]
    assert (one.uses, one.saved_s) == (5, 0.0)


def test_what_a_lang_layer_saved() -> None:
    w = world(keepalive=FixedKeepalive(user_s=1.0, lang_s=60.0))
    w.deploy("f")
    for forks in (1, 2, 3):
        w.arrive("f")
        w.run_for(5.0)
        lang = branches(w)["lang:python"]
        assert (lang.state, lang.children, lang.uses) == ("alive", 0, forks)
        assert (lang.startup_s, lang.saved_s) == (pytest.approx(0.2), pytest.approx((forks - 1) * 0.2))
        assert lang.idle_s is not None and lang.expires_s == pytest.approx(60.0 - lang.idle_s)
    w.arrive("f")
    w.run_for(1.0)
    lang = branches(w)["lang:python"]
    assert (lang.children, lang.idle_s, lang.expires_s) == (1, None, None)


def test_spares_that_were_used_up_are_remembered_by_their_key() -> None:
    w = world(keepalive=FixedKeepalive(user_s=1.0, lang_s=60.0))
    w.deploy("n", runtime="nodejs")
    for uses in (1, 2):
        w.arrive("n")
        w.run_for(5.0)
        lang = branches(w)["lang:nodejs"]
        assert (lang.uses, lang.saved_s) == (uses, pytest.approx((uses - 1) * 0.2))
    assert lang.state == "alive"


def test_the_bares() -> None:
    w = world(keepalive=FixedKeepalive(user_s=1.0, lang_s=60.0, bare_s=30.0))
    w.deploy("f")
    w.arrive("f")
    w.run_for(5.0)
    (bare,) = w.bares()
    w.tell(m.Measured(bare, MB))
    one = branches(w)["bare"]
    assert (one.state, one.resident_bytes, one.startup_s, one.uses, one.saved_s) == ("1 idle", MB, 0.5, 0, 0.0)
    assert one.idle_s is not None and one.expires_s == pytest.approx(30.0 - one.idle_s)
    w.arrive("f")
    assert (branches(w)["bare"].uses, branches(w)["bare"].saved_s) == (1, 0.5)


def test_a_layer_without_a_limit() -> None:
    w = world()
    w.deploy("f")
    w.arrive("f")
    w.run_for(5.0)
    (sandbox,) = w.fn("f").sandboxes.values()
    sandbox.expires_s = float("inf")
    assert branches(w)["instance:1"].expires_s is None
