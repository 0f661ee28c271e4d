"""What the keeper does with one disk: fetch packs ahead of their starts, and hold pins.

One thread a disk, for two readers of a disk share its bandwidth, and a start waits for one of them. Fetches go first,
since a request waits for each; a pin is locked in steps of a chunk, so that a fetch waits for no more than one.

Only pins keep a mapping. What is fetched stays in the page cache, charged to the cgroup of this process.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rewarm.errors import RewarmError, WeightsCorrupt
from rewarm.weights.format import Pack, Span, merged, open_pack, without
from rewarm.weights.pages import CHUNK_BYTES, PAGE_BYTES, Mapped

#: Pins are looked after once in so long: a file that was cut, pages that could not be locked and are gone.
LOOK_S = 10.0

_LOCK_REFUSED = (errno.EPERM, errno.ENOMEM, errno.EAGAIN)

Report = Callable[[dict[str, Any]], None]


class Order(NamedTuple):
    """Which pack is meant."""

    key: str
    folder: Path
    tensors_dir: Path


class Fetched(NamedTuple):
    """Bytes that were not in memory, and seconds until all were."""

    read_bytes: int
    seconds: float


def part(spans: Iterable[Span], begin: int, end: int) -> Iterator[Span]:
    """Bytes `begin` to `end` of what the spans are one after the other."""
    at = 0
    for span in spans:
        first, last = max(begin - at, 0), min(end - at, span.end - span.begin)
        if first < last:
            yield Span(span.file, span.begin + first, span.begin + last)
        at += span.end - span.begin


def _size_bytes(spans: Iterable[Span]) -> int:
    return sum(span.end - span.begin for span in spans)


def fetch(pack: Pack, spans: Iterable[Span], stopped: Callable[[], bool]) -> Fetched | None:
    """Read spans of a pack, in their order, as far as they are not in memory. None if `stopped` said so in between.

    Raises WeightsCorrupt and OSError.
    """
    read_bytes = 0
    with contextlib.ExitStack() as stack:
        mapped: dict[int, Mapped] = {}
        steps: list[tuple[Mapped, int, int]] = []
        for file, begin, end in spans:
            if file not in mapped:
                mapped[file] = Mapped(pack.path(file), pack.index.files[file].size_bytes)
                stack.callback(mapped[file].close)
            read_bytes += mapped[file].missing_bytes(begin, end)
            steps += [(mapped[file], at, min(at + CHUNK_BYTES, end)) for at in range(begin, end, CHUNK_BYTES)]
        since_s = time.monotonic()
        for file_mapped, begin, end in steps:
            if stopped():
                return None
            if file_mapped.missing_bytes(begin, end):
                file_mapped.populate(begin, end)
        return Fetched(read_bytes, time.monotonic() - since_s)


class Pin:
    """Some of a pack's tables and the first bytes of what it streams, held in memory.

    One mapping a pack: the kernel counts who locks a page, so packs that share a file do not unlock each other's.
    """

    def __init__(self, folder: Path, tensors_dir: Path) -> None:
        """Raises WeightsCorrupt and SystemFault."""
        self.pack = open_pack(folder, tensors_dir)
        self.wanted_bytes = 0
        self.refused = ""  # why pages cannot be locked; they are touched instead
        self._wanted: list[Span] = []  # in the order in which it is read
        self._locked: tuple[Span, ...] = ()
        self._mapped: dict[int, Mapped] = {}

    def want(self, wanted_bytes: int, tables: tuple[int, ...] = ()) -> None:
        """From now on so many bytes, of which those of `tables` are the first."""
        self.wanted_bytes = wanted_bytes
        self.refused = ""  # with less, or less elsewhere, it may be possible now
        self._wanted = list(part(self.pack.index.pinned_spans(tables), 0, wanted_bytes))

    @property
    def target_bytes(self) -> int:
        """What is wanted, as far as there is so much."""
        return _size_bytes(self._wanted)

    @property
    def locked_bytes(self) -> int:
        return _size_bytes(self._locked)

    @property
    def settled(self) -> bool:
        return bool(self.refused) or self._locked == merged(sorted(self._wanted))

    def step(self) -> None:
        """Bring what is locked closer to what is wanted, by one chunk at most. Raises WeightsCorrupt and OSError."""
        if gone := list(without(self._locked, self._wanted)):
            for file, begin, end in gone:
                begin += -begin % PAGE_BYTES  # the rest of the page before is kept
                if begin < end:
                    self._mapped[file].unlock(begin, end)
            self._locked = tuple(without(self._locked, gone))
            if not self._wanted:
                self.close()
            return
        chunk = list(part(without(self._wanted, self._locked), 0, CHUNK_BYTES))
        try:
            for file, begin, end in chunk:
                self._map(file).lock(begin, end)
            self._locked = merged(sorted((*self._locked, *chunk)))
        except OSError as error:
            if error.errno not in _LOCK_REFUSED:
                raise
            self.close()
            self.refused = f"{error.strerror}: raise RLIMIT_MEMLOCK (ulimit -l) or grant CAP_IPC_LOCK"

    def _map(self, file: int) -> Mapped:
        if file not in self._mapped:
            self._mapped[file] = Mapped(self.pack.path(file), self.pack.index.files[file].size_bytes)
        return self._mapped[file]

    def look_after(self, stopped: Callable[[], bool]) -> None:
        """Read in again what could not be locked and is gone. Raises WeightsCorrupt if a file was changed, OSError."""
        for mapped in self._mapped.values():
            mapped.check()
        if self.refused:
            fetch(self.pack, self._wanted, stopped)

    def close(self) -> None:
        """Unmap, and unlock by that."""
        while self._mapped:
            self._mapped.popitem()[1].close()
        self._locked = ()


class Storage:
    """The thread of one disk, whose number is `device`. What is asked for is answered by reports, as `keeper` has them.

    `look_s`: pins are looked after once in so long.
    """

    def __init__(self, device: int, report: Report, look_s: float = LOOK_S) -> None:
        self._device = device
        self._report = report
        self._look_s = look_s
        self._look_at_s = time.monotonic() + look_s
        self._news = threading.Condition()
        self._fetches: dict[str, Order] = {}  # changed with `_news` held only; the first is under way
        self._changes: dict[str, tuple[Order, int, tuple[int, ...]]] = {}  # the same; what is wanted of the pin
        self._pins: dict[str, Pin] = {}  # the thread's own
        self._unsettled: dict[str, None] = {}  # the same; in the order in which they were wanted
        threading.Thread(target=self._run, name=f"storage-{device}", daemon=True).start()

    def prefetch(self, order: Order) -> None:
        """Read in all that is streamed: "loaded" tells when. Who asks for what is under way joins that."""
        with self._news:
            self._fetches.setdefault(order.key, order)
            self._news.notify()

    def pin(self, order: Order, wanted_bytes: int, tables: tuple[int, ...] = ()) -> None:
        """Hold the first `wanted_bytes` of `tables` and of what is streamed, no more and no less: "pinned"."""
        with self._news:
            self._changes[order.key] = order, wanted_bytes, tables
            self._news.notify()

    def forget(self, order: Order) -> None:
        """The pack is not needed any more: nothing is fetched for it, nor held."""
        with self._news:
            self._fetches.pop(order.key, None)
            self._changes[order.key] = order, 0, ()
            self._news.notify()

    def _run(self) -> None:
        while True:
            wait_s = max(0.0, self._look_at_s - time.monotonic()) if self._pins else None
            with self._news:
                self._news.wait_for(lambda: self._fetches or self._changes or self._unsettled, wait_s)
                changes, self._changes = self._changes, {}
                fetched = next(iter(self._fetches.values()), None)
            for order, wanted_bytes, tables in changes.values():
                self._change(order, wanted_bytes, tables)
            if fetched is not None:
                self._fetch(fetched)
            elif self._unsettled:
                self._step(next(iter(self._unsettled)))
            elif time.monotonic() >= self._look_at_s:
                self._look_after()

    def _fetch(self, order: Order) -> None:
        fetched: Fetched | None = None
        failure: Exception | None = None
        try:
            pack = open_pack(order.folder, order.tensors_dir)
            # Forgotten and asked for again, it is another order under the same key.
            fetched = fetch(pack, pack.index.streamed_spans(), lambda: self._fetches.get(order.key) is not order)
        except (OSError, RewarmError) as error:
            failure = error
        with self._news:  # before the report: who hears of it and asks again must not join what is over
            if self._fetches.get(order.key) is order:
                del self._fetches[order.key]
        if failure is not None:
            self._failed("prefetch", order.key, failure)
        elif fetched is not None:
            self._report(
                {"op": "loaded", "key": order.key, "device": self._device, "bytes_read": fetched.read_bytes,
                 "seconds": fetched.seconds}
            )  # fmt: skip

    def _change(self, order: Order, wanted_bytes: int, tables: tuple[int, ...]) -> None:
        if order.key not in self._pins:
            try:
                self._pins[order.key] = Pin(order.folder, order.tensors_dir)
            except (OSError, RewarmError) as error:
                if wanted_bytes:  # else it is gone for good reason
                    self._failed("pin", order.key, error)
                return
        self._pins[order.key].want(wanted_bytes, tables)
        self._unsettled[order.key] = None

    def _step(self, key: str) -> None:
        pin = self._pins[key]
        try:
            pin.step()
            if not pin.settled:
                return
            if pin.refused:
                pin.look_after(self._wanted)
        except (OSError, RewarmError) as error:
            self._drop(key)
            self._failed("pin", key, error)
            return
        del self._unsettled[key]
        if not pin.wanted_bytes:
            self._drop(key)
        self._report(
            {"op": "pinned", "key": key, "bytes": pin.target_bytes, "locked": not pin.refused, "why": pin.refused}
        )

    def _look_after(self) -> None:
        self._look_at_s = time.monotonic() + self._look_s
        for key, pin in list(self._pins.items()):
            try:
                pin.look_after(self._wanted)
            except (OSError, RewarmError) as error:
                self._drop(key)
                self._failed("pin", key, error)

    def _wanted(self) -> bool:
        """Somebody waits for a fetch: touching pages can be done another time."""
        return bool(self._fetches)

    def _drop(self, key: str) -> None:
        self._unsettled.pop(key, None)
        self._pins.pop(key).close()

    def _failed(self, what: str, key: str, error: Exception) -> None:
        op = "corrupt" if isinstance(error, WeightsCorrupt) else "refused"
        self._report({"op": op, "key": key, "what": what, "error": str(error)})
