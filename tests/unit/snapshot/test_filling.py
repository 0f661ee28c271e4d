from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from rewarm.errors import SnapshotCorrupt
from rewarm.snapshot.ahead import Readahead, Span
from rewarm.snapshot.filling import AROUND_PAGES, Filling, Mapping, Source
from rewarm.snapshot.manifest import Snapshot
from rewarm.snapshot.record import cached_pages
from rewarm.snapshot.regions import PAGE_BYTES, Region
from rewarm.snapshot.uffd import Uffd, open_uffd

Make = Callable[..., Snapshot]


@pytest.fixture
def source(make: Make) -> Iterator[Source]:
    """Loaded: 0-1, 5, 210-212, 220, 602-603, 641, 1023. Zero by layout: 12-199, 350-599, 642-999."""
    opened = Source(make(gap_pages=0).folder, True, Readahead())
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("page", "run"),
    [
        (300, Region(288, 16)),
        (303, Region(288, 16)),
        (304, Region(304, 16)),
        (200, Region(200, 8)),  # it begins after zeros
        (208, Region(208, 2)),  # and ends before what is loaded
        (213, Region(213, 7)),
        (221, Region(221, 3)),
        (349, Region(336, 14)),
        (1010, Region(1008, 15)),
        (4, Region(2, 3)),
        (7, Region(6, 6)),
        (601, Region(600, 2)),
    ],
)
def test_cold_memory_comes_with_its_neighbours(source: Source, page: int, run: Region) -> None:
    assert source.around(page) == (source.memory, run.first_page * PAGE_BYTES, run)
    assert run.pages <= AROUND_PAGES


@pytest.mark.parametrize(("page", "place"), [(0, 0), (1, 1), (5, 2), (210, 3), (212, 5), (220, 6), (1023, 10)])
def test_what_is_loaded_comes_alone(source: Source, page: int, place: int) -> None:
    assert source.around(page) == (source.loading_set, place * PAGE_BYTES, Region(page, 1))


@pytest.mark.parametrize("page", [12, 199, 350, 599, 999])
def test_nothing_is_filled_where_the_kernel_answers(source: Source, page: int) -> None:
    assert source.around(page)[2].pages == 0


def test_without_a_loading_set_all_is_cold(make: Make) -> None:
    source = Source(make(touched=None).folder, False, Readahead())
    assert source.around(1023) == (source.memory, 1008 * PAGE_BYTES, Region(1008, 16))
    source.close()


def test_a_source_that_cannot_be_opened_leaves_nothing_open(make: Make) -> None:
    snapshot = make()
    assert snapshot.layout is not None and snapshot.loading_set is not None
    before = len(os.listdir("/proc/self/fd"))
    snapshot.loading_set.unlink()
    with pytest.raises(OSError):
        Source(snapshot.folder, True, Readahead())
    snapshot.layout.unlink()
    with pytest.raises(SnapshotCorrupt):
        Source(snapshot.folder, True, Readahead())
    assert len(os.listdir("/proc/self/fd")) == before


def test_nobody_waits_for_pages_that_are_being_read(make: Make, cold: Callable[[Snapshot], None]) -> None:
    snapshot, ahead = make(), Readahead()
    cold(snapshot)
    path = snapshot.loading_set
    assert path is not None
    if cached_pages(path):
        pytest.skip("the files of this directory stay in memory")
    begun = threading.Event()

    class Held(list[Span]):
        def __iter__(self) -> Iterator[Span]:
            begun.wait(60.0)
            return super().__iter__()

    busy = ahead.begin(path, Held())  # so the source finds it being read
    source = Source(snapshot.folder, True, ahead)
    into = memoryview(bytearray(4 * PAGE_BYTES))
    found = source.read_loading(5 * PAGE_BYTES, into)
    assert busy.is_alive() and found == 0
    begun.set()
    busy.join(60.0)
    assert source.read_loading(5 * PAGE_BYTES, into) == len(into)  # now it waits for the disk
    source.close()


def test_a_loading_set_that_was_cut(make: Make) -> None:
    snapshot = make()
    source = Source(snapshot.folder, True, Readahead())
    assert snapshot.loading_set is not None
    snapshot.loading_set.chmod(0o644)
    os.truncate(snapshot.loading_set, PAGE_BYTES)
    with pytest.raises(SnapshotCorrupt, match="shorter"):
        for _ in range(1000):  # while it is being read, it only has not come yet
            source.read_loading(5 * PAGE_BYTES, memoryview(bytearray(PAGE_BYTES)))
            time.sleep(0.001)
    source.close()


@pytest.mark.usefixtures("userfaultfd")
@pytest.mark.parametrize("mappings", [[], [Mapping(0, 1 << 30, 0)], [Mapping(0, PAGE_BYTES, 1 << 30)]])
def test_memory_that_the_snapshot_does_not_have(source: Source, mappings: list[Mapping]) -> None:
    uffd = Uffd(open_uffd())
    with pytest.raises(SnapshotCorrupt):
        Filling(uffd, mappings, source)
    uffd.close()
