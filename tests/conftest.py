"""Tests that are marked `alone` have the machine to themselves, whichever of pytest-xdist's processes they run in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest

_HERE = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Two locks on folders that every process sees. Who waits to be alone holds the first: nobody begins meanwhile."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    turn, room = os.open(_HERE, os.O_RDONLY), os.open(_HERE / "e2e", os.O_RDONLY)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(turn, fcntl.LOCK_UN)
        return (yield)
    finally:
        for lock in (room, turn):
            fcntl.flock(lock, fcntl.LOCK_UN)  # not by closing alone: a process that the test left may have a copy
            os.close(lock)
