"""The density experiment on real servers, as small as it can be."""

from __future__ import annotations

import pytest

from rewarm.bench.experiment_density import Settings, run

pytestmark = pytest.mark.e2e

TINY = Settings(functions=3, duration_s=3.0, compression=600.0, budget_share=0.5, quick=True)


def test_every_policy_answers_the_same_calls_without_an_error() -> None:
    told: list[tuple[int, int, str]] = []
    found = run(TINY, lambda *step: told.append(step))
    assert [row.policy for row in found.rows] == list(TINY.policies())
    assert len({row.requests for row in found.rows}) == 1 and len(found.runtimes) == 3
    assert told[-1][0] == told[-1][1] == TINY.functions + sum(row.requests for row in found.rows)
    assert found.all_warm_bytes > 3 * 5 << 20  # each holds at least 5 MB of its own
    for row in found.rows:
        assert (row.errors, row.error_codes) == (0, {})
        assert sum(row.starts.values()) == row.requests and row.starts["cold"] >= 1  # it began with nothing
        assert row.startup.max >= 50  # a start waits that long at least
        assert row.used_mb_s + row.wasted_mb_s > 0
        assert row.held_mb_max > 0
