"""Which pages of a guest's memory come from where: pure arithmetic, and the file `layout` that the shim reads.

    layout     0  8 bytes  magic "RWLAYOUT"
               8  u32      format
              12  u32      count of records
              16  u64      bytes of guest memory
              24  24 each  records: u64 offset in guest memory, u64 bytes, u64 source
               …  32       sha256 of all before

All little endian. A record's source is the offset in the file `loading-set`, or all ones: fresh anonymous memory. What
no record names is mapped from `memory`. Records are sorted by offset, do not overlap, and those of the loading set
follow each other in that file without a gap.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rewarm.errors import SnapshotCorrupt

FORMAT = 1
PAGE_BYTES = 4096
#: Each region is a mapping of its own, and a process may have 65 530 (vm.max_map_count).
REGIONS_MAX = 16_384
#: A shorter run of zero pages stays mapped from the memory file, where it is a hole: reading it costs no disk either.
ZERO_PAGES_MIN = 64

_MAGIC = b"RWLAYOUT"
_HEAD = struct.Struct("<8sIIQ")
_RECORD = struct.Struct("<3Q")
_ANONYMOUS = (1 << 64) - 1
_DIGEST_BYTES = 32


class Region(NamedTuple):
    """Pages that follow each other."""

    first_page: int
    pages: int


def merged(pages: Iterable[int], gap_pages: int) -> list[Region]:
    """The pages, in any order, as regions; a gap of at most `gap_pages` pages between two becomes part of them."""
    regions: list[Region] = []
    first, end = -1, -1  # nothing is open
    for page in sorted(pages):
        if first >= 0 and page - end <= gap_pages:
            end = page + 1
            continue
        if first >= 0:
            regions.append(Region(first, end - first))
        first, end = page, page + 1
    if first >= 0:
        regions.append(Region(first, end - first))
    return regions


def closed(regions: Iterable[Region], gap_pages: int) -> list[Region]:
    """Sorted regions, which may overlap, with gaps of at most `gap_pages` pages between two filled."""
    found: list[Region] = []
    for region in regions:
        if found and region.first_page - sum(found[-1]) <= gap_pages:
            first_page = found[-1].first_page
            found[-1] = Region(first_page, max(sum(found[-1]), sum(region)) - first_page)
        else:
            found.append(region)
    return found


def count(regions: Iterable[Region]) -> int:
    """Pages of all of them."""
    return sum(region.pages for region in regions)


def within(pages: Iterable[int], regions: Iterable[Region]) -> list[int]:
    """Those of the pages that lie in one of the sorted regions, sorted."""
    found: list[int] = []
    areas = iter(regions)
    area = next(areas, None)
    for page in sorted(pages):
        while area is not None and page >= area.first_page + area.pages:
            area = next(areas, None)
        if area is None:
            break
        if page >= area.first_page:
            found.append(page)
    return found


def gaps(regions: Iterable[Region], memory_pages: int, pages_min: int) -> list[Region]:
    """What lies between sorted regions, before and after them, as far as it has at least `pages_min` pages."""
    found: list[Region] = []
    end = 0
    for region in (*regions, Region(memory_pages, 0)):
        if region.first_page - end >= pages_min:
            found.append(Region(end, region.first_page - end))
        end = max(end, region.first_page + region.pages)
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pages of a memory of `memory_pages` come from, as drawn above. Both tuples are sorted, in one order.

    `zero`: anonymous memory. `loading`: the loading set, whose file holds these regions one after the other.
    """

    memory_pages: int
    zero: tuple[Region, ...]
    loading: tuple[Region, ...]

    @staticmethod
    def of(memory_pages: int, nonzero: Iterable[Region], loading: Iterable[Region]) -> Layout:
        """`nonzero`: what the memory file holds; `loading` may reach over the zero pages in its gaps."""
        taken = tuple(loading)
        known = closed(sorted((*nonzero, *taken)), 0)
        return Layout(memory_pages, tuple(gaps(known, memory_pages, ZERO_PAGES_MIN)), taken)

    @property
    def loading_pages(self) -> int:
        """Of the file with the loading set."""
        return count(self.loading)

    def placed(self) -> Iterator[tuple[Region, int]]:
        """The regions of the loading set, each with the offset in bytes at which it stands in that file."""
        offset_bytes = 0
        for region in self.loading:
            yield region, offset_bytes
            offset_bytes += region.pages * PAGE_BYTES

    def dumps(self) -> bytes:
        """The bytes of the file."""
        sources = [(region, source) for region, source in self.placed()]
        sources += [(region, _ANONYMOUS) for region in self.zero]
        body = _HEAD.pack(_MAGIC, FORMAT, len(sources), self.memory_pages * PAGE_BYTES) + b"".join(
            _RECORD.pack(region.first_page * PAGE_BYTES, region.pages * PAGE_BYTES, source)
            for region, source in sorted(sources)
        )
        return body + hashlib.sha256(body).digest()

    @staticmethod
    def loads(data: bytes) -> Layout:
        """The inverse of `dumps`. Raises SnapshotCorrupt for any other bytes."""
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if len(body) < _HEAD.size or hashlib.sha256(body).digest() != digest:
            raise _corrupt("its digest does not fit")
        magic, version, records, memory_bytes = _HEAD.unpack_from(body)
        if (magic, version) != (_MAGIC, FORMAT) or len(body) != _HEAD.size + records * _RECORD.size:
            raise _corrupt(f"format {version}, this rewarm knows {FORMAT}")
        if memory_bytes % PAGE_BYTES:
            raise _corrupt("its memory has no whole number of pages")
        zero: list[Region] = []
        loading: list[Region] = []
        end_bytes = offset_bytes = 0
        for begin_bytes, size_bytes, source in _RECORD.iter_unpack(body[_HEAD.size :]):
            if begin_bytes < end_bytes or not size_bytes or (begin_bytes | size_bytes) % PAGE_BYTES:
                raise _corrupt("its regions overlap or are cut")
            end_bytes = begin_bytes + size_bytes
            region = Region(begin_bytes // PAGE_BYTES, size_bytes // PAGE_BYTES)
            if source == _ANONYMOUS:
                zero.append(region)
            elif source == offset_bytes:
                loading.append(region)
                offset_bytes += size_bytes
            else:
                raise _corrupt("a region is not where it should be in the loading set")
        if end_bytes > memory_bytes:
            raise _corrupt("it reaches beyond the memory")
        return Layout(memory_bytes // PAGE_BYTES, tuple(zero), tuple(loading))


def _corrupt(why: str) -> SnapshotCorrupt:
    return SnapshotCorrupt(f"the layout of a snapshot is damaged: {why}; the snapshot has to be made again")
