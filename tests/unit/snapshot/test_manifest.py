from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.errors import SnapshotCorrupt, SnapshotFailed, SnapshotMismatch, SystemFault
from rewarm.snapshot.manifest import (
    Manifest,
    Platform,
    Snapshot,
    describe,
    open_snapshot,
    read_part,
    verify,
    write_manifest,
)

Make = Callable[..., Snapshot]


def signed(fields: dict[str, object]) -> bytes:
    body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return b'{"digest":"' + hashlib.sha256(body).hexdigest().encode() + b'","manifest":' + body + b"}\n"


def test_what_was_written_is_read(make: Make, platform: Platform) -> None:
    snapshot = make()
    found = open_snapshot(snapshot.folder, platform)
    assert found == snapshot
    assert Manifest.loads(snapshot.manifest.dumps()) == snapshot.manifest
    assert found.manifest.kind == "user" and found.manifest.seconds == {"publish": 2.5}
    assert {path.name for path, _ in found.files()} == {"state", "memory", "loading-set", "layout"}
    verify(found)


def test_holes_are_not_counted_as_disk(make: Make) -> None:
    snapshot = make()
    assert 220 * 4096 < snapshot.disk_bytes < 400 * 4096 < snapshot.memory.stat().st_size


def test_a_snapshot_without_a_loading_set(make: Make) -> None:
    snapshot = open_snapshot(make(touched=None).folder)
    assert snapshot.loading_set is None and snapshot.layout is None and snapshot.read_layout() is None
    verify(snapshot)


def test_the_manifest_can_be_written_again(make: Make) -> None:
    snapshot = make()
    write_manifest(snapshot.folder, snapshot.manifest.with_seconds(restore=0.1))
    assert open_snapshot(snapshot.folder).manifest.seconds == {"publish": 2.5, "restore": 0.1}


def test_parts_are_read_only(make: Make) -> None:
    assert {path.stat().st_mode & 0o777 for path in make().folder.iterdir()} == {0o444}


def test_a_copy_that_lost_its_holes_is_the_same(make: Make) -> None:
    snapshot = make()
    whole = snapshot.memory.read_bytes()
    snapshot.memory.unlink()
    snapshot.memory.write_bytes(whole)
    verify(open_snapshot(snapshot.folder))


def test_the_digest_knows_where_data_lies(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"a" + bytes(200_000))
    other.write_bytes(bytes(131_072) + b"a" + bytes(200_000 - 131_072))
    assert read_part(one).sha256 != read_part(other).sha256
    assert read_part(one).size_bytes == read_part(other).size_bytes


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Platform)])
def test_another_machine_is_refused_by_name(make: Make, platform: Platform, field: str) -> None:
    snapshot = make()
    other = dataclasses.replace(platform, **{field: 1 << 30 if field == "memory_bytes" else "another"})
    with pytest.raises(SnapshotMismatch, match=rf"{field} .*made again"):
        open_snapshot(snapshot.folder, other)
    assert platform.differences(other) == (field,)


def test_one_from_before_there_was_another_vmm(make: Make, platform: Platform) -> None:
    path = make().folder / "manifest.json"
    fields = json.loads(path.read_bytes())["manifest"]
    del fields["platform"]["vmm"]
    fields["platform"]["qemu"] = "10.0.2"
    path.chmod(0o644)
    path.write_bytes(signed(fields))
    assert open_snapshot(path.parent, platform).manifest.platform == platform


@pytest.mark.parametrize("name", ["manifest.json", "state", "memory", "loading-set", "layout"])
def test_a_missing_file_is_named(make: Make, name: str) -> None:
    snapshot = make()
    (snapshot.folder / name).unlink()
    with pytest.raises(SnapshotCorrupt, match=f"{name} is missing"):
        open_snapshot(snapshot.folder)


@pytest.mark.parametrize("name", ["state", "memory", "loading-set", "layout"])
@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_seen(make: Make, name: str, change: int) -> None:
    path = make().folder / name
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size + change)
    with pytest.raises(SnapshotCorrupt, match=name):
        open_snapshot(path.parent)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(SnapshotCorrupt, match="missing"):
        open_snapshot(tmp_path / "none")


def test_a_layout_of_another_snapshot(make: Make) -> None:
    one, other = make("one"), make("other", touched={0, 220, 641})
    for path in (one.folder / "layout", one.folder / "manifest.json"):
        path.unlink()
    shutil.copy(other.folder / "layout", one.folder / "layout")
    manifest = dataclasses.replace(
        one.manifest, parts={**one.manifest.parts, "layout": read_part(one.folder / "layout")}
    )
    write_manifest(one.folder, manifest)
    with pytest.raises(SnapshotCorrupt, match="another snapshot"):
        open_snapshot(one.folder)


def test_another_format_is_a_mismatch(make: Make) -> None:
    path = make().folder / "manifest.json"
    fields = json.loads(path.read_bytes())["manifest"]
    path.chmod(0o644)
    path.write_bytes(signed({**fields, "format": 2}))
    with pytest.raises(SnapshotMismatch, match="format 2"):
        open_snapshot(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"subject": 3},
        {"platform": {}},
        {"parts": {}},
        {"parts": {"state": [1, "x"], "memory": [4096, "x"]}},
        {"loading": [1, 2]},
        {"loading": [1, 2, 3, 4, 5, "6"]},
        {"seconds": {"publish": "long"}},
        {"seconds": None},
    ],
)
def test_what_cannot_be_is_refused(make: Make, change: dict[str, object]) -> None:
    fields = json.loads(make().manifest.dumps())["manifest"]
    with pytest.raises(SnapshotCorrupt, match="made again"):
        Manifest.loads(signed({**fields, **change}))


def test_describe_wants_the_memory_of_the_platform(make: Make, platform: Platform) -> None:
    folder = make().folder
    with pytest.raises(SnapshotFailed, match="bytes for a guest"):
        describe(folder, "user", "x", dataclasses.replace(platform, memory_bytes=4096), {})
    (folder / "state").unlink()
    with pytest.raises(SnapshotFailed, match="state"):
        describe(folder, "user", "x", platform, {})


def test_what_cannot_be_written_is_told(make: Make) -> None:
    snapshot = make()
    snapshot.state.unlink()
    with pytest.raises(SnapshotFailed, match="cannot write the manifest"):
        write_manifest(snapshot.folder, snapshot.manifest)


def test_a_file_that_cannot_be_read_is_a_fault_of_the_system(make: Make) -> None:
    snapshot = make()
    snapshot.state.unlink()
    snapshot.state.symlink_to("state")
    with pytest.raises(SystemFault, match="check the disk") as caught:
        open_snapshot(snapshot.folder)
    assert type(caught.value) is SystemFault
