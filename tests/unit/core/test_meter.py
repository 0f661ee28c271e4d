"""The meter: idle byte-seconds that were good for something, and those that were not."""

from __future__ import annotations

import pytest

from rewarm.core.meter import Meter
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey
from rewarm.facts.request import Request
from rewarm.facts.sandbox import Layer, StartKind
from rewarm.facts.sandbox import SandboxState as State
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.testing import World

KEY = LangKey()
NODE = LangKey((), "nodejs")
SPEC = FunctionSpec("f", "handler", "app:main")


def raised(meter: Meter, sandbox_id: int, now: float, key: LangKey = KEY, size: int = 10) -> None:
    """An instance, from nothing to READY at one moment."""
    meter.effect(m.RaiseBare(sandbox_id), now)
    meter.event(m.Raised(sandbox_id, State.BARE, 0.0), now)
    meter.effect(m.Fork(sandbox_id, key, SPEC), now)
    for state in (State.LANG, State.USER, State.READY):
        meter.event(m.Raised(sandbox_id, state, 0.0), now)
    meter.resident(sandbox_id, size, now)


def run(meter: Meter, sandbox_id: int, start: float, end: float) -> None:
    meter.effect(m.Run(sandbox_id, [Request("f", start, 1e9)]), start)
    meter.event(m.RunDone(sandbox_id, end - start), end)


def test_idle_before_a_run_was_used_and_idle_before_the_end_was_not() -> None:
    meter = Meter()
    raised(meter, 1, 0.0)
    run(meter, 1, 3.0, 4.0)
    run(meter, 1, 9.0, 10.0)
    meter.effect(m.Destroy(1, "keepalive"), 14.0)
    meter.event(m.Exited(1), 15.0)
    assert (meter.used_byte_s[Layer.USER], meter.wasted_byte_s[Layer.USER]) == (80.0, 40.0)
    assert (meter.evictions, meter.living) == (0, frozenset())


def test_what_idles_still_is_neither_used_nor_wasted_yet() -> None:
    meter = Meter()
    raised(meter, 1, 0.0)
    raised(meter, 2, 1.0)
    meter.event(m.Measured(1, 30), 2.0)
    assert meter.pending_byte_s(4.0)[Layer.USER] == 20.0 + 60.0 + 30.0
    meter.effect(m.Run(1, [Request("f", 4.0, 1e9)]), 4.0)
    assert meter.pending_byte_s(4.0)[Layer.USER] == 30.0
    assert meter.pending_byte_s(9.0)[Layer.USER] == 80.0, "one that is busy costs nothing more"
    meter.close(9.0)
    assert not any(meter.pending_byte_s(10.0).values())
    assert (meter.used_byte_s[Layer.USER], meter.wasted_byte_s[Layer.USER]) == (80.0, 80.0)


def test_what_is_measured_counts_from_then_on() -> None:
    meter = Meter()
    raised(meter, 1, 0.0)
    meter.event(m.Measured(1, 100), 2.0)
    run(meter, 1, 3.0, 4.0)
    meter.event(m.Measured(1, 1), 3.5)
    meter.event(m.Measured(99, 1), 3.5)
    meter.close(6.0)
    assert (meter.used_byte_s[Layer.USER], meter.wasted_byte_s[Layer.USER]) == (120.0, 2.0)


def test_a_zygote_is_idle_while_none_of_its_instances_is_busy() -> None:
    meter = Meter()
    meter.event(m.LangRaised(KEY, 0.1), 0.0)
    meter.resident(KEY, 10, 0.0)
    raised(meter, 1, 2.0)  # used: 2 s
    raised(meter, 2, 5.0)  # used: 3 s
    run(meter, 1, 6.0, 9.0)
    meter.effect(m.Run(1, [Request("f", 10.0, 1e9)]), 10.0)
    meter.effect(m.Run(2, [Request("f", 11.0, 1e9)]), 11.0)
    meter.event(m.RunDone(1, 2.0), 12.0)
    meter.event(m.Exited(2), 13.0)  # crashed in its run
    raised(meter, 3, 14.0)  # used: 5 to 6, 9 to 10, 13 to 14
    meter.effect(m.DropLang(KEY, "memory"), 20.0)
    meter.event(m.LangExited(KEY), 21.0)
    assert (meter.used_byte_s[Layer.LANG], meter.wasted_byte_s[Layer.LANG]) == (80.0, 60.0)
    assert meter.evictions == 1
    run(meter, 1, 22.0, 23.0)  # its zygote is gone
    assert meter.wasted_byte_s[Layer.LANG] == 60.0


