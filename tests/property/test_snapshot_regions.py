"""Regions and layouts against a page by page account."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.errors import SnapshotCorrupt
from rewarm.snapshot.holes import nonzero_regions, punch_zero_pages
from rewarm.snapshot.regions import (
    PAGE_BYTES,
    ZERO_PAGES_MIN,
    Layout,
    Region,
    closed,
    count,
    gaps,
    merged,
    within,
)

MEMORY_PAGES = 600
pages_of_memory = st.sets(st.integers(0, MEMORY_PAGES - 1), max_size=60)
gap_pages = st.integers(0, 40)


def numbers(regions: list[Region] | tuple[Region, ...]) -> set[int]:
    found = [page for first, pages in regions for page in range(first, first + pages)]
    assert len(found) == len(set(found)), "regions overlap"
    return set(found)


@given(pages_of_memory, gap_pages)
def test_merging_adds_exactly_the_small_gaps(pages: set[int], gap: int) -> None:
    regions = merged(pages, gap)
    filled = set(pages)
    for one, following in pairwise(sorted(pages)):
        if following - one - 1 <= gap:
            filled |= set(range(one, following))
    assert numbers(regions) == filled
    assert regions == sorted(regions) and count(regions) == len(filled)
    # As few as can be: what is left between two of them is wider than the gap.
    assert all(b.first_page - a.first_page - a.pages > gap for a, b in pairwise(regions))
    assert closed(merged(pages, 0), gap) == regions


@given(pages_of_memory, st.integers(1, 70))
def test_gaps_are_what_is_left(pages: set[int], pages_min: int) -> None:
    found = gaps(merged(pages, 0), MEMORY_PAGES, pages_min)
    assert not numbers(found) & pages
    assert all(region.pages >= pages_min for region in found)
    assert numbers(gaps(merged(pages, 0), MEMORY_PAGES, 1)) == set(range(MEMORY_PAGES)) - pages


@given(pages_of_memory, pages_of_memory)
def test_within(pages: set[int], area: set[int]) -> None:
    assert within(pages, merged(area, 0)) == sorted(pages & area)


@given(pages_of_memory, pages_of_memory, gap_pages)
def test_a_layout_places_every_page_once(nonzero: set[int], touched: set[int], gap: int) -> None:
    data = merged(nonzero, 0)
    layout = Layout.of(MEMORY_PAGES, data, merged(within(touched, data), gap))
    zero, loading = numbers(layout.zero), numbers(layout.loading)
    assert not zero & loading and not zero & nonzero
    assert loading >= touched & nonzero
    assert all(region.pages >= ZERO_PAGES_MIN for region in layout.zero)
    end = 0
    for region, offset in layout.placed():
        assert offset == end
        end += region.pages * PAGE_BYTES
    assert end == layout.loading_pages * PAGE_BYTES
    assert Layout.loads(layout.dumps()) == layout


@given(pages_of_memory, st.data())
def test_no_byte_of_a_layout_can_change(pages: set[int], data: st.DataObject) -> None:
    content = bytearray(Layout.of(MEMORY_PAGES, merged(pages, 0), merged(set(sorted(pages)[::2]), 3)).dumps())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SnapshotCorrupt):
        Layout.loads(bytes(content))


@given(st.binary(max_size=200))
def test_anything_else_is_no_layout(data: bytes) -> None:
    with pytest.raises(SnapshotCorrupt):
        Layout.loads(data)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, MEMORY_PAGES - 1)), st.integers(0, PAGE_BYTES - 1))
def test_punching_changes_no_byte(tmp_path_factory: pytest.TempPathFactory, pages: set[int], at: int) -> None:
    path: Path = tmp_path_factory.mktemp("punch") / "memory"
    content = bytearray(MEMORY_PAGES * PAGE_BYTES)
    for page in pages:
        content[page * PAGE_BYTES + at] = 1
    path.write_bytes(content)
    assert punch_zero_pages(path) == len(pages)
    assert path.read_bytes() == content
    assert numbers(nonzero_regions(path)) >= pages
    path.unlink()
