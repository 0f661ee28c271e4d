"""The Lang layers of micro-VMs on disk: each that is there is told, each that is dropped is deleted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewarm.core.state import start_timeout_s
from rewarm.facts import messages as m
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.sandbox.library import Asset, Library, facts_of, lang_name
from rewarm.sandbox.microvm import MicrovmDriver
from rewarm.snapshot.manifest import Platform, Snapshot, describe, open_snapshot, write_manifest
from rewarm.store.store import Store
from rewarm.testing.stage import Stage
from rewarm.vmm.publishing import BOOT_DEADLINE_S
from rewarm.vmm.site import Images

SPEC = FunctionSpec("probe", "handler", "probe:main", isolation="microvm")
REVISION = Revision(SPEC, "1" * 64, 1, "code")
KEY = SPEC.lang_key
OTHER = LangKey(("json",), vm_bytes=256 << 20)


class Slow(Library):
    """Makes a Lang layer when it is told to."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.home.path, store.snapshots)
        self.shelf = store.snapshots
        self.go_on = asyncio.Event()

    def lay(self, name: str) -> Snapshot:
        """A snapshot of this name, as if it had been made."""
        staged = self.shelf.stage()
        for part in ("state", "memory"):
            (staged / part).write_bytes(b"x" * 8192)
        fields: dict[str, Any] = {field.name: "x" for field in dataclasses.fields(Platform)}
        told = describe(
            staged, "lang", name, Platform(**{**fields, "memory_bytes": 8192}), {"restore": 0.5, "cold": 2.0}
        )
        write_manifest(staged, told)
        folder = self.shelf.place(staged, name)
        return open_snapshot(folder)

    async def lang(self, key: LangKey) -> Asset:
        await self.go_on.wait()
        images = Images(Path("packages"), Path("blank"), key.vm_bytes)
        return Asset(None, self.lay(lang_name(key)), images)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "home") as store:
        yield store


def there(store: Store, key: LangKey) -> bool:
    return store.snapshots.folder(lang_name(key)).is_dir()


async def staged(store: Store) -> tuple[Slow, Stage]:
    library = Slow(store)
    return library, Stage(MicrovmDriver(store.home.run_dir, library), REVISION, REVISION)


def test_a_start_is_given_time_for_a_second_boot() -> None:
    assert start_timeout_s(KEY) >= 2 * BOOT_DEADLINE_S


async def test_those_of_an_earlier_server_are_told_and_can_be_dropped(store: Store) -> None:
    library, stage = await staged(store)
    library.lay(lang_name(KEY))
    await library.tell_langs([KEY, OTHER])
    found = await stage.heard(m.LangFound, KEY)
    assert found.disk_bytes > 0 and not stage.sink.of(OTHER)
    stage.driver.carry_out(m.DropLang(KEY, "keepalive"))
    assert (await stage.heard(m.LangExited, KEY)).error is None
    assert not there(store, KEY), "its bytes are off the account"
    await stage.driver.close()


async def test_one_that_is_dropped_while_it_is_made_is_told_when_it_is_there(store: Store) -> None:
    library, stage = await staged(store)
    stage.driver.carry_out(m.RaiseLang(KEY, None))
    stage.driver.carry_out(m.DropLang(KEY, "start timeout"))
    await stage.heard(m.LangExited, KEY)
    library.go_on.set()
    await stage.heard(m.LangFound, KEY)
    assert [type(event) for event in stage.sink.of(KEY)] == [m.LangExited, m.LangFound]
    await stage.driver.close()
    assert there(store, KEY), "the end of the server leaves what is on disk"


async def test_what_no_function_needs_is_deleted_and_off_the_account(store: Store) -> None:
    library, stage = await staged(store)
    library.go_on.set()
    for key in (KEY, OTHER):
        stage.driver.carry_out(m.RaiseLang(key, None))
        await stage.heard(m.LangRaised, key)
    await library.sweep([])
    for key in (KEY, OTHER):
        await stage.heard(m.LangExited, key)
        assert not there(store, key)
    await stage.driver.close()


async def test_a_functions_drive_is_counted_and_goes_with_its_snapshot(store: Store) -> None:
    library, stage = await staged(store)
    snapshot = library.lay(REVISION.digest)
    drive = store.home.path / "microvm" / f"function-{REVISION.digest}.img"
    drive.parent.mkdir()
    drive.write_bytes(b"x" * 50_000)
    facts = facts_of(REVISION.digest, snapshot, Images(Path("packages"), drive, 256 << 20))
    assert facts.disk_bytes == snapshot.disk_bytes + drive.stat().st_blocks * 512 >= snapshot.disk_bytes + 50_000
    assert (facts.restore_s, facts.cold_s) == (0.5, 2.0)
    library.forget(REVISION.digest)
    assert drive.exists(), "a start that follows at once needs it"
    stage.driver.carry_out(m.Forget(REVISION))
    assert not drive.exists()
    await stage.driver.close()
