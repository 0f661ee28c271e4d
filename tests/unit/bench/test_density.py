"""The density experiment's parts that wait for nothing: its functions, its load, its settings, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarm.bench import density_arrivals, density_functions, density_report
from rewarm.bench.density_functions import ASYNCIO, NODEJS, NUMPY, PYTHON
from rewarm.bench.experiment_density import QUICK, Result, Row, Settings, run
from rewarm.bench.stats import summarise
from rewarm.errors import BadDefinition
from rewarm.policy import registry
from rewarm.policy.keepalive.hazard import Hazard
from rewarm.policy.keepalive.rainbowcake import RainbowCake


def row(policy: str, startup_ms: list[float], wasted_mb_s: float, errors: int = 0) -> Row:
    good = len(startup_ms)
    starts = {"warm": startup_ms.count(0.0), "lang": good - startup_ms.count(0.0)}
    return Row(policy, "fixed", good + errors, errors, summarise(startup_ms), summarise([9.0] * good), starts, 10.0,
               wasted_mb_s, 3, 200.0, 1.0, {"timeout": errors} if errors else {})  # fmt: skip


def result(*rows: Row, settings: Settings = QUICK, note: str | None = None) -> Result:
    described = {"cpu": "A", "cores": 2, "memory_bytes": 1 << 30, "system": "Linux", "kernel": "6", "python": "3.11",
                 "load_average_1min": 0.5}  # fmt: skip
    return Result(settings, described, ("python", "nodejs"), note, 1 << 30, 1 << 28, rows)


FIXED = row("fixed-lru", [0.0, 100.0, 100.0, 200.0], 50.0)
CAKE = row("rainbowcake", [100.0, 100.0, 300.0, 300.0], 10.0)
OURS = row("hazard", [0.0, 0.0, 100.0, 100.0], 20.0)


# ---------------------------------------------------------------- the load


@pytest.mark.parametrize("settings", [Settings(), QUICK])
def test_the_load_is_a_compressed_piece_of_the_trace(settings: Settings) -> None:
    calls = density_arrivals.replay(settings.functions, settings.duration_s, settings.compression, settings.seed)
    assert len(calls) == settings.functions
    for one in calls:
        assert list(one.times_s) == sorted(one.times_s)
        assert one.times_s[0] >= 0 and one.times_s[-1] < settings.duration_s
        assert len(one.times_s) >= density_arrivals.CALLS_MIN and 0.001 <= one.run_s <= 0.2
        hours = settings.duration_s * settings.compression / 3600
        assert len(one.times_s) <= density_arrivals.PER_HOUR_MAX * hours + 1


def test_the_load_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    first, again, other = (density_arrivals.replay(20, 30.0, 60.0, seed) for seed in (1, 1, 2))
    assert first == again
    assert [one.times_s for one in first] != [one.times_s for one in other]


def test_compression_only_brings_the_calls_closer_together() -> None:
    slow = density_arrivals.replay(10, 60.0, 30.0, 1)
    quick = density_arrivals.replay(10, 30.0, 60.0, 1)
    for before, after in zip(slow, quick, strict=True):
        assert after.times_s == pytest.approx([at_s / 2 for at_s in before.times_s])


def test_more_functions_than_the_trace_has_are_refused_with_a_remedy() -> None:
    with pytest.raises(BadDefinition, match="take fewer functions or a longer load"):
        density_arrivals.replay(500, 30.0, 60.0, 1)


# ---------------------------------------------------------------- the functions


def test_functions_take_turns_over_the_runtimes_and_hold_what_was_drawn() -> None:
    kinds = (PYTHON, NUMPY, NODEJS)
    made = density_functions.make([0.01] * 60, kinds, 7)
    assert made == density_functions.make([0.01] * 60, kinds, 7) != density_functions.make([0.01] * 60, kinds, 8)
    assert [sum(one.runtime is kind for one in made) for kind in kinds] == [20, 20, 20]
    assert len({one.name for one in made}) == 60
    low, high = density_functions.HELD_MB
    assert all(low <= one.held_mb <= high for one in made) and len({one.held_mb for one in made}) > 15
    shortest, longest = density_functions.START_S
    assert all(shortest <= one.start_s <= longest for one in made)


@pytest.mark.parametrize("runtime", [PYTHON, NUMPY, NODEJS, ASYNCIO])
def test_a_function_is_shipped_as_a_file_of_its_own(runtime: density_functions.Runtime, tmp_path: Path) -> None:
    function = density_functions.DensityFunction("f", runtime, 11, 0.125, 0.0625)
    shipment = function.shipment(tmp_path)
    (path,) = shipment.files.values()
    source = path.read_text()
    assert "$" not in source and "0.125" in source and "0.0625" in source and "11 << 20" in source
    assert shipment.manifest["name"] == "f" and shipment.manifest["overrides"]["max_instances"] == 1
    assert shipment.manifest["overrides"].get("preload") == (["asyncio"] if runtime is ASYNCIO else None)
    if path.suffix == ".py":
        compile(source, str(path), "exec")


# ---------------------------------------------------------------- the policies


def test_windows_and_prices_are_compressed_with_the_trace() -> None:
    rules = {name: registry.keepalive(registry.parse(text)) for name, text in Settings().policies().items()}
    assert Settings().policies()["fixed-lru"] == "fixed:ttl_s=10,bare_s=1,evict=lru"
    hazard = rules["hazard"]
    assert isinstance(hazard, Hazard) and hazard.price_at(0.0) == pytest.approx(60 * Hazard().price_at(0.0))


def test_the_two_cakes_differ_in_alpha_alone() -> None:
    policies = Settings(compression=60.0).policies()
    published, priced = (registry.parse(policies[name]).params for name in ("rainbowcake", "rainbowcake-at-price"))
    # beta = alpha / (1 - alpha) * s / MB: sixty times shorter than the paper's, and the price's inverse.
    assert published["alpha"] / (1 - published["alpha"]) == pytest.approx(0.996 / 0.004 / 60, rel=1e-4)
    assert (1 - priced["alpha"]) / priced["alpha"] == pytest.approx(60 * 2e-5, rel=1e-3)
    assert published["floor_s"] == priced["floor_s"] == 1.0


def test_without_compression_they_are_the_defaults() -> None:
    policies = Settings(compression=1.0).policies()
    published = registry.parse(policies["rainbowcake"]).params
    assert (published["alpha"], published["floor_s"]) == (pytest.approx(0.996), 60.0)
    assert isinstance(registry.keepalive(registry.parse(policies["rainbowcake"])), RainbowCake)
    assert policies["fixed-lru"] == "fixed:ttl_s=600,bare_s=60,evict=lru"
    assert policies["hazard"] == "hazard:price=2e-05"


def test_a_further_policy_is_taken_as_written_and_a_misspelt_one_refused_at_once() -> None:
    assert Settings(also=("none",)).policies()["none"] == "none"
    told: list[tuple[int, int, str]] = []
    with pytest.raises(BadDefinition, match="did you mean 'hazard'"):
        run(Settings(also=("hazrd",)), lambda *step: told.append(step))
    assert told == []


# ---------------------------------------------------------------- the files


def test_verdicts_are_hazard_against_each_other_policy() -> None:
    found = {one.claim: (one.measured, one.holds) for one in density_report.verdicts(result(FIXED, CAKE, OURS))}
    assert found == {
        "no errors": ("0", True),
        "mean start-up of hazard / fixed-lru ≤ 1": ("0.50", True),
        "wasted MB·s of hazard / fixed-lru ≤ 1": ("0.40", True),
        "mean start-up of hazard / rainbowcake ≤ 1": ("0.25", True),
        "wasted MB·s of hazard / rainbowcake ≤ 1": ("2.00", False),
    }


def test_an_error_is_a_failed_verdict_and_not_an_answer() -> None:
    broken = row("fixed-lru", [0.0, 100.0], 5.0, errors=2)
    assert broken.to_json()["warm_pct"] == 50.0 and broken.to_json()["error_codes"] == {"timeout": 2}
    assert density_report.verdicts(result(broken, OURS))[0].holds is False


def test_the_three_files_say_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = result(FIXED, CAKE, OURS, note="no Node.js here, a third Python runtime instead")
    paths = density_report.write(made, tmp_path / "out")
    assert [path.name for path in paths] == ["density.json", "density.md", "density.svg"]
    rows = json.loads(paths[0].read_text())["rows"]
    assert [one["policy"] for one in rows] == ["fixed-lru", "rainbowcake", "hazard"]
    assert rows[2]["startup_ms_mean"] == 50.0 and rows[2]["wasted_mb_s"] == 20.0 and rows[0]["warm_pct"] == 25.0
    text = paths[1].read_text()
    assert "| hazard | 50.0 / 50.0 / 0.0 / 0.0 |" in text and "**no**" in text
    assert "no Node.js here" in text and "--quick" in text
    assert paths[2].read_text() == density_report.write(made, tmp_path / "again")[2].read_text()
