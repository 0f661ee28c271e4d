"""The keep-alive experiment: its plan, one of its runs, and its files from known runs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from rewarm.bench import keepalive_findings as findings
from rewarm.bench import keepalive_report
from rewarm.bench import keepalive_sweeps as sweeps
from rewarm.bench.experiment_keepalive import Outcome, Result, Share, carried, run_job, tuning
from rewarm.bench.keepalive_sweeps import BOUNDS, RIVALS, TRACES, Job
from rewarm.cli import experiment
from rewarm.facts.function import PolicySpec
from rewarm.policy import registry
from rewarm.sim.run import UNLIMITED_BYTES

ROW_KEYS = {
    "policy", "params", "trace", "split", "startup_s_mean", "startup_s_p99", "cold_pct", "cold_pct_p75_function",
    "idle_gb_h", "wasted_gb_h",
}  # fmt: skip
#: Start-up seconds at equal idle memory: each policy is this many times as slow as the optimum.
SLOWNESS = dict.fromkeys(("fixed", "histogram", "faascache", "lru", "rainbowcake", "barista"), 4.0)
SLOWNESS |= {"optimum": 1.0, "hazard": 1.25, "break_even": 2.5, "never-unload": 1.0}


def outcome(job: Job, idle_gb_h: float, startup_s: float) -> Outcome:
    share = Share(10, 1000, 1000 * startup_s, idle_gb_h)
    classes = {"< 0.5": share} if job.costs == "user" else {}
    return Outcome(job, startup_s, 2.0, 5.0, 50.0, idle_gb_h, idle_gb_h / 4, 0.0, 0, classes)


def known(quick: bool = False, **slowness: float) -> Result:
    """Every front is slowness / idle, at twenty levels; a half has half of the whole trace's GB·h."""
    outcomes = [outcome(job, 40.0, 0.1) for job in sweeps.comparison(quick)[:1]]
    outcomes += [outcome(job, 10.0, 0.3) for job in sweeps.comparison(quick)[1:]]
    for trace in TRACES:
        outcomes.append(outcome(Job("user", trace, "whole", "never-unload", {}), 400.0, 0.001))
        for policy, slow in {**SLOWNESS, **slowness}.items():
            levels = (200.0,) if policy == "never-unload" else tuple(0.25 * 1.4**step for step in range(20))
            for split in ("tuned", "heldout"):
                jobs = [Job("user", trace, split, policy, {"level": level}, quick) for level in levels]
                outcomes += [outcome(job, job.params["level"], slow / job.params["level"]) for job in jobs]
    machine = {"cpu": "Some CPU", "cores": 2, "memory_bytes": 4 << 30, "python": "3.11"}
    return Result(quick, machine, outcomes)


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("trace", TRACES)
def test_halves_are_disjoint_and_make_the_whole(trace: str) -> None:
    tuned, held, whole = (sweeps.options(trace, split).functions for split in ("tuned", "heldout", "whole"))
    assert tuned is not None and held is not None and whole is not None
    assert not tuned & held
    assert tuned | held == whole
    assert len(whole) == {"azure-2019": 380, "servegen": 60}[trace]
    quick = sweeps.options(trace, "heldout", quick=True).functions
    assert quick is not None and quick < held


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("trace", TRACES)
def test_every_front_has_eight_points_of_settings_that_exist(trace: str, quick: bool) -> None:
    jobs = tuning(trace, quick)
    counts = Counter(job.policy for job in jobs)
    assert set(counts) == {"hazard", *RIVALS, *BOUNDS}
    assert all(count >= 8 for policy, count in counts.items() if policy != "never-unload")
    for job in jobs:
        if job.policy not in BOUNDS:
            registry.keepalive(PolicySpec(job.policy, {k: v for k, v in job.params.items() if k != "memory_gb"}))
        assert (job.budget_bytes < UNLIMITED_BYTES) == (job.policy in ("lru", "faascache"))


