"""The batching experiment end to end against the fake server, with a model that reads the answer off the image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from rewarm.bench import report
from rewarm.bench.api import Api
from rewarm.bench.arrivals import Burst
from rewarm.bench.experiment_batching import POLICIES, Settings, run
from rewarm.errors import SystemFault

TINY = Settings(duration_s=0.2, rate=40, burst=Burst(on_rate=60, off_rate=20, on_s=0.1, off_s=0.1), quick=True)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "app.py").write_text(
        "import rewarm\n\n@rewarm.function(name='digits')\nclass Digits:\n    def predict(self, image): return image\n"
    )
    images = np.zeros((10, 784), dtype=np.uint8)
    images[range(10), range(10)] = 255  # the ink lies where the label says
    np.savez(folder / "test_digits.npz", images=images, labels=np.arange(10, dtype=np.uint8))
    return folder


def test_ten_rows_are_measured_and_nothing_stays_deployed(fake: Any, app: Path, tmp_path: Path) -> None:
    fake.answer = lambda body: json.dumps(json.loads(body)[:10]).encode()
    told: list[tuple[int, int, str]] = []
    with Api(fake.url) as api:
        result = run(api, app, TINY, lambda *step: told.append(step))
    assert [(row.policy, row.workload) for row in result.rows] == [
        (policy, workload) for policy in POLICIES for workload in ("uniform", "bursty")
    ]
    uniform = result.row("none", "uniform")
    assert (uniform.requests, uniform.errors, uniform.accuracy) == (8, 0, 1.0)
    assert uniform.mean_batch == 1.0
    # 8 calls of 2 ms at 1 GB, by hand. The start before the row (the load) is not in it.
    assert uniform.cost_usd == pytest.approx(8 * 2e-7 + 1.66667e-5 * 0.016)
    assert uniform.init_ms == 0
    assert 0 < uniform.p50_ms <= uniform.p99_ms
    assert told[-1][0] == told[-1][1] == sum(row.requests for row in result.rows)
    assert fake.functions == {}
    report.write(result, tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "batching.json").read_text())["rows"]) == 10


def test_a_row_is_deployed_as_published_and_begins_unloaded(fake: Any, app: Path) -> None:
    fake.answer = lambda body: json.dumps(json.loads(body)[:10]).encode()
    manifests: dict[str, Any] = {}
    remove = fake.handle

    def watch(asked: Any) -> Any:
        manifests.update({name: function["manifest"] for name, function in fake.functions.items()})
        return remove(asked)

    fake.handle = watch
    with Api(fake.url) as api:
        run(api, app, TINY)
    assert manifests["batching-dynamic-bursty"]["overrides"] == {
        "memory": "1024MB", "timeout": "60s", "slo": "200ms", "batching": "dynamic:max_size=5,max_wait=300ms",
        "max_instances": 1,
    }  # fmt: skip
    posts = [asked.path.rsplit("/", 1)[1] for asked in fake.asked if "static-uniform" in asked.path]
    assert posts[:5] == ["stats", "load", "stats", "unload", "stats"]


def test_wrong_answers_stop_the_experiment_and_the_function_is_removed(fake: Any, app: Path) -> None:
    fake.answer = lambda _: b"[1, 0, 0]"
    with Api(fake.url) as api, pytest.raises(SystemFault, match="name the right digit"):
        run(api, app, TINY)
    assert fake.functions == {}


def test_an_example_that_is_not_there_is_told(cli: Callable[..., Result], tmp_path: Path) -> None:
    found = cli("experiment", "batching", "--quick", "--app", str(tmp_path / "gone"))
    assert found.exit_code == 2
    assert "--app" in found.stderr
