"""The rules that only the keep-alive experiment has, in the simulator."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rewarm.bench.experiment_keepalive import FEW, arrivals_s, cv_class
from rewarm.bench.keepalive_rules import Optimum, Watched
from rewarm.bench.keepalive_sweeps import COSTS
from rewarm.facts.function import PolicySpec
from rewarm.policy import registry
from rewarm.policy.keepalive.base import KeepalivePolicy
from rewarm.sim.report import Report
from rewarm.sim.run import UNLIMITED_BYTES, Settings, simulate
from rewarm.sim.traces.base import Options

MB = 1 << 20
USER_MB = 55


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Six functions with gaps of very different lengths, runs of a millisecond."""
    rng = random.Random(3)
    calls = []
    for function in range(6):
        at_s = rng.uniform(0, 50)
        while at_s < 20_000:
            calls.append((at_s, f"f{function}"))
            at_s += 20 + rng.lognormvariate(4.5 + 0.5 * function, 1.2)  # longer than any start takes
    rows = [f"{at_s:.3f},{name},0.001" for at_s, name in sorted(calls)]
    path = tmp_path / "calls.csv"
    path.write_text("\n".join(["t_s,function,duration_s", *rows]) + "\n")
    return str(path)


def run(trace: str, rule: KeepalivePolicy, budget_bytes: int = UNLIMITED_BYTES) -> Report:
    settings = Settings(trace, costs=COSTS["user"], budget_bytes=budget_bytes, max_instances=1)
    return simulate(settings, PolicySpec(rule.name), rule)


def cost_s(found: Report, price: float) -> float:
    """What the optimum makes least: start-up seconds, and idle MB·s at the price."""
    return found.startup_s_mean * found.invocations + price * found.idle_gb_h * 1024 * 3600


@pytest.mark.parametrize("price", [1e-5, 1e-4, 1e-3])
def test_no_policy_without_prewarm_is_cheaper_than_the_optimum(trace: str, price: float) -> None:
    known = arrivals_s(trace, Options())
    best = cost_s(run(trace, Optimum(price, known)), price)
    others = ["none", "lru", *(f"fixed:ttl={ttl_s}s" for ttl_s in (10, 60, 300, 3600))]
    others += [f"break_even:alpha={1 - price}", "rainbowcake:prewarm=false"]
    costs = {text: cost_s(run(trace, registry.keepalive(registry.parse(text))), price) for text in others}
    assert best <= min(costs.values()) * (1 + 1e-6), costs
    assert best > 0


def test_the_optimum_is_what_can_be_worked_out_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "calls.csv"
    path.write_text("t_s,function,duration_s\n0,f,0\n100,f,0\n5000,f,0\n5100,f,0\n")
    found = run(str(path), Optimum(1e-4, arrivals_s(str(path), Options())))
    startup_s = found.functions[0].costs.user_s
    assert 0.55 < startup_s < 26  # what 100 s and 4,900 s cost less a start: 1e-4 * 55 * gap
    assert found.started == 2  # the first call, and the one after the long gap
    # From the end of a start to the next call, twice; after the last call nothing is kept.
    assert found.idle_gb_h == pytest.approx(2 * (100 - startup_s) * USER_MB / 1024 / 3600)
    assert found.wasted_gb_h == 0


@pytest.mark.parametrize(
    ("text", "budget_mb"),
    [("fixed:ttl=2min", 0), ("hazard:price=0.0001", 0), ("histogram", 0), ("barista", 0), ("rainbowcake", 0),
     ("faascache", 150), ("lru", 150)],
)  # fmt: skip
def test_what_is_counted_by_function_adds_up_to_what_the_meter_counts(trace: str, text: str, budget_mb: int) -> None:
    budget_bytes = budget_mb * MB or UNLIMITED_BYTES
    alone = run(trace, registry.keepalive(registry.parse(text)), budget_bytes)
    watched = Watched(registry.keepalive(registry.parse(text)), end_s(trace))
    found = run(trace, watched, budget_bytes)
    assert (found.startup_s_mean, found.idle_gb_h) == (alone.startup_s_mean, alone.idle_gb_h)
    assert found.idle_gb_h > 0
    assert sum(watched.idle_gb_h().values()) == pytest.approx(found.idle_gb_h, rel=1e-9)


def end_s(trace: str) -> float:
    """A plain trace ends with its last call's end."""
    times = [line.split(",") for line in Path(trace).read_text().splitlines()[1:]]
    return max(float(at_s) + float(run_s) for at_s, _, run_s in times)


def test_classes_by_variation_of_the_gaps() -> None:
    assert cv_class([1.0, 2.0]) == FEW
    assert cv_class([0.0, 10.0, 20.0, 30.0]) == "< 0.5"
    assert cv_class([0.0, 0.0, 10.0]) == "1–2"  # gaps of 0 and 10: as far from their mean as it is from 0
    assert cv_class([0.0] * 40 + [100.0]) == "≥ 4"
    assert cv_class([5.0, 5.0, 5.0]) == "< 0.5"
