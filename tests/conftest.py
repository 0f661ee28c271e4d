"""Tests that are marked `alone` have the machine to themselves, whichever of pytest-xdist's processes they run in."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from rewarm.errors import MicrovmUnavailable
from rewarm.guest.build import build_guest, find_guest
from rewarm.vmm.qemu import find_qemu

_HERE = Path(__file__).parent
_GUEST_HOME = "REWARM_TEST_GUEST_HOME"
_SLOW_UNTIL = "REWARM_TEST_SLOW_UNTIL"


@pytest.fixture(scope="session")
def give_guest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Gives a home a guest, as `rewarm microvm build` does. One is built for all processes of a run of tests.

    The environment may name a home for it that outlives the run: REWARM_TEST_GUEST_HOME.
    """
    named = os.environ.get(_GUEST_HOME)
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    home = Path(named) if named else shared / "guest-home"
    home.mkdir(parents=True, exist_ok=True)
    try:
        find_qemu()
        with (home / "building").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                guest = find_guest(home)
            except MicrovmUnavailable:
                guest = build_guest(home, lambda step, done, total: None)
    except MicrovmUnavailable as error:
        pytest.skip(f"no micro-VMs here: {error.message}")

    def give(path: Path) -> None:
        (path / "microvm").mkdir(parents=True)
        (path / "microvm" / "guest").symlink_to(guest.folder)

    return give


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where time is limited (REWARM_TEST_SLOW_UNTIL, seconds since the epoch), servers are not begun after that."""
    until_s = float(os.environ.get(_SLOW_UNTIL, "inf"))
    if time.time() > until_s and any(item.get_closest_marker(name) for name in ("e2e", "slow")):
        pytest.skip(f"too little time is left ({_SLOW_UNTIL})")


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
