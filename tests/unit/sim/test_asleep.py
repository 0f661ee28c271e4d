"""Functions that sleep on disk in the simulator, on traces that are small enough to reckon by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from rewarm.cli.sim import command
from rewarm.errors import BadDefinition
from rewarm.facts.function import PolicySpec
from rewarm.policy import registry
from rewarm.sim import costs as layers
from rewarm.sim.costs import MB, AsleepCosts, Costs, Draw, LangCosts, UserCosts
from rewarm.sim.machine import Machine
from rewarm.sim.report import Report
from rewarm.sim.run import UNLIMITED_BYTES, Settings, simulate
from rewarm.sim.traces.base import Options
from rewarm.sim.traces.catalogue import open_trace
from rewarm.testing import Seconds, World

GB_H = 1024 * 3600.0  # MB·s in a GB·h
AWAKE = Costs(1.0, 4 * MB, {"python": LangCosts(3.0, 50 * MB, 1.0, 0.5)}, {"": UserCosts(Draw(2.0), Draw(100 * MB))})
#: Waking takes 0.25 s; with the runtime there a start takes 3.5 s without, and making a snapshot 6.5 s.
COSTS = replace(AWAKE, asleep=AsleepCosts(0.25, 200 * MB))
SHORT = "fixed:user_s=10,lang_s=0,bare_s=0"


def trace(folder: Path, rows: str) -> str:
    path = folder / "trace.csv"
    path.write_text("t_s,function,duration_s\n" + rows, "utf-8")
    return str(path)


def run(folder: Path, rows: str, policy: str, costs: Costs = COSTS) -> Report:
    settings = Settings(trace(folder, rows), costs=costs, max_instances=1)
    return simulate(settings, registry.parse(policy))


def test_every_start_is_a_waking(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,1\n100,a,1\n105,a,1\n200,b,1\n", SHORT)
    assert (found.restored_pct, found.user_pct, found.cold_pct) == (75.0, 25.0, 0.0)
    assert found.startup_s_mean == pytest.approx(3 * 0.25 / 4)
    # What woke holds all its layers: 154 MB for the pauses after the first run, the second, and the third.
    assert found.idle_gb_h * GB_H == pytest.approx(154 * (10 + (105 - 101.25) + 10))
    # Each sleeps from its first call on, at 0 and 200 s, whether it wakes or not, till the end of the last at 201 s.
    assert found.disk_gb_h * GB_H == pytest.approx(200 * (201 + 1))


def test_without_asleep_nothing_sleeps(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,1\n100,a,1\n", SHORT, AWAKE)
    assert (found.restored_pct, found.disk_gb_h, found.cold_pct) == (0.0, 0.0, 100.0)
    shown = found.to_json()
    assert (shown["restored_pct"], shown["disk_gb_h"]) == (0.0, 0.0)


def test_what_was_given_up_is_made_again_if_it_is_worth_it(tmp_path: Path) -> None:
    found = run(tmp_path, "0,a,1\n200,a,1\n400,a,1\n", f"{SHORT},asleep_s=100")
    # Woken at 0, forgotten 100 s after the instance went at 11.25 s. The second start finds nothing and takes 5.5 s;
    # its instance goes at 216.5 s, from when on a snapshot is made for 6.5 s and kept for 100 s.
    assert (found.restored_pct, found.cold_pct) == (pytest.approx(100 / 3), pytest.approx(200 / 3))
    assert found.disk_gb_h * GB_H == pytest.approx(200 * (111.25 + 100))


def test_what_is_kept_too_short_is_not_made_again(tmp_path: Path) -> None:
    rows = "0,a,1\n200,a,1\n400,a,1\n600,a,1\n"
    found = run(tmp_path, rows, f"{SHORT},asleep_s=60")  # making takes 6.5 s: at least 65 s of sleep
    assert found.disk_gb_h * GB_H == pytest.approx(200 * (71.25 + 60))
    assert found.cold_pct == 75.0


@pytest.mark.parametrize("name", [*registry.keepalive_names()])
def test_under_every_policy_all_is_served(tmp_path: Path, name: str) -> None:
    rows = "".join(f"{at * 97},{'abc'[at % 3]},2\n" for at in range(60))
    asleep, awake = (run(tmp_path, rows, name, costs) for costs in (COSTS, AWAKE))
    assert (asleep.rejected, asleep.unserved) == ({}, 0)
    assert asleep.startup_s_mean <= awake.startup_s_mean
    assert asleep.disk_gb_h > 0


def test_cheap_sleep_shortens_what_is_kept_in_memory(tmp_path: Path) -> None:
    """The instance saves no more than the waking, so that its memory is worth less."""
    rows = "".join(f"{at * 60},a,1\n" for at in range(50))
    asleep, awake = (run(tmp_path, rows, "break_even", costs) for costs in (COSTS, AWAKE))
    assert asleep.idle_gb_h < awake.idle_gb_h / 2


def test_the_same_core_in_the_world_of_tests_decides_the_same(tmp_path: Path) -> None:
    """Effects of the simulator and of a fake driver, event by event."""
    file = trace(tmp_path, "0,a,1\n100,a,1\n400,a,1\n")
    told: list[str] = []
    spec = PolicySpec("fixed", {"user_s": 10.0, "lang_s": 0.0, "bare_s": 0.0, "asleep_s": 150.0})
    machine = Machine(
        registry.keepalive(spec), open_trace(file, Options()), COSTS, budget_bytes=UNLIMITED_BYTES, max_instances=1,
        seed=1, observe=lambda effect, now: told.append(type(effect).__name__),
    )  # fmt: skip
    machine.run(lambda calls: None)
    world = World(
        keepalive=registry.keepalive(spec),
        seconds=Seconds(bare=1.0, zygote=3.0, fork=0.5, user=2.0, ready=0.0, run=1.0, row=0.0, exit=0.0, restore=0.25,
                        sleep=6.5),
    )  # fmt: skip
    world.fake.disk["a-1"] = 200 * MB
    world.deploy("a", preload=("python",), max_instances=1, isolation="microvm", memory_bytes=256 * MB)
    for at_s in (0.0, 100.0, 400.0):
        world.run_until(at_s)
        world.arrive("a")
    world.run_until(406.0)
    first, *decided = [type(effect).__name__ for effect in world.effects]
    assert first == "Sleep", "of a trace all are there from the start"
    assert told == decided


BAD = [
    ("[asleep]\nrestore_s = 1\n", "asleep.disk_mb is missing; write disk_mb = NUMBER under [asleep]"),
    ("[asleep]\ndisk_mb = 1\n", "asleep.restore_s is missing"),
    ("[asleep]\nrestore_s = 0\ndisk_mb = 1\n", "asleep.restore_s must be more than 0"),
    ("[asleep]\nrestore_s = -1\ndisk_mb = 1\n", "asleep.restore_s must be a number that is 0 or more, not -1"),
    ("[asleep]\nrestore_s = nan\ndisk_mb = 1\n", "asleep.restore_s must be a number that is 0 or more, not nan"),
    ("[asleep]\nrestore_s = 1\ndisk_mb = 'big'\n", "asleep.disk_mb must be a number that is 0 or more, not 'big'"),
    ("[asleep]\nrestore_s = 1\ndisk_gb = 1\n", "unknown key 'asleep.disk_gb'; use restore_s, disk_mb"),
    ("asleep = 1\n", "asleep must be a table, written [asleep]"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[text.replace("\n", " ") for text, _ in BAD])
def test_mistakes_in_the_file(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "costs.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(BadDefinition) as caught:
        layers.read(path)
    assert str(path) in caught.value.message and says in caught.value.message


def test_a_file_that_says_it(tmp_path: Path) -> None:
    path = tmp_path / "costs.toml"
    path.write_text("[asleep]\nrestore_s = 0.15\ndisk_mb = 240\n", "utf-8")
    assert layers.read(path) == replace(layers.DEFAULTS, asleep=AsleepCosts(0.15, 240 * MB))


def test_the_command_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "costs.toml"
    path.write_text("[asleep]\nrestore_s = 0.15\ndisk_mb = 240\n", "utf-8")
    arguments = [trace(tmp_path, "0,a,1\n7000,a,1\n"), "--layers", str(path), "--jobs", "1"]
    plain = CliRunner().invoke(command, arguments)
    assert plain.exit_code == 0, plain.output
    assert "restored" in plain.stdout and "100.00" in plain.stdout
    shown = json.loads(CliRunner().invoke(command, [*arguments, "--json"]).stdout)
    assert shown["policies"][0]["restored_pct"] == 100.0
    assert "restored" not in CliRunner().invoke(command, arguments[:1]).stdout
