from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.errors import SnapshotFailed
from rewarm.snapshot.loading import StorageSpeed, measure_storage, write_loading_set
from rewarm.snapshot.manifest import Snapshot, open_snapshot, verify, write_manifest
from rewarm.snapshot.regions import PAGE_BYTES, Region

Make = Callable[..., Snapshot]


def test_the_loading_set_holds_its_regions_one_after_the_other(make: Make, sample: bytes) -> None:
    snapshot = make(gap_pages=8)
    layout = snapshot.read_layout()
    assert layout is not None and snapshot.loading_set is not None
    assert layout.loading == (Region(0, 6), Region(210, 11), Region(602, 2), Region(641, 1), Region(1023, 1))
    content = snapshot.loading_set.read_bytes()
    for (first, pages), offset in layout.placed():
        size_bytes = pages * PAGE_BYTES
        assert content[offset : offset + size_bytes] == sample[first * PAGE_BYTES : first * PAGE_BYTES + size_bytes]
    assert len(content) == layout.loading_pages * PAGE_BYTES


def test_what_is_zero_or_cold_is_not_loaded(make: Make) -> None:
    loading = make(gap_pages=0).manifest.loading
    assert loading is not None
    # 12 pages were touched, two of them zero; of these 400 is anonymous memory, and 5 would be a fault on a hole.
    assert (loading.touched_pages, loading.loading_pages, loading.regions) == (11, 11, 7)
    assert loading.nonzero_pages == 220 and loading.merge_gap_pages == 0


def test_gaps_cost_pages_and_save_regions(make: Make) -> None:
    loading = make(gap_pages=8).manifest.loading
    assert loading is not None
    assert (loading.touched_pages, loading.loading_pages, loading.regions) == (11, 21, 5)


def test_the_storage_decides_on_the_gap(make: Make) -> None:
    snapshot = make(touched=None)
    loading = write_loading_set(snapshot.folder, {0, 210})
    assert 0 <= loading.merge_gap_pages <= 32 and 0 <= loading.prefetch_gap_pages <= 32


def test_it_can_be_written_anew(make: Make) -> None:
    snapshot = make()
    loading = write_loading_set(snapshot.folder, {1}, 0)
    assert loading.regions == 1
    write_manifest(snapshot.folder, snapshot.manifest.with_loading(snapshot.folder, loading))
    verify(open_snapshot(snapshot.folder))


def test_nothing_was_touched(make: Make) -> None:
    snapshot = make(touched=set())
    assert snapshot.manifest.loading is not None and snapshot.manifest.loading.regions == 0
    verify(open_snapshot(snapshot.folder))


def test_no_memory_file(tmp_path: Path) -> None:
    with pytest.raises(SnapshotFailed, match="loading set"):
        write_loading_set(tmp_path, {1})


@pytest.mark.parametrize(
    ("random_read_s", "sequential_bytes_s", "merge", "prefetch"),
    [(56e-6, 3.2e9, 4, 32), (333e-6, 125e6, 0, 10), (1e-6, 20e9, 29, 4), (1e-3, 100e9, 32, 32)],
)
def test_a_gap_is_read_if_that_costs_less_than_a_region(
    random_read_s: float, sequential_bytes_s: float, merge: int, prefetch: int
) -> None:
    speed = StorageSpeed(random_read_s, sequential_bytes_s)
    assert (speed.merge_gap_pages, speed.prefetch_gap_pages) == (merge, prefetch)


def test_storage_is_measured(make: Make) -> None:
    speed = measure_storage(make().memory)
    assert speed.random_read_s > 0.0 and speed.sequential_bytes_s > 0.0
