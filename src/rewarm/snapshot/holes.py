"""The holes of a memory file: zero pages that take no disk, and are never read."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from rewarm.snapshot.regions import PAGE_BYTES, Region

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_CHUNK_BYTES = 1 << 20
_ZERO_PAGE = bytes(PAGE_BYTES)
_ZERO_CHUNK = bytes(_CHUNK_BYTES)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def data_extents(file: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """(begin, end) in bytes of what is no hole; all of it where the file system does not know. Raises OSError."""
    begin = 0
    while begin < size_bytes:
        try:
            begin = os.lseek(file, begin, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # no more data
        end = os.lseek(file, begin, os.SEEK_HOLE)
        yield begin, end
        begin = end


def nonzero_regions(path: Path) -> list[Region]:
    """The pages of a punched file that hold data. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        pages = ((begin // PAGE_BYTES, -(-end // PAGE_BYTES)) for begin, end in data_extents(file.fileno(), size_bytes))
        return [Region(first, end - first) for first, end in pages]


def punch_zero_pages(path: Path) -> int:
    """Makes a hole of every zero page, and returns how many pages hold something. Its size stays. Raises OSError.

    Where the file system has no holes the file stays as it is.
    """
    nonzero_pages = 0
    with path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()
        size_bytes = os.fstat(descriptor).st_size
        for begin, end in list(data_extents(descriptor, size_bytes)):  # before the punching changes them
            for offset in range(begin - begin % PAGE_BYTES, end, _CHUNK_BYTES):
                chunk = os.pread(descriptor, min(_CHUNK_BYTES, -(-end // PAGE_BYTES) * PAGE_BYTES - offset), offset)
                zeros = _zero_runs(chunk)
                nonzero_pages += -(-len(chunk) // PAGE_BYTES) - sum(pages for _, pages in zeros)
                for first, pages in zeros:
                    _punch(descriptor, offset + first * PAGE_BYTES, pages * PAGE_BYTES)
    return nonzero_pages


def _zero_runs(chunk: bytes) -> list[tuple[int, int]]:
    """(first page, pages) of the runs of whole zero pages in a chunk."""
    pages = len(chunk) // PAGE_BYTES
    if chunk == _ZERO_CHUNK:
        return [(0, pages)]
    marks = bytes(chunk[at : at + PAGE_BYTES] == _ZERO_PAGE for at in range(0, pages * PAGE_BYTES, PAGE_BYTES))
    return [(first, end - first) for first, end in runs(marks)]


def runs(marks: bytes) -> Iterator[tuple[int, int]]:
    """(first, end) of the runs of ones among zeros and ones."""
    first = marks.find(1)
    while first >= 0:
        end = marks.find(0, first)
        if end < 0:
            end = len(marks)
        yield first, end
        first = marks.find(1, end)


def _punch(file: int, begin: int, size_bytes: int) -> None:
    if _libc.fallocate(file, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, begin, size_bytes) != 0:
        error = ctypes.get_errno()
        if error != errno.EOPNOTSUPP:
            raise OSError(error, os.strerror(error))


def drop_cache(path: Path) -> None:
    """The file leaves the page cache, as far as nobody has it mapped: its next reader waits for the disk.

    Raises OSError.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())  # what is dirty cannot be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
