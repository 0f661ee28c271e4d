"""A file mapped read-only and shared: the pages of its ranges fetched, counted, locked.

Nothing here touches mapped memory by itself, so a file that was cut short meanwhile is a `WeightsCorrupt` and no
SIGBUS: the kernel answers MADV_POPULATE_READ and mlock(2) with an error where an access would be killed. Whoever reads
`buffer` has no such shelter; packs are immutable files for that reason.

PROT_READ and MAP_SHARED: pages are those of the page cache, the same for all who map the file, and are not counted
against RLIMIT_DATA.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from rewarm import kernel
from rewarm.errors import WeightsCorrupt

PAGE_BYTES = mmap.PAGESIZE
CHUNK_BYTES = 16 << 20  # one system call asks for no more, so that whoever wants to stop waits for no more
ROWS_MAX = 8192  # of a table that are asked for ahead at a time; what is read beyond them costs a page fault each

_MADV_POPULATE_READ = 22  # Linux ≥ 5.14
_EHWPOISON = 133  # memory that has failed; `errno` does not know it
_SCRATCH_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)  # its calls are made without the GIL
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.mlock.argtypes = _libc.munlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _PyBuffer(ctypes.Structure):
    """Py_buffer of Python's stable ABI."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.c_void_p), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_void_p), ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]  # fmt: skip


def _address(mapping: mmap.mmap) -> int:
    """Where it begins. ctypes' own `from_buffer` wants memory that can be written."""
    view = _PyBuffer()
    if ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), ctypes.byref(view), 0) != 0:
        raise BufferError("a mapping without an address")
    address = int(view.buf)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address


