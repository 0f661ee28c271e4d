from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from rewarm.kernel import cached_bytes
from rewarm.snapshot.holes import drop_cache, nonzero_regions, punch_zero_pages, runs
from rewarm.snapshot.regions import PAGE_BYTES, Region


@pytest.mark.parametrize(
    ("marks", "found"),
    [(b"", []), (b"\0\0", []), (b"\1", [(0, 1)]), (b"\0\1\1\0\1", [(1, 3), (4, 5)]), (b"\1\0", [(0, 1)])],
)
def test_runs(marks: bytes, found: list[tuple[int, int]]) -> None:
    assert list(runs(marks)) == found


def test_zero_pages_become_holes_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    # More than one chunk of reading; the last page of a chunk, the first of the next, and a page with one byte set.
    pages = {0: b"a" * PAGE_BYTES, 255: bytes(PAGE_BYTES - 1) + b"z", 256: b"b" * PAGE_BYTES, 900: b"c" * PAGE_BYTES}
    content = b"".join(pages.get(number, bytes(PAGE_BYTES)) for number in range(1000))
    path.write_bytes(content)
    assert punch_zero_pages(path) == 4
    assert path.read_bytes() == content
    assert nonzero_regions(path) == [Region(0, 1), Region(255, 2), Region(900, 1)]
    assert path.stat().st_blocks * 512 < 20 * PAGE_BYTES
    assert punch_zero_pages(path) == 4


def test_a_file_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(100 * PAGE_BYTES))
    assert punch_zero_pages(path) == 0
    assert nonzero_regions(path) == []
    assert path.stat().st_size == 100 * PAGE_BYTES
    path.write_bytes(b"")
    assert punch_zero_pages(path) == 0


def test_a_dropped_file_is_not_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    drop_cache(path)
    with path.open("rb") as file:
        try:
            cached = cached_bytes(file.fileno(), 0, 1 << 20)
        except OSError:
            pytest.skip("this kernel does not tell what is cached")
        if _is_tmpfs(path):
            pytest.skip("a file system in memory")
        assert cached == 0


def _is_tmpfs(path: Path) -> bool:
    buffer = ctypes.create_string_buffer(256)
    ctypes.CDLL(None).statfs(os.fsencode(path), buffer)
    return int.from_bytes(buffer.raw[:8], "little") == 0x01021994
