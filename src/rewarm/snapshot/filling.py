"""One VM's memory, filled through userfaultfd: the loading set in bulk, whatever else it touches fault by fault.

Runs of zero pages are given back to the kernel at once, which answers faults there by itself: a guest that takes fresh
memory asks nobody. What the VM gives back later (a balloon) reads as zeros from then on.
"""

from __future__ import annotations

import ctypes
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from rewarm.errors import SnapshotCorrupt
from rewarm.snapshot.ahead import Readahead, Span
from rewarm.snapshot.holes import runs
from rewarm.snapshot.manifest import LAYOUT_NAME, LOADING_SET_NAME, MEMORY_NAME, read_layout
from rewarm.snapshot.regions import PAGE_BYTES, Layout, Region
from rewarm.snapshot.uffd import EVENT_REMOVE, Uffd

#: One step copies so much: a fault waits no longer than for that.
STEP_BYTES = 256 << 10
#: Cold pages that a fault brings: as many as the kernel maps around a fault of a file.
AROUND_PAGES = 16

_ZEROS = bytes(AROUND_PAGES * PAGE_BYTES)
_FLIPPED = bytes([1, 0]) + bytes(254)


class Mapping(NamedTuple):
    """Guest memory from `offset` of the memory file, at the address `base` of the VMM."""

    base: int
    size_bytes: int
    offset: int