def test_of_a_grid_the_front_is_carried_over_and_all_of_the_others() -> None:
    jobs = tuning("azure-2019", True)
    grid = [job for job in jobs if job.policy == "rainbowcake"]
    tuned = [outcome(job, 10.0, 0.1) for job in jobs if job.policy != "rainbowcake"]
    tuned += [outcome(job, index, 100.0 - index if index < 9 else 99.0) for index, job in enumerate(grid)]
    tuned.append(outcome(Job("user", "servegen", "tuned", "fixed", {}), 1.0, 1.0))
    held = carried("azure-2019", tuned)
    assert {job.split for job in held} == {"heldout"}
    assert [job.params for job in held if job.policy == "rainbowcake"] == [job.params for job in grid[:9]]
    assert len(held) == len(jobs) - len(grid) + 9


def test_one_run() -> None:
    found = run_job(Job("user", "azure-2019", "heldout", "fixed", {"ttl_s": 600.0}, quick=True))
    assert found.startup_s_mean > 0
    assert 0 < found.cold_pct < 100 and 0 < found.wasted_gb_h < found.idle_gb_h
    assert found.refused == 0
    assert sum(share.functions for share in found.classes.values()) == 38
    calls = sum(share.calls for share in found.classes.values())
    assert sum(share.startup_s for share in found.classes.values()) == pytest.approx(found.startup_s_mean * calls)
    assert sum(share.idle_gb_h for share in found.classes.values()) == pytest.approx(found.idle_gb_h)


# ---------------------------------------------------------------- what is made of the runs


def test_json_has_the_published_keys() -> None:
    found = json.loads(json.dumps(findings.to_json(known())))
    assert all(set(row) == ROW_KEYS for row in found["rows"])
    splits = {(trace, split) for trace in TRACES for split in ("tuned", "heldout")}
    assert {(row["trace"], row["split"]) for row in found["rows"]} == splits
    assert {row["policy"] for row in found["rows"]} == {"hazard", *RIVALS, *BOUNDS}
    assert len(found["ratios"]["azure-2019"]) == 9


def test_ratios_are_read_at_the_half_s_share_of_the_levels() -> None:
    level = findings.levels(known(), "azure-2019")[2]
    assert (level.level_gb_h, level.idle_gb_h) == (60.0, 30.0)
    assert level.rival == "break_even"
    assert level.to_rival == pytest.approx(0.5)
    assert level.to_optimum == pytest.approx(1.25)
    assert level.startup_s["optimum"] == pytest.approx(1 / 30.0, rel=0.05)  # on the hull between two points


def test_expectations_hold_and_fail_by_the_figures() -> None:
    holds = [verdict.holds for verdict in findings.verdicts(known())]
    assert holds == [True, True, True, True, False, False, False]
    worse = findings.verdicts(known(hazard=2.0))
    assert [verdict.holds for verdict in worse[:4]] == [False] * 4
    below = findings.verdicts(known(hazard=0.9))
    assert below[4].holds and "0.90 to 0.90" in below[4].measured


def test_changes_against_fixed_ten_minutes() -> None:
    base, published, *_ = findings.comparisons(known())
    assert (base.startup_pct, base.waste_pct) == (0, 0)
    assert (published.startup_pct, published.waste_pct) == pytest.approx((200.0, -75.0))


def test_markdown_says_what_was_done_and_every_table_is_whole() -> None:
    text = keepalive_report.to_markdown(known())
    assert "azure-2019 50.0%" in text and "`--quick`" not in text
    assert "`--quick`" in keepalive_report.to_markdown(known(quick=True))
    table: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            assert len({entry.count("|") for entry in table}) == 1
            table = []


def test_three_files_are_written_and_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    paths = keepalive_report.write(known(), tmp_path / "results")
    assert [path.name for path in paths] == ["keepalive.json", "keepalive.md", "keepalive.svg"]
    picture = paths[2].read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    keepalive_report.write(known(), tmp_path / "again")
    assert (tmp_path / "again" / "keepalive.svg").read_text(encoding="utf-8") == picture


def test_it_is_on_the_command_line() -> None:
    found = CliRunner().invoke(experiment.command, ["keepalive", "--help"])
    assert found.exit_code == 0 and "--quick" in found.output
