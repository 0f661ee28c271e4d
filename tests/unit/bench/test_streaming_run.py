"""The streaming experiment once, on the smallest of its models: all ways answer the same, and all is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the experiment needs torch: pip install 'rewarm[torch]'")
pytest.importorskip("safetensors", reason="the experiment needs safetensors: pip install 'rewarm[torch]'")
pytest.importorskip("matplotlib", reason="pip install 'rewarm[bench]'")

from rewarm.bench import streaming_report
from rewarm.bench.experiment_streaming import run
from rewarm.bench.streaming_rows import Result, Settings
from rewarm.errors import SystemFault

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    try:
        return run(folder, Settings(models=("minilm",), repeats=1, quick=True))
    except SystemFault as error:
        if "page cache" in error.message or "lock memory" in error.message:
            pytest.skip(error.message)
        raise


def test_what_is_read_and_held_is_what_each_way_says(result: Result) -> None:
    def row(mode: str, cache: str = "cold", pinned_pct: int = 0) -> tuple[float, float]:
        found = result.row("minilm", "torch", mode, cache, pinned_pct)
        assert found is not None and found.ttfi_ms >= found.load_ms > 0
        return found.read_mb, found.private_mb

    facts = result.models["minilm"]
    whole_mb, streamed_mb = facts.total_mb, facts.streamed_mb
    assert streamed_mb < 0.6 * whole_mb  # the table of words is read by row
    for mode in ("read-all", "torch.load"):
        read_mb, private_mb = row(mode)
        assert read_mb == pytest.approx(whole_mb, rel=0.05) and private_mb > 0.9 * whole_mb, mode
    reads_mb = {pct: row("streamed", pinned_pct=pct)[0] for pct in (0, 25, 50)}
    assert streamed_mb * 0.95 < reads_mb[0] < whole_mb * 1.05
    # The kernel reads ahead into the table behind it, as far as it likes.
    assert reads_mb[0] - reads_mb[50] == pytest.approx(streamed_mb / 2, abs=0.1 * streamed_mb + 8)
    assert reads_mb[0] > reads_mb[25] > reads_mb[50]
    for mode, cache in (("streamed", "cold"), ("streamed", "warm"), ("on-demand", "cold"), ("warm", "warm")):
        assert row(mode, cache)[1] < 0.4 * whole_mb, mode
    for mode in ("streamed", "warm", "read-all", "safetensors"):
        assert row(mode, "warm")[0] < 0.05 * whole_mb, mode


def test_a_streamed_start_is_drawn_layer_by_layer(result: Result) -> None:
    plain, pinned = result.timelines
    assert (plain.pinned_pct, pinned.pinned_pct) == (0, 50)
    for timeline in result.timelines:
        assert len(timeline.loads_ms) == len(timeline.layers)
        assert len(timeline.computes_ms) > 6  # at least one a block
        for lane in (timeline.loads_ms, timeline.computes_ms):
            ends = [moment for span in lane for moment in span]
            assert ends == sorted(ends) and ends[0] >= 0
        assert timeline.computes_ms[-1][1] <= timeline.end_ms


def test_the_files_are_written_and_the_scratch_is_gone(result: Result, folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["minilm-0.safetensors"]
    written, _, _ = streaming_report.write(result, tmp_path)
    told = json.loads(written.read_text())
    assert len(told["rows"]) == len(result.rows) >= 15
