"""Pins and fetches of one disk, on real packs."""

from __future__ import annotations

import os
import queue
import re
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm import kernel
from rewarm.errors import WeightsCorrupt
from rewarm.weights.format import Pack, Span, open_pack
from rewarm.weights.pages import PAGE_BYTES, Mapped
from rewarm.weights.storage import Order, Pin, Storage, fetch, part
from rewarm.weights.writer import LayerIn, TensorIn, write_pack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mlock and /proc")

MIB = 1 << 20
WAIT_S = 30.0


def locked_bytes() -> int:
    found = re.search(r"^VmLck:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def make_pack(home: Path, key: str, layers: dict[str, bytes], on_demand: str = "") -> Order:
    """A layer a tensor; equal tensors of packs in one home are in one file."""
    tensors_dir, folder = home / "tensors", home / "packs" / key
    tensors_dir.mkdir(exist_ok=True)
    folder.mkdir(parents=True)
    known = {
        entry.sha256: (pack.index.files[entry.file], entry.begin, entry.end)
        for pack in (open_pack(other, tensors_dir) for other in sorted((home / "packs").iterdir()) if other != folder)
        for entry in pack.index.tensors.values()
    }
    given = [
        LayerIn(name, (TensorIn(name, "U8", (len(data),), lambda data=data: data),), name == on_demand)  # type: ignore[misc]
        for name, data in layers.items()
    ]
    write_pack(folder, tensors_dir, given, key=key, order="traced", source_sha256="0" * 64, known=known)
    for path in folder.glob("*.safetensors"):
        path.rename(tensors_dir / path.name)
    return Order(key, folder, tensors_dir)


def evict(folder: Path) -> None:
    """Every file there out of memory, as far as nobody maps or holds it."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def in_memory(pack: Pack, begin: int = 0, end: int = 1 << 40) -> int:
    """Of bytes `begin` to `end` of what is streamed."""
    found = 0
    for span in part(pack.index.streamed_spans(), begin, end):
        mapped = Mapped(pack.path(span.file), pack.index.files[span.file].size_bytes)
        found += mapped.resident_bytes(span.begin, span.end)
        mapped.close()
    return found


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """24 MiB streamed, after 4 MiB on demand, and nothing of it in memory."""
    layers = {"table": os.urandom(4 * MIB), "a": os.urandom(4 * MIB), "b": os.urandom(20 * MIB)}
    order = make_pack(tmp_path, "one", layers, on_demand="table")
    evict(order.tensors_dir)
    if in_memory(open_pack(order.folder, order.tensors_dir)):
        pytest.skip("this file system keeps its pages")
    return order


def settle(pin: Pin, wanted_bytes: int, tables: tuple[int, ...] = ()) -> int:
    """→ steps."""
    pin.want(wanted_bytes, tables)
    steps = 0
    while not pin.settled:
        pin.step()
        steps += 1
    return steps


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


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (0, 5, [(0, 100, 105)]),
        (5, 15, [(0, 105, 110), (1, 0, 5)]),
        (0, 99, [(0, 100, 110), (1, 0, 20), (0, 50, 60)]),
        (10, 10, []),
        (30, 31, [(0, 50, 51)]),
    ],
)
def test_a_part_of_a_stream(begin: int, end: int, expected: list[tuple[int, int, int]]) -> None:
    spans = [Span(0, 100, 110), Span(1, 0, 20), Span(0, 50, 60)]
    assert list(part(spans, begin, end)) == expected


@pytest.mark.usefixtures("may_lock")
def test_a_pin_is_the_first_bytes_and_an_absolute_amount(order: Order) -> None:
    before = locked_bytes()
    pin = Pin(order.folder, order.tensors_dir)
    try:
        assert settle(pin, 18 * MIB + 1) == 2
        assert locked_bytes() - before == 18 * MIB + PAGE_BYTES
        settle(pin, 5 * MIB)
        assert locked_bytes() - before == 5 * MIB
        settle(pin, 5 * MIB - 1)  # the page is held for the bytes before its last
        assert locked_bytes() - before == 5 * MIB
        evict(order.tensors_dir)
        assert in_memory(pin.pack, 0, 5 * MIB) == 5 * MIB
        settle(pin, 1 << 40)
        assert locked_bytes() - before == pin.target_bytes == 24 * MIB
        settle(pin, 0)
        assert locked_bytes() == before
        evict(order.tensors_dir)
        assert in_memory(pin.pack) == 0
    finally:
        pin.close()


@pytest.mark.usefixtures("may_lock")
def test_tables_are_held_whole_and_first(order: Order) -> None:
    before = locked_bytes()
    pin = Pin(order.folder, order.tensors_dir)
    table = pin.pack.index.spans(0)

    def there() -> int:
        evict(order.tensors_dir)
        mapped = Mapped(pin.pack.path(table[0].file), pin.pack.index.files[table[0].file].size_bytes)
        found = mapped.resident_bytes(table[0].begin, table[0].end)
        mapped.close()
        return found

    try:
        settle(pin, 6 * MIB)
        assert there() == 0
        settle(pin, 6 * MIB, (0,))
        assert there() == 4 * MIB
        assert in_memory(pin.pack) == 2 * MIB
        assert locked_bytes() - before == 6 * MIB
        settle(pin, 1 << 40, (0,))
        assert locked_bytes() - before == pin.target_bytes == 28 * MIB
        pin.want(24 * MIB, ())  # overtaken before it was carried out, and the next in the middle of it
        pin.want(28 * MIB, (0,))
        assert pin.settled
        pin.want(20 * MIB, ())
        pin.step()
        pin.want(9 * MIB, (0,))
        pin.step()
        settle(pin, 5 * MIB)
        assert there() == 0
        assert in_memory(pin.pack) == locked_bytes() - before == 5 * MIB
    finally:
        pin.close()


@pytest.mark.usefixtures("may_lock")
def test_packs_that_share_a_file_hold_it_each_for_itself(order: Order, tmp_path: Path) -> None:
    shared = open_pack(order.folder, order.tensors_dir)
    entry = shared.index.tensors["a"]
    data = shared.path(entry.file).read_bytes()[entry.begin : entry.end]
    variant = make_pack(tmp_path, "two", {"a": data, "head": os.urandom(2 * MIB)})
    first, second = Pin(order.folder, order.tensors_dir), Pin(variant.folder, variant.tensors_dir)
    try:
        assert second.pack.path(0) == shared.path(entry.file)  # so it is one file
        settle(first, 4 * MIB)
        settle(second, 6 * MIB)
        settle(first, 0)
        evict(order.tensors_dir)
        assert in_memory(second.pack) == 6 * MIB
        settle(second, 1 * MIB)
        evict(order.tensors_dir)
        assert in_memory(second.pack, 0, MIB) == MIB
        assert in_memory(second.pack, 4 * MIB) == 0
    finally:
        first.close()
        second.close()


def test_where_locks_are_refused_pages_are_touched(order: Order) -> None:
    def run() -> None:
        before = locked_bytes()
        pin = Pin(order.folder, order.tensors_dir)
        settle(pin, 5 * MIB)
        assert "RLIMIT_MEMLOCK" in pin.refused
        for _ in range(2):
            assert in_memory(pin.pack) == 0
            pin.look_after(lambda: False)
            assert in_memory(pin.pack, 0, 5 * MIB) == 5 * MIB
            assert locked_bytes() == before
            evict(order.tensors_dir)
        pin.close()

    without_locks(run)


def test_a_pinned_file_that_is_cut_is_found_out(order: Order) -> None:
    pin = Pin(order.folder, order.tensors_dir)
    try:
        settle(pin, MIB)
        os.truncate(pin.pack.path(0), 2 * MIB)
        with pytest.raises(WeightsCorrupt):
            pin.look_after(lambda: False)
        pin.want(24 * MIB, ())
        with pytest.raises(WeightsCorrupt):
            pin.step()
    finally:
        pin.close()


def test_a_fetch_counts_what_was_not_there(order: Order) -> None:
    pack = open_pack(order.folder, order.tensors_dir)
    spans = pack.index.streamed_spans()
    assert fetch(pack, spans, lambda: True) is None
    assert in_memory(pack) == 0
    fetched = fetch(pack, part(spans, 0, 2 * MIB), lambda: False)
    assert fetched is not None and fetched.read_bytes == 2 * MIB and fetched.seconds > 0.0
    missing_bytes = 24 * MIB - in_memory(pack)  # the kernel reads ahead, and may be at it
    fetched = fetch(pack, spans, lambda: False)
    assert fetched is not None and 0 < fetched.read_bytes <= missing_bytes <= 22 * MIB
    assert in_memory(pack) == 24 * MIB
    fetched = fetch(pack, spans, lambda: False)
    assert fetched is not None and fetched.read_bytes == 0


class Listening:
    """A storage's reports, in the order in which they come."""

    def __init__(self, look_s: float) -> None:
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.storage = Storage(7, self._heard.put, look_s)

    def next(self) -> dict[str, Any]:
        return self._heard.get(timeout=WAIT_S)

    def nothing_more(self) -> bool:
        return self._heard.empty()


@pytest.mark.usefixtures("may_lock")
def test_a_storage_reports(order: Order) -> None:
    listening = Listening(look_s=1000.0)
    listening.storage.prefetch(order)
    report = listening.next()
    assert (report["op"], report["key"], report["device"], report["bytes_read"]) == ("loaded", "one", 7, 24 * MIB)
    listening.storage.pin(order, 5 * MIB)
    assert listening.next() == {"op": "pinned", "key": "one", "bytes": 5 * MIB, "locked": True, "why": ""}
    listening.storage.forget(order)
    assert listening.next()["bytes"] == 0
    assert listening.nothing_more()


def test_who_hears_of_a_fetch_and_asks_again_is_heard(order: Order) -> None:
    """What is asked for in the moment in which the same is over must not join it."""
    heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    asked = 0

    def hear(report: dict[str, Any]) -> None:
        nonlocal asked
        heard.put(report)
        if asked < 3:
            asked += 1
            storage.prefetch(order)

    storage = Storage(7, hear)
    storage.prefetch(order)
    assert [heard.get(timeout=WAIT_S)["op"] for _ in range(4)] == ["loaded"] * 4


@pytest.mark.usefixtures("may_lock")
def test_fetches_go_before_pins(order: Order, tmp_path: Path) -> None:
    other = make_pack(tmp_path, "two", {"only": os.urandom(MIB)})
    heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def hear(report: dict[str, Any]) -> None:
        heard.put(report)
        if report["key"] == "one" and report["bytes"] == MIB:  # the thread is here: it finds both afterwards
            storage.pin(order, 24 * MIB)
            storage.prefetch(other)

    storage = Storage(7, hear)
    storage.pin(order, MIB)
    reports = [heard.get(timeout=WAIT_S) for _ in range(3)]
    assert [(report["op"], report["key"]) for report in reports] == [
        ("pinned", "one"), ("loaded", "two"), ("pinned", "one"),
    ]  # fmt: skip
    storage.forget(order)
    heard.get(timeout=WAIT_S)


@pytest.mark.usefixtures("may_lock")
def test_a_cut_file_ends_a_pin_and_the_storage_goes_on(order: Order, tmp_path: Path) -> None:
    other = make_pack(tmp_path, "two", {"only": os.urandom(MIB)})
    before = locked_bytes()
    listening = Listening(look_s=0.05)
    listening.storage.pin(order, 5 * MIB)
    assert listening.next()["locked"]
    os.truncate(open_pack(order.folder, order.tensors_dir).path(0), 4 * MIB)
    report = listening.next()
    assert (report["op"], report["key"], report["what"]) == ("corrupt", "one", "pin")
    assert "deploy its function again" in report["error"]
    assert locked_bytes() == before
    listening.storage.prefetch(order)
    assert listening.next()["op"] == "corrupt"
    listening.storage.pin(other, MIB)
    assert listening.next()["bytes"] == MIB
    listening.storage.pin(other, 0)
    assert listening.next()["bytes"] == 0
    assert locked_bytes() == before


def test_what_was_forgotten_and_is_gone_is_no_failure(order: Order) -> None:
    listening = Listening(look_s=1000.0)
    (order.folder / "index.json").unlink()
    listening.storage.forget(order)
    listening.storage.pin(order, MIB)
    assert listening.next()["op"] == "corrupt"
    assert listening.nothing_more()
