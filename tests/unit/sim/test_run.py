"""Runs: the same figures for the same seed, whatever else differs, and figures that add up."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rewarm
from rewarm.errors import BadDefinition
from rewarm.policy import registry
from rewarm.sim.report import Report
from rewarm.sim.run import Settings, simulate, simulate_all
from rewarm.sim.traces.base import Options

SMALL = Settings("azure-2019", Options(drop_busiest=150, hours=(0.0, 6.0)))
SPECS = [registry.parse(text) for text in ("none", "fixed:ttl=5min", "fixed:ttl=1h")]


def figures(report: Report) -> dict[str, object]:
    return {key: value for key, value in report.to_json().items() if key not in ("wall_s", "invocations_per_s")}


def test_processes_do_not_change_the_answer() -> None:
    seen: list[tuple[int, int, int | None]] = []
    alone = [figures(simulate(SMALL, spec)) for spec in SPECS]
    together = simulate_all(SMALL, SPECS, jobs=2, progress=lambda *step: seen.append(step))
    assert [figures(one) for one in together] == alone
    assert [figures(one) for one in simulate_all(SMALL, SPECS[:2], jobs=1)] == alone[:2]
    calls = together[0].invocations
    assert {index for index, *_ in seen} == {0, 1, 2}
    assert {total for *_, total in seen} == {calls}
    assert [max(done for index, done, _ in seen if index == one) for one in range(3)] == [calls] * 3


def test_the_seed_decides() -> None:
    other = dataclasses.replace(SMALL, options=dataclasses.replace(SMALL.options, seed=2))
    assert figures(simulate(SMALL, SPECS[1])) == figures(simulate(SMALL, SPECS[1]))
    assert figures(simulate(other, SPECS[1])) != figures(simulate(SMALL, SPECS[1]))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec.params))
def test_figures_add_up(spec: registry.PolicySpec) -> None:
    found = simulate(SMALL, spec)
    assert found.cold_pct + found.bare_pct + found.lang_pct + found.user_pct == pytest.approx(100)
    assert found.idle_gb_h == pytest.approx(found.used_gb_h + found.wasted_gb_h)
    assert found.idle_gb_h == pytest.approx(sum(found.idle_gb_h_by_layer.values()))
    assert found.invocations == sum(function.calls for function in found.functions)
    assert found.started == sum(function.started for function in found.functions)
    total_s = found.startup_s_mean * found.invocations
    assert total_s == pytest.approx(sum(function.startup_s for function in found.functions))
    assert found.startup_s_p50 <= found.startup_s_p99
    json.dumps(found.to_json())


def test_longer_windows_cost_memory_and_save_starts() -> None:
    none, short, long = (simulate(SMALL, spec) for spec in SPECS)
    assert none.startup_s_mean > short.startup_s_mean > long.startup_s_mean
    assert none.idle_gb_h < short.idle_gb_h < long.idle_gb_h


def test_a_mistake_is_told_before_anything_runs() -> None:
    unknown = [*SPECS, registry.PolicySpec("fixt")]
    with pytest.raises(BadDefinition, match="did you mean 'fixed'"):
        simulate_all(dataclasses.replace(SMALL, trace="no such file"), unknown)


def test_a_mistake_in_a_process_comes_back_as_it_is() -> None:
    with pytest.raises(BadDefinition, match="no such file"):
        simulate_all(dataclasses.replace(SMALL, trace="nowhere.csv"), SPECS, jobs=2)


def test_importing_the_simulator_imports_no_server() -> None:
    code = "import sys, rewarm.sim.run; print([m for m in ('uvicorn', 'starlette', 'asyncio') if m in sys.modules])"
    env = {"PYTHONPATH": str(Path(rewarm.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
