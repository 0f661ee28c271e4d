"""The stream of layers: their order, who waits for what, and that it always ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewarm.errors import WeightsCorrupt
from rewarm.snapshot.holes import drop_cache
from rewarm.weights.format import Index
from rewarm.weights.loader import Stream
from rewarm.weights.pages import Mapped
from rewarm.weights.writer import LayerIn, TensorIn, write_pack

LAYER_BYTES = 8192
WAIT_S = 20.0


class Gated(Mapped):
    """A mapping whose ranges come when they are let through, one by one."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        super().__init__(path, size_bytes)
        self.gate = threading.Semaphore(0)
        self.asked: list[tuple[int, int]] = []
        self.error: Exception | None = None

    def populate(self, begin: int, end: int, each: object = None) -> None:
        assert self.gate.acquire(timeout=WAIT_S)
        if self.error is not None:
            raise self.error
        self.asked.append((begin, end))
        super().populate(begin, end, each)  # type: ignore[arg-type]


@pytest.fixture
def pack(tmp_path: Path) -> Index:
    """Four layers of two pages, the second of them on demand."""
    layers = [
        LayerIn(f"layer{n}", (TensorIn(f"t{n}", "U8", (LAYER_BYTES,), lambda n=n: bytes([n]) * LAYER_BYTES),), n == 1)  # type: ignore[misc]
        for n in range(4)
    ]
    return write_pack(tmp_path, tmp_path, layers, key="k", order="traced", source_sha256="")


@pytest.fixture
def mapped(pack: Index, tmp_path: Path) -> Gated:
    """Nothing of it is in memory."""
    mapped = Gated(tmp_path / pack.files[0].name, pack.files[0].size_bytes)
    drop_cache(mapped.path)
    if mapped.missing_bytes(0, mapped.size_bytes) < mapped.size_bytes:
        pytest.skip("this file system keeps all in memory")
    return mapped


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "rewarm-loader":
            thread.join(WAIT_S)
            assert not thread.is_alive()


def test_layers_come_in_order_and_those_on_demand_not_at_all(pack: Index, mapped: Gated) -> None:
    stream = Stream(pack, [mapped])
    assert not stream.done
    mapped.gate.release(3)
    assert stream.wait(3) >= 0.0
    assert mapped.asked == [span[1:] for n in (0, 2, 3) for span in pack.spans(n)]
    assert stream.done and stream.error is None and stream.wait(0) == 0.0


def test_a_waiter_goes_on_as_soon_as_its_layer_is_there(pack: Index, mapped: Gated) -> None:
    stream = Stream(pack, [mapped])
    waited: list[float] = []
    waiter = threading.Thread(target=lambda: waited.append(stream.wait(2)))
    waiter.start()
    mapped.gate.release()
    stream.wait(1)  # on demand: as soon as the first is there
    waiter.join(0.05)
    assert waiter.is_alive() and not stream.done
    mapped.gate.release()
    waiter.join(WAIT_S)
    assert waited and waited[0] > 0.0 and not stream.done
    mapped.gate.release()
    stream.wait(3)


def test_when_the_loader_fails_everybody_goes_on(pack: Index, mapped: Gated) -> None:
    mapped.error = WeightsCorrupt("cut short")
    stream = Stream(pack, [mapped])
    mapped.gate.release()
    stream.wait(3)
    assert stream.done and stream.error is mapped.error


def test_close_ends_it_in_the_middle(pack: Index, mapped: Gated) -> None:
    stream = Stream(pack, [mapped])
    closer = threading.Thread(target=stream.close)
    closer.start()
    while not stream._stopped:
        pass
    mapped.gate.release()  # the chunk in flight
    closer.join(WAIT_S)
    assert len(mapped.asked) == 1 and stream.done and isinstance(stream.error, InterruptedError)
    stream.close()


def test_what_is_in_memory_already_is_left_alone(pack: Index, mapped: Gated, tmp_path: Path) -> None:
    (span,) = pack.spans(2)
    with mapped.path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        os.pread(file.fileno(), span.end - span.begin, span.begin)
    missing = [mapped.missing_bytes(span.begin, span.end) for n in range(4) for span in pack.spans(n)]
    stream = Stream(pack, [mapped])
    mapped.gate.release(2)
    stream.wait(3)
    assert list(stream.missing_bytes) == [missing[0], 0, missing[2], missing[3]]
    assert stream.missing_bytes[2] == 0
    assert mapped.asked == [span[1:] for n in (0, 3) for span in pack.spans(n)]
    assert stream.bytes_read == sum(stream.missing_bytes) and stream.seconds > 0.0


def test_what_is_all_in_memory_needs_no_thread(pack: Index, tmp_path: Path) -> None:
    mapped = Mapped(tmp_path / pack.files[0].name, pack.files[0].size_bytes)
    if not mapped.is_cached():
        pytest.skip("this kernel does not tell what is cached")
    before = threading.active_count()
    stream = Stream(pack, [mapped])
    assert threading.active_count() == before
    assert stream.whole and stream.done and stream.wait(3) == 0.0
    assert stream.missing_bytes == (0, 0, 0, 0) and stream.bytes_read == 0 and stream.seconds == 0.0
    stream.close()


def test_one_page_that_is_missing_makes_a_load(pack: Index, tmp_path: Path) -> None:
    mapped = Mapped(tmp_path / pack.files[0].name, pack.files[0].size_bytes)
    file = os.open(mapped.path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, pack.spans(3)[0].begin, 4096, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    stream = Stream(pack, [mapped])
    assert not stream.whole
    stream.wait(3)
    assert stream.done and stream.missing_bytes[:3] == (0, 0, 0) and stream.bytes_read == stream.missing_bytes[3] > 0


def test_a_pack_without_layers_to_stream_is_done(tmp_path: Path) -> None:
    layers = [LayerIn("table", (TensorIn("t", "U8", (5,), lambda: bytes(5)),), True)]
    index = write_pack(tmp_path, tmp_path, layers, key="k", order="traced", source_sha256="")
    stream = Stream(index, [Mapped(tmp_path / index.files[0].name, index.files[0].size_bytes)])
    stream.wait(0)
    assert stream.done and stream.bytes_read == 0
