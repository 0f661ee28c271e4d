"""Whatever single byte of a snapshot changes, or is cut off: it is refused before a guest sees it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.errors import SnapshotCorrupt
from rewarm.snapshot.holes import punch_zero_pages
from rewarm.snapshot.loading import write_loading_set
from rewarm.snapshot.manifest import Platform, describe, open_snapshot, verify, write_manifest
from rewarm.snapshot.regions import PAGE_BYTES

PAGES = 256
PARTS = ("manifest.json", "layout", "loading-set", "state", "memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("snapshot")
    content = bytearray(PAGES * PAGE_BYTES)
    for number in (0, 1, 17, 18, 100, 130, 255):
        content[number * PAGE_BYTES : (number + 1) * PAGE_BYTES] = random.Random(number).randbytes(PAGE_BYTES)
    (found / "memory").write_bytes(content)
    (found / "state").write_bytes(random.Random(0).randbytes(70_000))
    punch_zero_pages(found / "memory")
    platform = Platform("k", "i", "r", "p", "f", "10.0.2", "microvm", "Nehalem", "tcg", PAGES * PAGE_BYTES)
    manifest = describe(found, "user", "digest", platform, {"publish": 1.0})
    manifest = manifest.with_loading(found, write_loading_set(found, {0, 17, 100, 255}, 0))
    write_manifest(found, manifest)
    for path in found.iterdir():
        path.chmod(0o644)
    verify(open_snapshot(found))
    return found


@contextmanager
def changed(path: Path, change: Callable[[Path], None]) -> Iterator[None]:
    """The file after a change to it, which is taken back."""
    before = path.read_bytes()
    change(path)
    try:
        yield
    finally:
        path.write_bytes(before)


def flip(offset: int, mask: int) -> Callable[[Path], None]:
    def flipped(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            old = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([old ^ mask]))

    return flipped


def cut(size_bytes: int) -> Callable[[Path], None]:
    def truncated(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(size_bytes)

    return truncated


def refused(folder: Path) -> None:
    with pytest.raises(SnapshotCorrupt, match="made again"):
        verify(open_snapshot(folder))


@pytest.mark.parametrize("name", ["manifest.json", "layout"])
def test_every_byte_of_what_is_parsed(folder: Path, name: str) -> None:
    path = folder / name
    for offset in range(path.stat().st_size):
        mask = 1 + offset * 37 % 255
        with changed(path, flip(offset, mask)), pytest.raises(SnapshotCorrupt, match="made again"):
            open_snapshot(folder)  # without reading the rest
        with changed(path, cut(offset)):
            refused(folder)


@pytest.mark.parametrize("name", PARTS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_byte_of_any_file(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    offset = data.draw(st.integers(0, path.stat().st_size - 1))
    mask = data.draw(st.integers(1, 255))
    with changed(path, flip(offset, mask)):
        refused(folder)


@pytest.mark.parametrize("name", PARTS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_cut(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / name
    with changed(path, cut(data.draw(st.integers(0, path.stat().st_size - 1)))):
        refused(folder)


def test_and_whole_it_is_accepted(folder: Path) -> None:
    verify(open_snapshot(folder))
