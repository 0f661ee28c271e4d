"""The snapshot experiment's parts that need no QEMU: its cases, its figures, what it judges and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rewarm.bench import snapshot_report
from rewarm.bench.snapshot_rows import (
    CASES,
    NATIVE,
    QUICK,
    THROTTLED,
    Case,
    Result,
    Row,
    Sample,
    Settings,
    SnapshotFacts,
    plan,
)

KEYS = ["case", "storage", "first_response_ms", "p_min_ms", "p_max_ms", "major_faults", "read_mb", "runs"]
ALL_POLICIES = ("lazy", "lazy-4k", "read-all", "prefetch", "layered", "uffd", "cached")
FACTS = SnapshotFacts(512.0, 240.0, 20.0, 140, 32, 262.0)


def row(name: str, storage: str, ms: float, faults: int = 0) -> Row:
    samples = tuple(Sample(ms + off, faults, 10.0) for off in (-1.0, 30.0, 0.0))
    return Row(Case(name, storage, CASES[name]), samples)


GOOD = (
    row("cold-boot", NATIVE, 7000.0), row("lazy", NATIVE, 153.0, 26), row("layered", NATIVE, 120.0, 8),
    row("uffd", NATIVE, 110.0), row("cached", NATIVE, 107.0),
    row("lazy", THROTTLED, 3026.0), row("lazy-4k", THROTTLED, 943.0, 2549), row("layered", THROTTLED, 130.0, 20),
    row("uffd", THROTTLED, 117.0), row("cached", THROTTLED, 108.0),
)  # fmt: skip
DENSITY = {"lazy": (210.0, 200.0, 205.0), "layered": (180.0, 190.0, 185.0), "uffd": (220.0,)}


def result(*rows: Row, **more: object) -> Result:
    described = {"cpu": "A", "cores": 2, "memory_bytes": 1 << 34, "system": "Linux", "kernel": "6", "python": "3.11",
                 "load_average_1min": 0.5}  # fmt: skip
    guest = {"accel": "tcg", "why": "no KVM here", "qemu": "10.0.2", "cpu": "Nehalem", "kernel": "6.1"}
    snapshots = {NATIVE: FACTS, THROTTLED: replace(FACTS, loading_mb=10.0, gap_pages=0)}
    whole = Result(QUICK, described, guest, rows, DENSITY, snapshots, 25.0, (), {})
    return replace(whole, **more)  # type: ignore[arg-type]


# ---------------------------------------------------------------- cases


def test_every_case_is_measured_on_both_storages_and_clones_are_weighed() -> None:
    cases = plan(Settings(), (NATIVE, THROTTLED), ALL_POLICIES)
    assert len(cases) == len(set(cases))
    for storage in (NATIVE, THROTTLED):
        assert {case.name for case in cases if case.storage == storage and case.published} == set(CASES)
    assert [case[1:] for case in cases if not case.published] == [(NATIVE, "lazy"), (NATIVE, "uffd")]


def test_without_a_shim_and_a_cgroup_the_rest_is_measured() -> None:
    cases = plan(Settings(), (NATIVE,), ("lazy", "read-all", "prefetch", "cached"))
    assert {case.name for case in cases} == {"cold-boot", "lazy", "read-all", "prefetch", "cached", "density"}
    assert {case.storage for case in cases} == {NATIVE}


def test_quick_leaves_out_what_takes_long_and_keeps_what_the_goals_need() -> None:
    cases = plan(QUICK, (NATIVE, THROTTLED), ALL_POLICIES)
    throttled = {case.name for case in cases if case.storage == THROTTLED}
    assert throttled == {"lazy", "lazy-4k", "prefetch", "layered", "uffd", "cached", "other-input"}
    assert {case.name for case in cases if case.storage == NATIVE} == {*CASES, "density"}
    assert Settings().repeats >= 7 and QUICK.repeats >= 3


# ---------------------------------------------------------------- rows


def test_a_row_has_the_published_keys_in_order_and_its_figures_are_medians() -> None:
    samples = (Sample(120.0, 8, 10.5), Sample(99.0, 0, 9.5), Sample(300.5, 9, 30.0))
    told = Row(Case("layered", NATIVE, "layered"), samples).to_json()
    assert list(told) == KEYS
    assert list(told.values()) == ["layered", "native", 120.0, 99.0, 300.5, 8, 10.5, 3]


def test_the_file_is_plain_json() -> None:
    told = snapshot_report.to_json(result(*GOOD))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert [one["case"] for one in told["details"]] == [one["case"] for one in told["rows"]]
    assert told["density"]["layered"] == {"clones": 4, "pss_mb": 185.0, "samples_mb": [180.0, 190.0, 185.0]}
    assert told["snapshots"][THROTTLED]["loading_share"] == pytest.approx(10 / 240, abs=1e-4)


# ---------------------------------------------------------------- goals


def test_goals_are_ratios_of_the_table() -> None:
    found = {one.claim: one for one in snapshot_report.verdicts(result(*GOOD))}
    assert {claim: one.measured for claim, one in found.items()} == {
        "throttled: layered / lazy-4k ≤ 1/7": "1/7.3",
        "throttled: uffd / lazy-4k ≤ 1/7": "1/8.1",
        "throttled: layered / lazy ≤ 1/15": "1/23.3",
        "throttled: uffd / lazy ≤ 1/15": "1/25.9",
        "throttled: layered / cached ≤ 1.25": "1.20",
        "throttled: uffd / cached ≤ 1.25": "1.08",
        "native: layered / cached ≤ 1.2": "1.12",
        "native: uffd / cached ≤ 1.2": "1.03",
        "native: layered / cold-boot ≤ 1/40": "1/58.3",
        "native: uffd / cold-boot ≤ 1/40": "1/63.6",
        "native: loading set / memory that is not zero ≤ 10%": "8.3%",
        "throttled: loading set / memory that is not zero ≤ 10%": "4.2%",
        "layered: major faults per restore ≤ 20": "20",
        "uffd: major faults per restore ≤ 20": "0",
        "PSS of 4 clones: layered / plain mapping ≤ 0.95": "0.902",
    }
    assert all(one.holds for one in found.values())


@pytest.mark.parametrize(
    ("worse", "claim"),
    [
        (row("lazy-4k", THROTTLED, 900.0), "throttled: layered / lazy-4k"),
        (row("lazy", THROTTLED, 1700.0), "throttled: uffd / lazy"),
        (row("cached", THROTTLED, 100.0), "throttled: layered / cached"),
        (row("cached", NATIVE, 90.0), "native: uffd / cached"),
        (row("cold-boot", NATIVE, 4300.0), "native: uffd / cold-boot"),
        (row("layered", THROTTLED, 130.0, 21), "layered: major faults"),
    ],
)
def test_a_goal_that_is_missed_is_told(worse: Row, claim: str) -> None:
    rows = [worse if one.case == worse.case else one for one in GOOD]
    failed = [one.claim for one in snapshot_report.verdicts(result(*rows)) if not one.holds]
    assert any(one.startswith(claim) for one in failed), failed


def test_sizes_that_miss_their_goals_are_told() -> None:
    worse = result(
        *GOOD, snapshots={NATIVE: replace(FACTS, loading_mb=25.0)}, density={"lazy": [200.0], "layered": [195.0]}
    )
    failed = [one.claim for one in snapshot_report.verdicts(worse) if not one.holds]
    assert failed == [
        "native: loading set / memory that is not zero ≤ 10%",
        "PSS of 4 clones: layered / plain mapping ≤ 0.95",
    ]


def test_what_was_not_measured_is_not_judged() -> None:
    rows = [one for one in GOOD if one.case.storage == NATIVE and one.case.name != "uffd"]
    little = result(*rows, density={"lazy": [200.0]}, guest={**result().guest, "accel": "kvm"})
    claims = " ".join(one.claim for one in snapshot_report.verdicts(little))
    assert "native: layered / cached" in claims
    for absent in ("uffd", "throttled: layered", "cold-boot", "PSS"):
        assert absent not in claims


# ---------------------------------------------------------------- files


def test_the_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    whole = result(*GOOD, failures=["lazy on native: did not answer within 20 s"], left_out={"uffd": "no userfaultfd"})
    paths = snapshot_report.write(whole, tmp_path / "out")
    assert [path.name for path in paths] == ["snapshot.json", "snapshot.md", "snapshot.svg"]
    assert ElementTree.parse(paths[2]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    page = paths[1].read_text()
    assert "| layered | throttled | 130 | 129 | 160 | 20 | 10.0 | 3 |" in page
    assert "1 starts hung or broke off and were done again: lazy on native" in page
    assert "Left out: uffd: no userfaultfd." in page and "--quick" in page
    assert "3000 reads and 125 MB" in " ".join(page.split())
    assert "layered: 185 MB (PSS of 4 clones together, median of 3)" in page
    written = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in snapshot_report.write(whole, tmp_path / "again")] == written


def test_a_run_without_throttle_and_clones_has_its_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [one for one in GOOD if one.case.storage == NATIVE]
    paths = snapshot_report.write(result(*rows, density={}, snapshots={NATIVE: FACTS}), tmp_path)
    assert "No start hung or broke off." in paths[1].read_text()