def test_a_fork_beside_a_running_instance_leaves_the_zygote_in_use() -> None:
    meter = Meter()
    meter.event(m.LangRaised(KEY, 0.1), 0.0)
    meter.resident(KEY, 10, 0.0)
    raised(meter, 1, 0.0)
    meter.effect(m.Run(1, [Request("f", 1.0, 1e9)]), 1.0)
    raised(meter, 2, 5.0)
    meter.effect(m.Destroy(1, "timeout"), 7.0)
    meter.event(m.RunDone(1, 7.0), 7.5)  # too late
    meter.close(8.0)
    assert (meter.used_byte_s[Layer.LANG], meter.wasted_byte_s[Layer.LANG]) == (10.0, 10.0)


def test_a_runtime_that_does_not_fork_is_used_once() -> None:
    meter = Meter()
    for at_s in (0.0, 10.0):
        meter.event(m.LangRaised(NODE, 0.1), at_s)
        meter.resident(NODE, 10, at_s)
        raised(meter, int(at_s) + 1, at_s + 5.0, NODE)
        assert NODE not in meter.living
    meter.event(m.LangRaised(NODE, 0.1), 20.0)
    meter.resident(NODE, 10, 20.0)
    meter.close(21.0)
    assert (meter.used_byte_s[Layer.LANG], meter.wasted_byte_s[Layer.LANG]) == (100.0, 10.0)


def test_bares() -> None:
    meter = Meter()
    for sandbox_id in (1, 2):
        meter.event(m.Raised(sandbox_id, State.BARE, 0.0), 0.0)
        meter.resident(sandbox_id, 10, 0.0)
    meter.effect(m.Fork(1, KEY, SPEC), 3.0)
    meter.effect(m.Destroy(2, "memory"), 4.0)
    assert (meter.used_byte_s[Layer.BARE], meter.wasted_byte_s[Layer.BARE], meter.evictions) == (30.0, 40.0, 1)


def test_starts_are_counted_by_what_they_found() -> None:
    meter = Meter()
    raised(meter, 1, 0.0)
    cold = Request("f", 0.0, 1e9)
    cold.start = StartKind.COLD
    meter.effect(m.Run(1, [cold, Request("f", 0.5, 1e9)]), 1.0)
    assert {kind: count for kind, count in meter.starts.items() if count} == {StartKind.COLD: 1, StartKind.WARM: 1}


def test_what_is_not_known_or_of_no_interest_is_ignored() -> None:
    meter = Meter()
    for event in (m.RunDone(1, 0.1), m.Raised(1, State.READY, 0.1), m.Exited(1), m.LangExited(KEY), m.Tick()):
        meter.event(event, 1.0)
    for effect in (m.Run(1, []), m.Fork(1, KEY, SPEC), m.Destroy(1, "x"), m.DropLang(KEY, "x"), m.RaiseLang(KEY, None)):
        meter.effect(effect, 2.0)
    meter.close(3.0)
    assert not any((*meter.used_byte_s.values(), *meter.wasted_byte_s.values()))


def test_beside_a_core() -> None:
    w = World(keepalive=FixedKeepalive(user_s=10.0, lang_s=20.0, bare_s=5.0))
    w.deploy("f")
    w.arrive("f")
    w.run_for(3.0)
    (sandbox_id,) = w.ids("f")
    w.tell(m.Measured(sandbox_id, 1000))
    w.tell(m.Measured(KEY, 100))
    request = w.arrive("f")
    w.run_for(100.0)
    assert request.start is StartKind.WARM
    assert w.meter.wasted_byte_s[Layer.USER] == pytest.approx(10.0 * 1000)
    assert w.meter.wasted_byte_s[Layer.LANG] == pytest.approx((10.0 + w.fake.seconds.exit + 20.0) * 100)
    assert w.meter.used_byte_s[Layer.USER] == 0.0, "it was measured at the moment it was used again"
    assert w.meter.starts[StartKind.COLD] == w.meter.starts[StartKind.WARM] == 1
    assert not w.meter.living
