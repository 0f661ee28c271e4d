from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import SnapshotFailed
from rewarm.snapshot.manifest import Snapshot
from rewarm.snapshot.record import cached_pages, touched_pages
from rewarm.snapshot.restore import Means, plan

Make = Callable[..., Snapshot]
Start = Callable[..., Any]
Cold = Callable[[Snapshot], None]


def test_exactly_what_was_touched_under_small_faults(
    make: Make, means: Means, shim: Path, start: Start, cold: Cold
) -> None:
    snapshot = make(touched=None)
    cold(snapshot)
    guest = start(plan(snapshot, "lazy-4k", means))
    assert touched_pages(guest.pid, snapshot.memory) == set()
    for number in (0, 210, 211, 605, 300):
        guest.page(number)
    guest.ask("poke 1000")  # a written page is a private copy, but was touched all the same
    guest.page(500)  # a zero page
    assert touched_pages(guest.pid, snapshot.memory) == {0, 210, 211, 605, 300, 1000, 500}


def test_without_the_shim_at_least_what_was_touched(make: Make, means: Means, start: Start, cold: Cold) -> None:
    snapshot = make(touched=None)
    cold(snapshot)
    guest = start(plan(snapshot, "lazy", means))
    guest.page(210)
    assert 210 in touched_pages(guest.pid, snapshot.memory)


def test_a_process_that_maps_something_else(make: Make) -> None:
    with pytest.raises(SnapshotFailed, match="does not map"):
        touched_pages(os.getpid(), make(touched=None).memory)


def test_a_process_that_has_ended(make: Make, means: Means, start: Start) -> None:
    snapshot = make(touched=None)
    guest = start(plan(snapshot, "lazy", means))
    guest.end()
    with pytest.raises(SnapshotFailed):
        touched_pages(guest.pid, snapshot.memory)


def test_the_page_cache_knows_it_too(make: Make, means: Means, shim: Path, start: Start, cold: Cold) -> None:
    """The witness for a process whose pages may not be seen."""
    snapshot = make(touched=None)
    cold(snapshot)
    before = cached_pages(snapshot.memory)
    if before:
        pytest.skip("the files of this directory stay in memory")
    guest = start(plan(snapshot, "lazy-4k", means))
    for number in (0, 210, 605):
        guest.page(number)
    assert cached_pages(snapshot.memory) == {0, 210, 605}
