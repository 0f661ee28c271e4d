from __future__ import annotations

import os
from pathlib import Path

import pytest

from rewarm.snapshot.ahead import Readahead, Span
from rewarm.snapshot.holes import drop_cache
from rewarm.snapshot.record import cached_pages
from rewarm.snapshot.regions import PAGE_BYTES


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1024 * PAGE_BYTES))
    drop_cache(path)
    if cached_pages(path):
        pytest.skip("the files of this directory stay in memory")
    return path


def test_the_spans_and_nothing_else_are_read(file: Path) -> None:
    spans = [Span(512 * PAGE_BYTES, 100 * PAGE_BYTES), Span(0, PAGE_BYTES)]
    thread = Readahead().begin(file, spans)
    thread.join(10.0)
    assert not thread.is_alive()
    assert cached_pages(file) == {0, *range(512, 612)}


def test_a_burst_reads_once(file: Path) -> None:
    ahead = Readahead()
    long = [Span(0, PAGE_BYTES)] * 100_000  # takes a while, however fast the disk
    threads = {ahead.begin(file, long) for _ in range(4)}
    assert len(threads) == 1
    for thread in threads:
        thread.join(60.0)
    again = ahead.begin(file, [Span(PAGE_BYTES, PAGE_BYTES)])  # what is over can be begun anew
    again.join(10.0)
    assert again not in threads and cached_pages(file) == {0, 1}


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Readahead().begin(tmp_path / "none", [Span(0, PAGE_BYTES)])
