"""`rewarm profile`: what it refuses before it asks a server, and what it shows of an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rewarm.bench.profile import Measured, Row
from rewarm.bench.stats import summarise
from rewarm.facts.profile import Profile

Cli = Callable[..., Result]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sizes", "2,4"], "does not have 1"),
        (["--sizes", "1,x"], "is not a list of whole numbers from 1 to 256"),
        (["--sizes", "0,1"], "is not a list of whole numbers"),
        (["--sizes", "1,257"], "is not a list of whole numbers"),
        (["--sizes", "1," + "9" * 5000], "is not a list of whole numbers"),
        (["--sizes", ""], "is not a list of whole numbers"),
        (["--repeat", "0"], "--repeat"),
        (["--show", "--remove"], "not both"),
        (["--data", "{"], "--data is not JSON"),
        (["--data", "{}", "--also-file", "{same}"], "of another length"),
        (["--raw-file", "{same}", "--also-file", "{same}"], "adds JSON bodies"),
        (["--also-file", "nowhere.json"], "there is no file 'nowhere.json'"),
    ],
)
def test_bad_options(cli: Cli, fake: Any, tmp_path: Path, options: list[str], says: str) -> None:
    (tmp_path / "same.json").write_text("[]")
    words = [option.replace("{same}", str(tmp_path / "same.json")) for option in options]
    found = cli("profile", "f", *words, "--url", fake.url)
    assert found.exit_code == 2
    assert says in found.stderr
    assert fake.asked == []


def test_what_is_kept_is_shown(cli: Cli, fake: Any) -> None:
    kept = {
        "name": "f", "stale": True, "digest": "ab", "version": 2, "measured_at": 0.0, "sizes": [1, 4],
        "body_bytes": [10], "run_s": [[0.01, 0.02]],
    }  # fmt: skip
    fake.replies["GET /api/v1/functions/f/profile"] = lambda _: (200, {}, json.dumps(kept).encode())
    found = cli("profile", "f", "--show", "--url", fake.url)
    assert found.exit_code == 0
    assert "20.000" in found.stdout and "5.000" in found.stdout and "measured of f version 2" in found.stdout
    assert "stale" in found.stdout


def test_a_profile_holds_medians() -> None:
    rows = [Row(size, body, summarise(run_ms)) for body in (10, 20) for size, run_ms in ((1, [1.0, 2.0, 99.0]),
                                                                                         (4, [0.0]))]  # fmt: skip
    assert Measured(rows, "ab", 1).to_profile() == Profile((1, 4), (10, 20), ((0.002, 1e-6), (0.002, 1e-6)))
