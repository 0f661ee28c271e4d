from __future__ import annotations

import hashlib

import pytest

from rewarm.errors import SnapshotCorrupt
from rewarm.snapshot.regions import PAGE_BYTES, ZERO_PAGES_MIN, Layout, Region, closed, count, gaps, merged, within


def test_neighbours_are_one_region() -> None:
    assert merged([3, 1, 2, 7], 0) == [Region(1, 3), Region(7, 1)]
    assert merged([], 4) == []


def test_small_gaps_become_part_of_the_regions() -> None:
    pages = [0, 3, 8]
    assert merged(pages, 1) == [Region(0, 1), Region(3, 1), Region(8, 1)]
    assert merged(pages, 2) == [Region(0, 4), Region(8, 1)]
    assert merged(pages, 4) == [Region(0, 9)]


def test_regions_are_closed_as_pages_are() -> None:
    assert closed([Region(0, 1), Region(3, 1), Region(8, 1)], 2) == [Region(0, 4), Region(8, 1)]
    assert closed([Region(0, 10), Region(2, 3), Region(10, 1)], 0) == [Region(0, 11)]


def test_pages_within_regions() -> None:
    assert within({5, 0, 2, 9, 7}, [Region(1, 2), Region(7, 2)]) == [2, 7]


def test_gaps_from_the_first_page_to_the_last() -> None:
    assert gaps([Region(3, 1), Region(6, 1)], 10, 3) == [Region(0, 3), Region(7, 3)]
    assert gaps([], 10, 3) == [Region(0, 10)]
    assert gaps([Region(0, 10)], 10, 1) == []


def test_a_layout_names_what_is_zero_and_what_is_loaded() -> None:
    layout = Layout.of(1000, [Region(0, 10), Region(20, 2), Region(400, 5)], [Region(8, 14), Region(402, 1)])
    assert layout.zero == (Region(22, 378), Region(405, 595))
    assert list(layout.placed()) == [(Region(8, 14), 0), (Region(402, 1), 14 * PAGE_BYTES)]
    assert layout.loading_pages == count(layout.loading) == 15
    assert Layout.loads(layout.dumps()) == layout


def test_short_runs_of_zeros_stay_holes() -> None:
    data = [Region(0, 1), Region(ZERO_PAGES_MIN, 1)]
    assert Layout.of(ZERO_PAGES_MIN + 1, data, []).zero == ()
    data = [Region(0, 1), Region(ZERO_PAGES_MIN + 1, 1)]
    assert Layout.of(ZERO_PAGES_MIN + 2, data, []).zero == (Region(1, ZERO_PAGES_MIN),)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(10, (Region(0, 4),), (Region(3, 2),)),
        Layout(10, (), (Region(9, 2),)),
        Layout(10, (), (Region(4, 0),)),
        Layout(10, (), (Region(4, 1), Region(2, 1))),
    ],
)
def test_what_cannot_be_is_refused(layout: Layout) -> None:
    with pytest.raises(SnapshotCorrupt, match="made again"):
        Layout.loads(layout.dumps())


def test_another_format_is_refused() -> None:
    body = bytearray(Layout(10, (), ()).dumps()[:-32])
    body[8] = 2
    with pytest.raises(SnapshotCorrupt, match="format 2"):
        Layout.loads(bytes(body) + hashlib.sha256(body).digest())