class Source:
    """The files of a snapshot, opened: where pages are read from."""

    def __init__(self, folder: Path, loading: bool, ahead: Readahead) -> None:
        """Begins to read the loading set. Raises OSError and SnapshotCorrupt."""
        self.layout: Layout | None = None
        self.memory = self.loading_set = -1
        self._ahead: Thread | None = None
        self._nowait = os.RWF_NOWAIT
        try:
            self.memory = os.open(folder / MEMORY_NAME, os.O_RDONLY | os.O_CLOEXEC)
            self.memory_bytes = os.fstat(self.memory).st_size
            if loading:
                self.layout = read_layout(folder / LAYOUT_NAME)
                path = folder / LOADING_SET_NAME
                self.loading_set = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._ahead = ahead.begin(path, [Span(0, os.fstat(self.loading_set).st_size)])
        except BaseException:
            self.close()
            raise
        layout = self.layout or Layout(self.memory_bytes // PAGE_BYTES, (), ())
        self.placed = list(layout.placed())
        self._parts = sorted([*self.placed, *((region, -1) for region in layout.zero)])
        self._first_pages = [region.first_page for region, _ in self._parts]

    def close(self) -> None:
        for file in (self.memory, self.loading_set):
            if file >= 0:
                os.close(file)

    def around(self, page: int) -> tuple[int, int, Region]:
        """What to fill if a page is missed: a file, an offset in it, the pages that stand there; none if it is zero.

        Of the loading set, which comes by itself, that page alone; of cold memory up to 64 KiB around it.
        """
        at = bisect_right(self._first_pages, page) - 1
        before, offset = self._parts[at] if at >= 0 else (Region(0, 0), 0)
        if page < sum(before):
            pages = 0 if offset < 0 else 1
            return self.loading_set, offset + (page - before.first_page) * PAGE_BYTES, Region(page, pages)
        first = max(page - page % AROUND_PAGES, sum(before))
        end = min(page - page % AROUND_PAGES + AROUND_PAGES, self.memory_bytes // PAGE_BYTES)
        if at + 1 < len(self._parts):
            end = min(end, self._first_pages[at + 1])
        return self.memory, first * PAGE_BYTES, Region(first, end - first)

    def read(self, file: int, offset: int, into: memoryview) -> None:
        """Raises OSError and SnapshotCorrupt."""
        if os.preadv(file, [into], offset) != len(into):
            raise SnapshotCorrupt("the memory of a snapshot is shorter than it was; it has to be made again")

    def read_loading(self, offset: int, into: memoryview) -> int:
        """Whole pages of the loading set; 0 bytes if they have not come yet. Raises as `read` does."""
        reading = self._nowait != 0 and self._ahead is not None and self._ahead.is_alive()
        try:
            count = os.preadv(self.loading_set, [into], offset, self._nowait if reading else 0)
        except BlockingIOError:
            return 0
        except OSError:
            if not reading:
                raise
            self._nowait = 0  # this file system cannot do it
            return 0
        count -= count % PAGE_BYTES
        if count == 0 and not reading:
            raise SnapshotCorrupt("the loading set of a snapshot is shorter than it was; it has to be made again")
        return count


class Filling:
    """`busy`: `step` has something to do. The caller closes the userfaultfd and the source."""

    def __init__(self, uffd: Uffd, mappings: list[Mapping], source: Source) -> None:
        """Raises SnapshotCorrupt if the mappings are not of this snapshot, and OSError."""
        if not mappings or any(mapping.offset + mapping.size_bytes > source.memory_bytes for mapping in mappings):
            raise SnapshotCorrupt("a VM asks for memory that its snapshot does not have; restore it anew")
        self.uffd = uffd
        self._mappings = mappings
        self._source = source
        self._removed = bytearray(source.memory_bytes // PAGE_BYTES)  # a one for each page that reads as zeros now
        self._again: list[int] = []  # pages of faults that could not be answered yet
        self._buffer = memoryview(bytearray(STEP_BYTES))
        self._buffer_at = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        self._steps: deque[tuple[int, int, int]] = deque()  # address, bytes, offset in the loading set
        if source.layout is not None:
            for region in source.layout.zero:
                for address, size_bytes, _ in self._pieces(region, 0):
                    uffd.release(address, size_bytes)
        for region, offset in source.placed:
            self._steps.extend(self._pieces(region, offset))

    @property
    def busy(self) -> bool:
        return bool(self._steps or self._again)

    def _pieces(self, region: Region, offset: int) -> Iterator[tuple[int, int, int]]:
        """(address, bytes, offset of that in a file) of the region, as far as it is mapped."""
        begin, end = region.first_page * PAGE_BYTES, (region.first_page + region.pages) * PAGE_BYTES
        for mapping in self._mappings:
            first, last = max(begin, mapping.offset), min(end, mapping.offset + mapping.size_bytes)
            if first < last:
                yield mapping.base + first - mapping.offset, last - first, offset + first - begin

    def _page_at(self, address: int) -> int:
        """The guest's page at an address. Raises SnapshotCorrupt if it is none."""
        for mapping in self._mappings:
            if mapping.base <= address < mapping.base + mapping.size_bytes:
                return (mapping.offset + address - mapping.base) // PAGE_BYTES
        raise SnapshotCorrupt(f"a VM faulted at {address:#x}, which is none of its memory; restore it anew")

    def _mapping_of(self, page: int) -> Mapping:
        offset = page * PAGE_BYTES
        return next(found for found in self._mappings if found.offset <= offset < found.offset + found.size_bytes)

    # ------------------------------------------------------------ faults

    def answer(self) -> bool:
        """All events that wait, and the faults that could not be answered before; False if none could.

        Raises as `Source` and `Uffd` do.
        """
        pages, self._again = self._again, []
        while events := self.uffd.events():
            for kind, begin, end in events:
                if kind == EVENT_REMOVE:
                    self._remove(begin, end)
                else:
                    pages.append(self._page_at(begin))
        for page in pages:
            if not self._fill(page):
                self._again.append(page)
        return len(self._again) < len(pages)

    def _remove(self, begin: int, end: int) -> None:
        for base, size_bytes, offset in self._mappings:
            first, last = max(begin, base), min(end, base + size_bytes)
            if first < last:
                pages = (last - first) // PAGE_BYTES
                at = (offset + first - base) // PAGE_BYTES
                self._removed[at : at + pages] = b"\1" * pages

    def _fill(self, page: int) -> bool:
        """False if events have to be read before."""
        mapping = self._mapping_of(page)
        address = mapping.base + page * PAGE_BYTES - mapping.offset
        if self._removed[page]:
            return self.uffd.zero(address, PAGE_BYTES) == PAGE_BYTES
        file, offset, run = self._source.around(page)
        if not run.pages:
            return True  # it faulted before those pages were released
        within = mapping.offset <= offset and sum(run) * PAGE_BYTES <= mapping.offset + mapping.size_bytes
        if not within or self._removed.find(1, run.first_page, sum(run)) >= 0:
            offset, run = offset + (page - run.first_page) * PAGE_BYTES, Region(page, 1)
        address -= (page - run.first_page) * PAGE_BYTES
        into = self._buffer[: run.pages * PAGE_BYTES]
        self._source.read(file, offset, into)
        if _ZEROS.startswith(into):
            done = self.uffd.zero(address, len(into))
        else:
            done = self.uffd.copy(address, self._buffer_at, len(into))
        return done > (page - run.first_page) * PAGE_BYTES

    # ------------------------------------------------------------ the loading set

    def step(self) -> bool:
        """Copies the next pages of the loading set; False if nothing could be done. Raises as `answer` does."""
        moved = bool(self._again) and self.answer()
        if self._steps:
            address, left, offset = self._steps.popleft()
            count = self._source.read_loading(offset, self._buffer[: min(left, STEP_BYTES)])
            done = self._copy(address, count)
            if done < left:
                self._steps.appendleft((address + done, left - done, offset + done))
            moved = moved or done > 0
        return moved

    def _copy(self, address: int, size_bytes: int) -> int:
        """From the buffer, but for what the VM gave back. Returns the bytes dealt with."""
        first = self._page_at(address)
        kept = bytes(self._removed[first : first + size_bytes // PAGE_BYTES]).translate(_FLIPPED)
        for begin, end in runs(kept):
            at, want = begin * PAGE_BYTES, (end - begin) * PAGE_BYTES
            if (done := self.uffd.copy(address + at, self._buffer_at + at, want)) < want:
                return at + done
        return size_bytes
