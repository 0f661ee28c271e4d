"""Which pages of a snapshot's memory a guest touched since it was restored.

Two witnesses, which agree page by page (2 560 each for the example function) if the guest ran under 4 KiB faults, that
is restored as "lazy-4k" from a file that was not in the page cache. Otherwise both exaggerate: readahead and huge
folios fetch what nobody asked for (mincore: 39 424), and a fault maps its cached neighbours too (pagemap: 8 368).

`/proc/PID/pagemap` is asked first: it knows this one process, whatever others fetch of the same file. Where it is not
readable (the VMM runs as another user) mincore(2) tells what of the file is in the page cache, which is right as long
as nobody else uses it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import SnapshotFailed
from rewarm.snapshot.holes import runs
from rewarm.snapshot.regions import PAGE_BYTES

_ENTRY_BYTES = 8
#: The highest byte of an entry → 1 if the page is in memory (bit 63) or swapped out (bit 62).
_PRESENT = bytes(1 if byte & 0xC0 else 0 for byte in range(256))
#: A byte of mincore's vector → its lowest bit; the others are reserved.
_RESIDENT = bytes(byte & 1 for byte in range(256))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


class _Area(NamedTuple):
    """A part of a process's address space: bytes `begin` to `end`, from `offset` in the file."""

    begin: int
    end: int
    offset: int


def touched_pages(pid: int, memory_path: Path) -> set[int]:
    """Numbers of the touched pages, of a process that has the file mapped. Raises SnapshotFailed."""
    try:
        areas = list(_areas(pid, memory_path))
        if not areas:
            raise SnapshotFailed(f"process {pid} does not map {memory_path}: its pages cannot be recorded")
        return _mapped(pid, areas)
    except PermissionError:
        pass
    except OSError as error:
        raise SnapshotFailed(f"the pages of process {pid} cannot be recorded: {error}; has it ended?") from error
    try:
        return cached_pages(memory_path)
    except OSError as error:
        raise SnapshotFailed(f"cannot tell which pages of {memory_path} were read: {error}") from error


def _areas(pid: int, memory_path: Path) -> Iterator[_Area]:
    """Where the file is mapped. By its name: the device of a stat is not that of a mapping on every file system."""
    name = os.path.realpath(memory_path)
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)  # addresses, rights, offset, device, inode, path
        if len(fields) == 6 and fields[5] == name:
            begin, _, end = fields[0].partition("-")
            yield _Area(int(begin, 16), int(end, 16), int(fields[2], 16))


def _mapped(pid: int, areas: list[_Area]) -> set[int]:
    pages: set[int] = set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        for begin, end, offset in areas:
            count = (end - begin) // PAGE_BYTES
            entries = os.pread(file.fileno(), count * _ENTRY_BYTES, begin // PAGE_BYTES * _ENTRY_BYTES)
            _add(pages, entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_PRESENT), offset // PAGE_BYTES)
    return pages


def cached_pages(path: Path) -> set[int]:
    """Numbers of the file's pages that are in the page cache, for whoever may write to it. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        vector = ctypes.create_string_buffer(-(-size_bytes // PAGE_BYTES))
        # Never written: ctypes gives the address of nothing that is read-only.
        with mmap.mmap(file.fileno(), size_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
            first = ctypes.c_char.from_buffer(memory)
            status = _libc.mincore(ctypes.addressof(first), size_bytes, vector)
            del first  # else the mapping cannot be closed
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    pages: set[int] = set()
    _add(pages, vector.raw.translate(_RESIDENT), 0)
    return pages


def _add(pages: set[int], marks: bytes, first_page: int) -> None:
    for first, end in runs(marks):
        pages.update(range(first_page + first, first_page + end))
