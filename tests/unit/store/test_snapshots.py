"""Snapshots on disk: placed whole, taken away at once, verified until somebody touches them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rewarm.errors import SnapshotFailed
from rewarm.store.disk import Disk
from rewarm.store.home import Home
from rewarm.store.snapshots import Snapshots


def staged(shelf: Snapshots, text: str = "state") -> Path:
    folder = shelf.stage()
    (folder / "state").write_text(text)
    (folder / "memory").write_text("memory")
    return folder


def test_placed_read_only_and_known_to_be_whole(home: Home) -> None:
    shelf = Snapshots(home, Disk())
    folder = shelf.place(staged(shelf), "a")
    assert folder == shelf.folder("a") and (folder / "state").read_text() == "state"
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    assert list(home.tmp_dir.iterdir()) == []
    assert shelf.verified("a") and not shelf.verified("b")


def test_the_next_one_takes_its_place(home: Home) -> None:
    shelf = Snapshots(home, Disk())
    shelf.place(staged(shelf), "a")
    shelf.place(staged(shelf, "newer"), "a")
    assert (shelf.folder("a") / "state").read_text() == "newer"
    assert list(home.tmp_dir.iterdir()) == []


def test_whoever_touches_a_file_has_it_verified_anew(home: Home) -> None:
    shelf = Snapshots(home, Disk())
    file = shelf.place(staged(shelf), "a") / "state"
    file.chmod(0o600)
    assert not shelf.verified("a"), "its owner may have changed more than the mode"
    shelf.note("a", shelf.seen("a"))
    assert shelf.verified("a")
    assert Snapshots(home, Disk()).verified("a"), "the next server need not read it again"
    file.write_text("stat3")
    assert not shelf.verified("a")


def test_buried_at_once_and_open_to_who_has_it_open(home: Home) -> None:
    shelf = Snapshots(home, Disk())
    shelf.place(staged(shelf), "a")
    with (shelf.folder("a") / "state").open() as file:
        grave = shelf.bury("a")
        assert grave is not None and not shelf.folder("a").exists()
        shelf.discard(grave)
        assert file.read() == "state"
    assert shelf.bury("a") is None
    assert list(home.tmp_dir.iterdir()) == []


def test_sweep(home: Home) -> None:
    shelf = Snapshots(home, Disk())
    for name in ("a", "b", "c"):
        shelf.place(staged(shelf), name)
    assert shelf.sweep(["b", "d"]) == ["a", "c"]
    assert [path.name for path in home.snapshots_dir.iterdir()] == ["b"]


@pytest.mark.parametrize("at", range(6))
def test_a_disk_that_fails_leaves_what_was_there(home: Home, at: int) -> None:
    """Every operation of placing one in turn; what was there before is there, or nothing is."""

    class Failing(Disk):
        left = at

        def sync(self, path: Path) -> None:
            self._count()
            super().sync(path)

        def replace(self, source: Path, target: Path) -> None:
            self._count()
            super().replace(source, target)

        def _count(self) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, os.strerror(28))

    Snapshots(home, Disk()).place(staged(Snapshots(home, Disk()), "old"), "a")
    shelf = Snapshots(home, Failing())
    with pytest.raises(SnapshotFailed, match="No space left on device"):
        shelf.place(staged(shelf, "new"), "a")
    file = shelf.folder("a") / "state"
    assert not file.exists() or file.read_text() in ("old", "new")


def test_a_killed_server_leaves_none_half_made(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        staged(Snapshots(home, Disk()))
    with Home.open(tmp_path / "home") as home:
        assert list(home.tmp_dir.iterdir()) == list(home.snapshots_dir.iterdir()) == []


def test_a_guest_may_be_built_before_the_first_server_starts(tmp_path: Path) -> None:
    (tmp_path / "home" / "microvm").mkdir(parents=True)
    with Home.open(tmp_path / "home") as home:
        assert home.snapshots_dir.is_dir()
