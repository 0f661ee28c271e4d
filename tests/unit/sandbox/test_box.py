from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewarm.errors import SandboxFailed
from rewarm.pump import Pump
from rewarm.sandbox.box import Box


def open_files() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


@contextlib.contextmanager
def left(count: int) -> Iterator[None]:
    """No more than `count` files can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_files()) + 1 + count, hard))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(count):
            os.close(held.pop())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", [0, 2])
async def test_without_descriptors_there_is_none(tmp_path: Path, count: int) -> None:
    """For its pipe, or for its socket after that."""
    pump, before = Pump(), open_files()
    with left(count), pytest.raises(SandboxFailed, match=r"Too many open files; .* the limit of open files low"):
        Box(1, tmp_path / "scratch", asyncio.get_running_loop(), pump)
    assert open_files() == before and not (tmp_path / "scratch").exists()
    pump.close()


async def test_without_a_directory_there_is_none(tmp_path: Path) -> None:
    pump, before = Pump(), open_files()
    with pytest.raises(SandboxFailed, match="is the disk full"):
        Box(1, tmp_path / "none" / "scratch", asyncio.get_running_loop(), pump)
    assert open_files() == before
    pump.close()
