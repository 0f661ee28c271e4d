"""Real pages of real files: which are in memory, which stay, and what becomes of a file that was cut."""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewarm import kernel
from rewarm.errors import WeightsCorrupt
from rewarm.weights.pages import CHUNK_BYTES, PAGE_BYTES, Mapped

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mlock and /proc")

MIB = 1 << 20
SIZE_BYTES = CHUNK_BYTES + 3 * MIB + 5


def locked_bytes() -> int:
    found = re.search(r"^VmLck:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def evict(path: Path) -> None:
    """Out of memory with whatever nobody maps or holds."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def in_memory(path: Path, begin: int = 0, end: int | None = None) -> int:
    mapped = Mapped(path, path.stat().st_size)
    try:
        return mapped.resident_bytes(begin, mapped.size_bytes if end is None else end)
    finally:
        mapped.close()


def without_locks(action: Callable[[], None]) -> None:
    """Run it in a thread that may not lock a single page, whoever runs the tests."""
    errors: list[BaseException] = []

    def run() -> None:
        kernel.drop_capabilities()  # of this thread
        try:
            action()
        except BaseException as error:
            errors.append(error)

    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, hard))
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    if errors:
        raise errors[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(SIZE_BYTES))
    evict(path)
    if in_memory(path):
        pytest.skip("this file system keeps its pages")
    return path


@pytest.fixture
def mapped(path: Path) -> Iterator[Mapped]:
    mapped = Mapped(path, SIZE_BYTES)
    yield mapped
    mapped.close()


def test_the_buffer_is_the_file_and_cannot_be_written(mapped: Mapped) -> None:
    with mapped.buffer as view:
        assert view == mapped.path.read_bytes()
        assert view.readonly


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES - 1, SIZE_BYTES + 1, 0])
def test_a_file_of_another_size_is_not_mapped(path: Path, size_bytes: int) -> None:
    with pytest.raises(WeightsCorrupt, match=str(SIZE_BYTES)):
        Mapped(path, size_bytes)


def test_neither_is_an_empty_or_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(WeightsCorrupt, match="is empty"):
        Mapped(tmp_path / "empty", 0)
    with pytest.raises(WeightsCorrupt, match="is gone"):
        Mapped(tmp_path / "nothing", 1)


def test_populate_reads_in_what_it_is_told_chunk_by_chunk(mapped: Mapped) -> None:
    chunks: list[tuple[int, int]] = []
    assert mapped.missing_bytes(0, SIZE_BYTES) == SIZE_BYTES + -SIZE_BYTES % PAGE_BYTES
    mapped.populate(10, CHUNK_BYTES + 10, lambda begin, end: chunks.append((begin, end)))
    assert chunks == [(0, CHUNK_BYTES), (CHUNK_BYTES, CHUNK_BYTES + PAGE_BYTES)]
    assert mapped.missing_bytes(0, CHUNK_BYTES + PAGE_BYTES) == 0
    mapped.populate(0, SIZE_BYTES)
    assert mapped.missing_bytes(0, SIZE_BYTES) == 0
    assert mapped.resident_bytes(SIZE_BYTES - 1, SIZE_BYTES) == PAGE_BYTES
    assert mapped.resident_bytes(7, 7) == 0


def test_an_older_kernel_reads_in_too(mapped: Mapped) -> None:
    mapped.read_in(0, CHUNK_BYTES)
    assert mapped.missing_bytes(0, CHUNK_BYTES) == 0


@pytest.mark.usefixtures("may_lock")
def test_locks_are_by_the_page_and_do_not_add_up(mapped: Mapped) -> None:
    before = locked_bytes()

    def held() -> int:
        return (locked_bytes() - before) // PAGE_BYTES

    mapped.lock(PAGE_BYTES - 1, PAGE_BYTES + 1)
    assert held() == 2
    mapped.lock(0, 4 * PAGE_BYTES)
    assert held() == 4
    mapped.unlock(2 * PAGE_BYTES, 3 * PAGE_BYTES)  # a hole
    assert held() == 3
    mapped.lock(0, SIZE_BYTES)
    assert held() == -(-SIZE_BYTES // PAGE_BYTES)
    mapped.unlock(PAGE_BYTES, SIZE_BYTES)
    mapped.unlock(PAGE_BYTES, SIZE_BYTES)
    assert held() == 1
    mapped.close()
    assert held() == 0


@pytest.mark.usefixtures("may_lock")
def test_what_is_locked_stays_and_the_rest_goes(path: Path, mapped: Mapped) -> None:
    path.read_bytes()
    assert in_memory(path) >= SIZE_BYTES
    mapped.lock(0, MIB)
    evict(path)
    assert in_memory(path, 0, MIB) == MIB
    assert in_memory(path, CHUNK_BYTES) == 0
    mapped.close()
    evict(path)
    assert in_memory(path) == 0


@pytest.mark.usefixtures("may_lock")
def test_one_mapping_does_not_unlock_what_another_locked(path: Path, mapped: Mapped) -> None:
    before = locked_bytes()
    other = Mapped(path, SIZE_BYTES)
    mapped.lock(0, 2 * MIB)
    other.lock(MIB, 3 * MIB)
    mapped.unlock(0, 2 * MIB)
    mapped.close()
    assert locked_bytes() - before == 2 * MIB
    evict(path)
    assert in_memory(path, MIB, 3 * MIB) == 2 * MIB
    other.close()


def test_a_lock_that_is_refused_is_an_oserror(mapped: Mapped) -> None:
    def lock() -> None:
        with pytest.raises(OSError, match="mlock"):
            mapped.lock(0, MIB)

    without_locks(lock)
    assert mapped.resident_bytes(0, SIZE_BYTES) == 0


def test_a_file_that_was_cut_is_an_error_and_no_signal(path: Path, mapped: Mapped) -> None:
    mapped.lock(0, PAGE_BYTES)
    os.truncate(path, MIB)
    for action in (mapped.populate, mapped.lock):
        with pytest.raises(WeightsCorrupt, match=str(MIB)):
            action(0, SIZE_BYTES)
    with pytest.raises(WeightsCorrupt):
        mapped.read_in(0, SIZE_BYTES)
    with pytest.raises(WeightsCorrupt):
        mapped.check()


def test_a_range_is_within_the_file_and_the_file_mapped(mapped: Mapped) -> None:
    for begin, end in ((-1, 5), (5, 4), (0, SIZE_BYTES + 1)):
        with pytest.raises(ValueError, match="is not within"):
            mapped.populate(begin, end)
    view = mapped.buffer
    with pytest.raises(BufferError):
        mapped.close()
    view.release()
    mapped.close()
    mapped.close()
    with pytest.raises(ValueError, match="not mapped any more"):
        mapped.lock(0, 1)
