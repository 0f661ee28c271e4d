"""The experiment's files from known rows."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from rewarm.bench import report
from rewarm.bench.experiment_batching import POLICIES, QUICK, WORKLOADS, Result, Row, Settings, predicted, read_digits
from rewarm.bench.plots import batching_svg
from rewarm.errors import SystemFault

ROW_KEYS = {
    "policy", "workload", "requests", "errors", "mean_ms", "p50_ms", "p99_ms", "slo_pct", "init_ms", "mean_batch",
    "cost_usd",
}  # fmt: skip
P99_MS = {"static": 1000.0, "dynamic": 300.0, "slo-latency": 60.0, "slo-cost": 195.0, "none": 65.0}
COST_USD = {"static": 4e-5, "dynamic": 5e-5, "slo-latency": 1.5e-4, "slo-cost": 6e-5, "none": 1.6e-4}


def row(policy: str, workload: str, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "policy": policy, "workload": workload, "requests": 720, "errors": 0, "mean_ms": 12.345678, "p50_ms": 5.0,
        "p99_ms": P99_MS[policy], "slo_pct": 100.0, "init_ms": 44.0, "mean_batch": 1.5, "cost_usd": COST_USD[policy],
        "calls": 480, "billed_ms": 900.0, "accuracy": 0.99, "lag_ms_max": 1.0, "batches": {1: 240, 2: 240},
        "starts": {"lang": 1, "warm": 719}, "error_codes": {},
    }  # fmt: skip
    return Row(**{**values, **changes})


def result(settings: Settings | None = None, **changes: Any) -> Result:
    machine = {
        "cpu": "Some CPU",
        "cores": 2,
        "memory_bytes": 4 << 30,
        "kernel": "6.1",
        "system": "Linux",
        "python": "3.11",
    }
    rows = [row(policy, workload, **changes) for policy in POLICIES for workload in WORKLOADS]
    return Result(settings or Settings(), machine, rows)


def test_json_has_the_published_keys_and_all_ten_rows() -> None:
    found = json.loads(json.dumps(report.to_json(result())))
    assert {"experiment", "machine", "settings", "rows"} <= set(found)
    assert found["experiment"] == "batching"
    assert len(found["rows"]) == 10
    assert all(set(entry) == ROW_KEYS for entry in found["rows"])
    assert {entry["policy"] for entry in found["rows"]} == {"none", "static", "dynamic", "slo-latency", "slo-cost"}
    assert found["rows"][0]["mean_ms"] == 12.346
    assert found["settings"]["workloads"]["bursty"]["mean_rate"] == 12
    assert found["details"][0]["batches"] == {"1": 240, "2": 240}


def test_expectations_hold_and_fail_by_the_figures() -> None:
    assert [verdict.holds for verdict in report.verdicts(result())] == [True, True, True, True]
    slow = [verdict.holds for verdict in report.verdicts(result(p99_ms=100.0, slo_pct=99.8))]
    assert slow == [False, False, True, False]
    nothing = report.verdicts(result(p99_ms=0.0, cost_usd=0.0))
    assert not any(verdict.holds for verdict in nothing[:3])


def test_markdown_has_our_rows_and_the_published_ones() -> None:
    text = report.to_markdown(result())
    assert "| static | bursty | 720 | 0 | 12.3 | 5.0 | 1000.0 | 100.00 | 44 | 1.50 | 0.0000400 | 1×240 2×240 |" in text
    assert "| bursty p99 of dynamic / static ≤ 0.5 | 0.30 | yes |" in text
    assert "| static | bursty | 164.5 | 133.4 | 432.2 | 94.8 | 6416 | 0.000739 |" in text
    assert "Bursty: 20/s for 2 s, then 4/s for 2 s" in text
    assert "quick" not in text
    assert "--quick" in report.to_markdown(result(QUICK))


def test_every_table_row_has_as_many_cells_as_its_title() -> None:
    table: list[str] = []
    for line in [*report.to_markdown(result()).splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
        elif table:
            assert len({entry.count("|") for entry in table}) == 1
            table = []


def test_three_files_are_written_and_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    paths = report.write(result(), tmp_path / "results")
    assert [path.name for path in paths] == ["batching.json", "batching.md", "batching.svg"]
    picture = paths[2].read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert batching_svg(result()) == picture


def test_a_picture_is_drawn_of_rows_without_a_good_answer() -> None:
    assert "<svg" in batching_svg(result(p50_ms=0.0, p99_ms=0.0, cost_usd=0.0))


def test_the_settings_are_in_the_published_regime() -> None:
    settings = Settings()
    assert len(settings.times_s("uniform")) == 720
    assert len(settings.times_s("bursty")) == pytest.approx(720, abs=20)
    assert settings.times_s("bursty") == settings.times_s("bursty")
    assert 10 * QUICK.duration_s <= 45


def test_answers_are_read_as_the_likeliest_digit() -> None:
    assert predicted(b"[0.1, 0.7, 0.2]") == 1
    assert predicted(b'{"error": "no"}') is None
    assert predicted(b"[]") is None
    assert predicted(b"junk") is None


def test_missing_digits_are_told(tmp_path: Path) -> None:
    with pytest.raises(SystemFault, match="cannot read the test digits"):
        read_digits(tmp_path / "none.npz")
