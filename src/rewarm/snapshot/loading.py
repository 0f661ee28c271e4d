"""The loading set: what a guest touches after it was restored, copied into one compact file, in order.

Two regions become one, with the cold pages between them, if reading those costs less than keeping two
(`merge_gap_pages`). A region more is a mapping more before the guest may run: 6 µs, as measured (711 of them: 4.0 ms).
The disk that gives 3.2 GB/s reads 4 pages in that time, one that gives 125 MB/s none. Who reads ahead in the memory
file itself (`prefetch`) pays for a region with a random read instead, 56 or 333 µs: hence the wider
`prefetch_gap_pages`. FaaSnap has 32 pages on a local disk; that is the bound of both.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

from rewarm.errors import SnapshotFailed
from rewarm.snapshot.holes import drop_cache, nonzero_regions
from rewarm.snapshot.manifest import LAYOUT_NAME, LOADING_SET_NAME, MEMORY_NAME, LoadingSet
from rewarm.snapshot.regions import (
    PAGE_BYTES,
    REGIONS_MAX,
    ZERO_PAGES_MIN,
    Layout,
    Region,
    closed,
    count,
    gaps,
    merged,
    within,
)

GAP_PAGES_MAX = 32
#: Seconds to map one region more.
REGION_S = 6e-6

_COPY_BYTES = 1 << 20
_SINGLE_READS = 16
_LONG_READS = 8
_RUN_PAGES = 512


class StorageSpeed(NamedTuple):
    """Seconds for 4 KiB anywhere; bytes per second of what lies together."""

    random_read_s: float
    sequential_bytes_s: float

    @property
    def merge_gap_pages(self) -> int:
        """For whoever maps regions of the loading set."""
        return self._pages_in(REGION_S)

    @property
    def prefetch_gap_pages(self) -> int:
        """For whoever reads regions of the memory file."""
        return self._pages_in(self.random_read_s)

    def _pages_in(self, seconds: float) -> int:
        return min(GAP_PAGES_MAX, int(seconds * self.sequential_bytes_s / PAGE_BYTES))


def measure_storage(memory: Path) -> StorageSpeed:
    """Reads some 16 MB of a punched memory file past the page cache: medians, so that a busy moment does not matter.

    Raises OSError.
    """
    from statistics import median  # brings decimal and fractions: only whoever takes a snapshot waits for them

    regions = nonzero_regions(memory) or [Region(0, max(1, memory.stat().st_size // PAGE_BYTES))]
    drop_cache(memory)
    try:
        file = os.open(memory, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        file = os.open(memory, os.O_RDONLY | os.O_CLOEXEC)  # tmpfs: there is no disk to wait for
    try:
        single, many = _samples(regions)
        seconds = [_read_s(file, page, 1) for page in single]
        bytes_s = [pages * PAGE_BYTES / _read_s(file, page, pages) for page, pages in many]
    finally:
        os.close(file)
    return StorageSpeed(median(seconds), median(bytes_s))


def _samples(regions: list[Region]) -> tuple[list[int], list[Region]]:
    """Pages all over the file, and long runs of them."""
    spread = random.Random(0).choices(regions, [region.pages for region in regions], k=_SINGLE_READS)
    single = [region.first_page + region.pages // 2 for region in spread]
    runs = [
        Region(first, min(_RUN_PAGES, region.first_page + region.pages - first))
        for region in sorted(regions, key=lambda region: -region.pages)[:_LONG_READS]
        for first in range(region.first_page, region.first_page + region.pages, _RUN_PAGES)
    ]
    return single, sorted(runs, key=lambda run: -run.pages)[:_LONG_READS]


def _read_s(file: int, first_page: int, pages: int) -> float:
    with mmap(-1, pages * PAGE_BYTES) as buffer:  # O_DIRECT wants an address that is a multiple of the page
        buffer[::PAGE_BYTES] = bytes(pages)  # memory that is there, or the kernel's work on it would be measured too
        begin_s = time.perf_counter()
        os.preadv(file, [buffer], first_page * PAGE_BYTES)
        return time.perf_counter() - begin_s


def write_loading_set(folder: Path, touched: set[int], gap_pages: int | None = None) -> LoadingSet:
    """Writes `loading-set` and `layout` beside the punched memory file, in place of those that are there.

    `gap_pages`: of `merge_gap_pages`; None as the storage, measured now, suggests. Raises SnapshotFailed.
    """
    memory = folder / MEMORY_NAME
    try:
        speed = measure_storage(memory)
        nonzero = nonzero_regions(memory)
        memory_pages = memory.stat().st_size // PAGE_BYTES
        # A zero page in a short run stays with the files: to fault on a hole costs no disk, but it is a major fault.
        wanted = sorted(touched.difference(within(touched, gaps(nonzero, memory_pages, ZERO_PAGES_MIN))))
        gap = speed.merge_gap_pages if gap_pages is None else gap_pages
        regions = merged(wanted, gap)
        while len(regions) > REGIONS_MAX:
            gap = 2 * gap + 1
            regions = closed(regions, gap)
        _copy(memory, regions, _fresh(folder / LOADING_SET_NAME))
        _fresh(folder / LAYOUT_NAME).write_bytes(Layout.of(memory_pages, nonzero, regions).dumps())
    except OSError as error:
        raise SnapshotFailed(f"cannot write a loading set in {folder}: {error}; is there space on the disk?") from error
    return LoadingSet(len(wanted), count(regions), count(nonzero), len(regions), gap, speed.prefetch_gap_pages)


def _fresh(path: Path) -> Path:
    """What was there may be read-only, and mapped by somebody: it is another file from now on."""
    with suppress(FileNotFoundError):
        path.unlink()
    return path


def _copy(memory: Path, regions: list[Region], target: Path) -> None:
    with memory.open("rb", buffering=0) as reader, target.open("xb") as writer:
        for region in regions:
            offset, left = region.first_page * PAGE_BYTES, region.pages * PAGE_BYTES
            while left:
                chunk = os.pread(reader.fileno(), min(left, _COPY_BYTES), offset)
                if not chunk:
                    raise OSError(f"{memory} is shorter than it was")
                writer.write(chunk)
                offset, left = offset + len(chunk), left - len(chunk)