def ask_for_rows(begin: int, row_bytes: int, count: int, numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Begin to read rows of a mapped table, of `count` rows from address `begin` on, without waiting → where that is,
    for `wait_for`; nowhere if all are in memory.

    All are asked for at once. One after the other they would be page faults, each waiting behind a large read. A number
    that no row has is passed over. It never fails: who touches the rows will meet the same fault.
    """
    runs = list(_row_runs(begin, row_bytes, count, numbers))
    there = all(_is_resident(first, last) for first, last in runs)
    for first, last in runs:
        _libc.madvise(first, last - first, mmap.MADV_WILLNEED)
    return [] if there else runs


def wait_for(runs: Iterable[tuple[int, int]]) -> float:
    """Until these pages, from and to addresses, are in memory → seconds. Never fails."""
    since_s = time.perf_counter()
    for first, last in runs:
        _libc.madvise(first, last - first, _MADV_POPULATE_READ)
    return time.perf_counter() - since_s


def _row_runs(begin: int, size_bytes: int, count: int, numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The pages of the rows, in order; neighbours are one run."""
    first = last = 0
    for number in sorted(set(numbers)):
        if not 0 <= number < count:
            continue
        address = begin + number * size_bytes
        if address // PAGE_BYTES * PAGE_BYTES > last:
            if last:
                yield first, last
            first = address - address % PAGE_BYTES
        last = -(-(address + size_bytes) // PAGE_BYTES) * PAGE_BYTES
    if last:
        yield first, last


def _is_resident(first: int, last: int) -> bool:
    """Whether every page is in memory."""
    residency = _residency(first, last)
    return residency is not None and 0 not in residency


def _residency(first: int, last: int) -> bytes | None:
    """A byte for each page: 1 if it is in memory (mincore(2)); None where that cannot be told.

    For who neither owns the file nor may write to it, the kernel says that all of it is there.
    """
    vector = ctypes.create_string_buffer((last - first) // PAGE_BYTES)
    return vector.raw if _libc.mincore(first, last - first, vector) == 0 else None


class Mapped:
    """The whole of the file at `path`, which must have exactly `size_bytes`; raises WeightsCorrupt if not, or OSError.

    Ranges are bytes [begin, end) of the file, within it; what is done is done to every page that they touch. `populate`
    and `lock` may be called from any thread, and let other threads run.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise WeightsCorrupt(f"{path} is gone; deploy its function again") from None
        try:
            self._check(os.fstat(file).st_size)
            self._mapping = mmap.mmap(file, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(file)
        self._address = _address(self._mapping)

    @property
    def buffer(self) -> memoryview:
        """All of it, read-only. The mapping cannot be closed while a view of it lives."""
        return memoryview(self._mapping)

    def check(self) -> None:
        """Raises WeightsCorrupt if the file is not of its size any more."""
        self._check(self._mapping.size())

    def _check(self, found_bytes: int) -> None:
        if not found_bytes:
            raise WeightsCorrupt(f"{self.path} is empty; deploy its function again")
        if found_bytes != self.size_bytes:
            raise WeightsCorrupt(
                f"{self.path} has {found_bytes} bytes, not {self.size_bytes}: it was changed; deploy its function again"
            )

    def populate(self, begin: int, end: int, each: Callable[[int, int], None] | None = None) -> None:
        """Read the range from disk as far as it is not in memory, and map it; call `each(begin, end)` after each chunk.

        Raises WeightsCorrupt if the file cannot be read there, or is not of its size any more.
        """
        for first, last in self._chunks(begin, end):
            self.check()
            if _libc.madvise(self._address + first, last - first, _MADV_POPULATE_READ) != 0:
                self._populate_otherwise(first, last, ctypes.get_errno())
            if each is not None:
                each(first, last)

    def _populate_otherwise(self, begin: int, end: int, error: int) -> None:
        if error == errno.EINVAL:  # an older kernel
            self.read_in(begin, end)
        elif error in (errno.EFAULT, _EHWPOISON):  # an access would have been SIGBUS
            self.check()
            raise WeightsCorrupt(f"{self.path} cannot be read at byte {begin}; deploy its function again")
        else:
            raise OSError(error, f"{self.path}: {os.strerror(error)}")

    def read_in(self, begin: int, end: int) -> None:
        """`populate` of one chunk for kernels without MADV_POPULATE_READ: into the page cache, but not mapped."""
        _libc.madvise(self._address + begin, end - begin, mmap.MADV_WILLNEED)
        scratch = bytearray(_SCRATCH_BYTES)
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while begin < min(end, self.size_bytes):
                got = os.preadv(file, [scratch], begin)
                if not got:
                    self.check()
                    raise WeightsCorrupt(f"{self.path} ends at byte {begin}; deploy its function again")
                begin += got
        except OSError as error:
            raise WeightsCorrupt(f"{self.path} cannot be read at byte {begin}: {error.strerror}") from None
        finally:
            os.close(file)

    def expect_rows(self, begin: int, end: int) -> None:
        """Of the range a few rows will be read: page faults in it read ahead no more (MADV_RANDOM). Raises OSError."""
        for first, last in self._chunks(begin, end):
            if _libc.madvise(self._address + first, last - first, mmap.MADV_RANDOM) != 0:
                self._fail("madvise")

    def ask_for_rows(self, begin: int, row_bytes: int, count: int, numbers: Iterable[int]) -> list[tuple[int, int]]:
        """As the function, for a table from byte `begin` of the file on."""
        return ask_for_rows(self._address + begin, row_bytes, count, numbers)

    def is_cached(self) -> bool:
        """Whether all of it is in memory; False also where the kernel does not tell (`kernel.cached_bytes`)."""
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return kernel.cached_bytes(file, 0, self.size_bytes) >= self.size_bytes
            finally:
                os.close(file)
        except OSError:
            return False

    def resident_bytes(self, begin: int, end: int) -> int:
        """Bytes of the range's pages that are in memory, whoever put them there: mincore(2). Raises OSError.

        For who neither owns the file nor may write to it, the kernel says that all of it is there.
        """
        return PAGE_BYTES * sum(vector.count(1) for vector in self._residency(begin, end))

    def missing_bytes(self, begin: int, end: int) -> int:
        """The same of those that are not."""
        return PAGE_BYTES * sum(vector.count(0) for vector in self._residency(begin, end))

    def _residency(self, begin: int, end: int) -> Iterator[bytes]:
        """A byte for each page of the range: 1 if it is in memory."""
        for first, last in self._chunks(begin, end):
            residency = _residency(self._address + first, self._address + last)
            if residency is None:
                self._fail("mincore")
            yield residency

    def lock(self, begin: int, end: int) -> None:
        """Read the range in and keep it in memory until it is unlocked or the mapping closed: mlock(2).

        Raises WeightsCorrupt like `populate`, and OSError where locking is refused (EPERM; ENOMEM and EAGAIN beyond
        RLIMIT_MEMLOCK); the chunks before the one refused stay locked.
        """
        for first, last in self._chunks(begin, end):
            self.check()
            if _libc.mlock(self._address + first, last - first) != 0:
                error = ctypes.get_errno()
                self.check()  # the same errors say that the file ends before the range does
                raise OSError(error, f"mlock: {os.strerror(error)}")

    def unlock(self, begin: int, end: int) -> None:
        """Let the kernel have every page of the range again, if it wants them. Raises OSError.

        They are unmapped, too, until they are touched again: a page that is mapped is not as easily given up.
        """
        for first, last in self._chunks(begin, end):
            if _libc.munlock(self._address + first, last - first) != 0:
                self._fail("munlock")
            if _libc.madvise(self._address + first, last - first, mmap.MADV_DONTNEED) != 0:
                self._fail("madvise")

    def close(self) -> None:
        """Unmap, and unlock by that. Raises BufferError while a view of `buffer` lives. Harmless a second time."""
        self._mapping.close()

    def _chunks(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The pages of a range, in ranges of at most CHUNK_BYTES. ValueError if closed or not within the file."""
        if self._mapping.closed:
            raise ValueError(f"{self.path} is not mapped any more")
        if not 0 <= begin <= end <= self.size_bytes:
            raise ValueError(f"[{begin}, {end}) is not within the {self.size_bytes} bytes of {self.path}")
        if begin == end:
            return []
        first = begin - begin % PAGE_BYTES
        last = -(-end // PAGE_BYTES) * PAGE_BYTES
        return [(at, min(at + CHUNK_BYTES, last)) for at in range(first, last, CHUNK_BYTES)]

    def _fail(self, call: str) -> NoReturn:
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")
