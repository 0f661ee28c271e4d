"""The machine on traces that are small enough to reckon by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewarm.core.node import Node
from rewarm.errors import BadDefinition, SystemFault
from rewarm.facts.function import LangKey, PolicySpec
from rewarm.policy import registry
from rewarm.policy.keepalive.base import Drop, Keep, KeepaliveDecision, LayerView, Prewarm
from rewarm.policy.keepalive.fixed import FixedKeepalive
from rewarm.sim.costs import MB, Costs, Draw, LangCosts, UserCosts
from rewarm.sim.report import Report
from rewarm.sim.run import Settings, simulate
from rewarm.sim.traces.base import Options

MB_S = 1024 * 3600.0  # MB·s in a GB·h

#: A cold start: 3 s for the Lang layer (the Bare is up after 1 s), 0.5 s to fork, 2 s for the user's code.
COSTS = Costs(1.0, 4 * MB, {"python": LangCosts(3.0, 50 * MB, 1.0, 0.5)}, {"": UserCosts(Draw(2.0), Draw(100 * MB))})


def run(folder: Path, rows: str, policy: str | FixedKeepalive, **settings: object) -> Report:
    path = folder / "trace.csv"
    path.write_text("t_s,function,duration_s\n" + rows, "utf-8")
    spec = registry.parse(policy) if isinstance(policy, str) else PolicySpec(policy.name)
    settings = {"costs": COSTS, "max_instances": 1, **settings}
    rule = None if isinstance(policy, str) else policy
    return simulate(Settings(str(path), **settings), spec, rule)  # type: ignore[arg-type]


def mb_s(gb_h: float) -> float:
    return gb_h * MB_S


def test_one_cold_start_and_then_none(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,1\n20,a,1\n", "fixed:user_s=60,lang_s=0,bare_s=0")
    assert (found.cold_pct, found.user_pct, found.started) == (50.0, 50.0, 1)
    assert found.startup_s_mean == pytest.approx(5.5 / 2)
    assert found.startup_s_p99 == pytest.approx(5.5, rel=0.005)
    assert found.wait_s_mean == 0.0
    # Idle from 6.5 s, when the first run ended, to 20 s: 104 MB of the instance and 50 MB of its zygote.
    assert mb_s(found.idle_gb_h_by_layer["user"]) == pytest.approx(104 * 13.5)
    assert found.used_gb_h == pytest.approx(found.idle_gb_h_by_layer["user"])


def test_a_window_that_is_over_is_wasted(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,1\n100,a,1\n", "fixed:user_s=10,lang_s=0,bare_s=0")
    assert (found.cold_pct, found.user_pct) == (100.0, 0.0)
    assert mb_s(found.idle_gb_h_by_layer["user"]) == pytest.approx(104 * 10)
    assert found.idle_gb_h_by_layer["user"] <= found.wasted_gb_h
    assert found.evictions == 0


def test_what_idles_at_the_end_of_the_trace_is_wasted(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,1\n0,b,31\n", "fixed:user_s=1000,lang_s=0,bare_s=0")
    # The trace ends at 31 s, where b still runs: it began at 5.5 s. Until then their zygote was idle, from when the
    # second of them was forked from it at 3 s.
    assert mb_s(found.wasted_gb_h) == pytest.approx(104 * (31 - 6.5) + 50 * (5.5 - 3))
    assert found.unserved == 0
    assert found.invocations == 2


def test_a_shared_zygote(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,1\n100,b,1\n", "fixed:user_s=10,lang_s=200,bare_s=0")
    assert (found.cold_pct, found.lang_pct) == (50.0, 50.0)
    assert found.startup_s_mean == pytest.approx((5.5 + 3.5) / 2)  # b: its Bare, the fork, its code
    assert found.cold_pct_p75_function == 100.0
    assert found.start_pct_p75_function == 100.0


def test_a_runtime_that_does_not_fork_goes_into_its_instance(tmp_path: Path) -> None:
    node = LangCosts(3.0, 50 * MB, 1.0, 0.5, forks=False)
    costs = Costs(1.0, 4 * MB, {"nodejs": node}, {"": UserCosts(Draw(2.0), Draw(100 * MB))})
    found = run(tmp_path, "0,a,1\n100,b,1\n", "fixed:user_s=10,lang_s=0,bare_s=0", costs=costs)
    assert found.cold_pct == 100.0
    # The instance of a; that of b ran when the trace ended.
    assert mb_s(found.idle_gb_h_by_layer["user"]) == pytest.approx(10 * 154)


def test_calls_that_come_while_one_runs_wait_for_it(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,10\n1,a,1\n", "fixed:user_s=60")
    # The second came during the start (4.5 s of it were left) and waited 10 s more for the run before it.
    assert found.startup_s_mean == pytest.approx((5.5 + 4.5) / 2)
    assert found.wait_s_mean == pytest.approx(10 / 2)
    assert found.wait_s_p99 == pytest.approx(10, rel=0.005)


def test_more_instances_where_they_are_allowed(tmp_path: Path) -> None:
    rows = "".join(f"{at},a,100\n" for at in (0, 20, 40))
    assert run(tmp_path, rows, "fixed", max_instances=1).wait_s_mean > 80
    assert run(tmp_path, rows, "fixed", max_instances=9).wait_s_mean < 10


def test_memory_pressure_evicts_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = "".join(f"{at},{name},1\n" for at, name in zip(range(0, 600, 20), "abc" * 10, strict=True))
    free = run(tmp_path, rows, "fixed:ttl=10min")
    tight = run(tmp_path, rows, "fixed:ttl=10min", budget_bytes=260 * MB)
    assert (free.started, free.evictions) == (3, 0)
    assert tight.started > 3
    assert tight.evictions > 0
    assert tight.idle_gb_h < free.idle_gb_h
    assert (tight.rejected, tight.unserved) == ({}, 0)


def test_a_budget_that_one_instance_does_not_fit_into(tmp_path: Path) -> None:
    with pytest.raises(BadDefinition, match="'a' holds 154 MB with its layers, and the memory budget is 100 MB"):
        run(tmp_path, "0,a,1\n", "fixed", budget_bytes=100 * MB)


def test_prewarming_is_carried_out(tmp_path: Path) -> None:
    class Ahead(FixedKeepalive):
        name = "ahead"
        watches_arrivals = True

        def on_arrival(self, function: str, key: LangKey, now: float) -> Prewarm | None:
            return Prewarm(50.0)

    rule = Ahead(user_s=20, lang_s=0, bare_s=0)
    found = run(tmp_path, "0,a,1\n60,a,1\n120,a,1\n", rule)
    assert found.started == 1  # at 50 s and at 110 s an instance was raised, and 10 s later it was used
    assert mb_s(found.used_gb_h) == pytest.approx(2 * (10 - 5.5) * 104, rel=1e-6)


def test_a_policy_that_never_lets_time_pass(tmp_path: Path) -> None:
    class Restless(FixedKeepalive):
        name = "restless"

        def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
            return Keep(0.0)

    with pytest.raises(SystemFault, match="it must let time pass"):
        run(tmp_path, "0,a,1\n100,a,1\n", Restless())


def test_a_policy_of_a_stranger(tmp_path: Path) -> None:
    class Stranger:
        name = "stranger"

        def on_arrival(self, function: str, key: LangKey, now: float) -> None:
            return None

        def on_idle(self, layer: LayerView, now: float) -> KeepaliveDecision:
            return Drop()

        def priority(self, layer: LayerView, now: float) -> float:
            return 0.0

    path = tmp_path / "t.csv"
    path.write_text("t_s,function,duration_s\n0,a,1\n9,a,1\n", "utf-8")
    found = simulate(Settings(str(path), costs=COSTS), PolicySpec("stranger"), Stranger())
    assert found.to_json()["policy"] == "stranger"
    assert found.started == 2


def test_the_core_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    """Timers of what has ended are let go of: here one instance is started for every call."""
    from rewarm.sim.machine import Machine
    from rewarm.sim.traces.catalogue import open_trace

    def timers(calls: int) -> int:
        path = tmp_path / "t.csv"
        path.write_text("t_s,function,duration_s\n" + "".join(f"{30 * n},a,1\n" for n in range(calls)), "utf-8")
        machine = Machine(
            registry.keepalive(PolicySpec("none")), open_trace(str(path), Options()), COSTS,
            budget_bytes=1 << 40, max_instances=1, seed=1,
        )  # fmt: skip
        machine.run(lambda calls: None)
        assert isinstance(machine.node, Node)
        return len(machine.node.timers)

    assert timers(5000) < 1100


def test_invariants_of_the_core_hold_at_the_end(tmp_path: Path) -> None:
    from rewarm.sim.machine import Machine
    from rewarm.sim.traces.catalogue import open_trace

    options = Options(drop_busiest=150)
    machine = Machine(
        registry.keepalive(PolicySpec("fixed")), open_trace("azure-2019", options), COSTS,
        budget_bytes=2000 * MB, max_instances=4, seed=1,
    )  # fmt: skip
    tally = machine.run(lambda calls: None)
    machine.node.check()
    assert tally.waiting == 0
    assert tally.started == sum(function.calls for function in tally.functions) > 300
