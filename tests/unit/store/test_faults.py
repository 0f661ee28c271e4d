"""Disk and database fail at their n-th operation, for every n: nothing half done is ever seen afterwards."""

from __future__ import annotations

import errno
import itertools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import SystemFault
from rewarm.facts.function import Revision
from rewarm.store.disk import Disk
from rewarm.store.store import Store

Deploy = Callable[..., tuple[Revision, bool]]
Check = Callable[[Store], list[Revision]]


class Fuse:
    """Blows once, at the n-th operation: before it took place, or just after."""

    def __init__(self, at: int, after: bool) -> None:
        self.left = at
        self.after = after

    @property
    def blown(self) -> bool:
        return self.left <= 0

    def guard(self, operation: Callable[..., Any], error: Exception, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise error
        result = operation(*args)
        if self.left == 0:
            if isinstance(result, sqlite3.Cursor):
                result.close()  # else the traceback keeps the statement, and with it the database's lock
            raise error
        return result


class FaultyDisk(Disk):
    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse

    def _do(self, operation: Callable[..., None], *args: Any) -> None:
        self.fuse.guard(operation, OSError(errno.ENOSPC, "No space left on device"), *args)

    def sync(self, path: Path) -> None:
        self._do(super().sync, path)

    def chmod(self, path: Path, mode: int) -> None:
        self._do(super().chmod, path, mode)

    def replace(self, source: Path, target: Path) -> None:
        self._do(super().replace, source, target)

    def link(self, source: Path, target: Path) -> None:
        self._do(super().link, source, target)

    def unlink(self, path: Path) -> None:
        self._do(super().unlink, path)

    def remove_tree(self, path: Path) -> None:
        self._do(super().remove_tree, path)


def faulty_connect(fuse: Fuse) -> Callable[[str], sqlite3.Connection]:
    class Faulty(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
            cursor: sqlite3.Cursor = fuse.guard(
                super().execute, sqlite3.OperationalError("disk I/O error"), sql, parameters
            )
            return cursor

    return lambda path: sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Faulty)


def faulty(kind: str, fuse: Fuse) -> dict[str, Any]:
    return {"disk": FaultyDisk(fuse)} if kind == "disk" else {"connect": faulty_connect(fuse)}


EVERYWHERE = [(kind, after) for kind in ("disk", "sqlite") for after in (False, True)]


@pytest.mark.parametrize(("kind", "after"), EVERYWHERE)
def test_a_deploy_is_all_or_nothing(tmp_path: Path, deploy: Deploy, check_whole: Check, kind: str, after: bool) -> None:
    for n in itertools.count(1):
        path = tmp_path / f"{n}"
        with Store.open(path) as store:
            deploy(store, "old", weights=b"old")
        fuse = Fuse(n, after)
        raised = acknowledged = False
        try:
            with Store.open(path, **faulty(kind, fuse)) as store:
                deploy(store, "new", weights=b"new")
                acknowledged = True
        except SystemFault as error:
            raised = True
            assert "disk" in error.message or "space" in error.message
        with Store.open(path) as store:
            (revision,) = check_whole(store)
            assert revision.version in ((2,) if acknowledged else (1, 2) if after else (1,))
            # A failure leaves nothing that a collection does not free, and nothing that the next deploy stumbles over.
            assert deploy(store, "new", weights=b"new")[0].version == 2
            store.remove("digits")
            store.collect()
            assert list(store.home.artifacts_dir.iterdir()) == list(store.home.weights_dir.iterdir()) == []
        if not fuse.blown:
            break
        assert raised or acknowledged
    assert n > 8
    assert not raised, "an unfailing deploy failed"


@pytest.mark.parametrize(("kind", "after"), EVERYWHERE)
def test_a_first_start_can_be_repeated(
    tmp_path: Path, deploy: Deploy, check_whole: Check, kind: str, after: bool
) -> None:
    for n in itertools.count(1):
        fuse = Fuse(n, after)
        try:
            Store.open(tmp_path / f"{n}", **faulty(kind, fuse)).close()
        except SystemFault:
            assert fuse.blown
        with Store.open(tmp_path / f"{n}") as store:
            deploy(store)
            assert len(check_whole(store)) == 1
        if not fuse.blown:
            break
    assert n > 4


@pytest.mark.parametrize(("kind", "after"), EVERYWHERE)
def test_a_collection_takes_nothing_that_is_used(
    tmp_path: Path, deploy: Deploy, check_whole: Check, kind: str, after: bool
) -> None:
    for n in itertools.count(1):
        path = tmp_path / f"{n}"
        with Store.open(path) as store:
            for number in range(4):
                deploy(store, f"{number}", weights=f"{number}".encode())
        fuse = Fuse(n, after)
        try:
            with Store.open(path, **faulty(kind, fuse)) as store:
                store.collect()
        except SystemFault:
            assert fuse.blown
        with Store.open(path) as store:
            assert [revision.version for revision in check_whole(store)] == [4]
            store.collect()
            assert [revision.version for revision in store.history("digits")] == [4, 3]
            assert len(list(store.home.artifacts_dir.iterdir())) == len(list(store.home.weights_dir.iterdir())) == 2
        if not fuse.blown:
            break
    assert n > 8


def test_a_store_goes_on_after_a_failed_deploy(tmp_path: Path, deploy: Deploy, check_whole: Check) -> None:
    fuse = Fuse(0, after=False)
    with Store.open(tmp_path / "home", connect=faulty_connect(fuse), disk=FaultyDisk(fuse)) as store:
        done = 0
        for number in range(40):
            fuse.left = number + 1
            try:
                deploy(store, f"code {number}", weights=f"weights {number}".encode())
                done += 1
            except SystemFault:
                pass
            fuse.left = 0
            assert [revision.version for revision in check_whole(store)] == ([done] if done else [])
        assert done > 5
