"""Profiles in a home: what they are kept by, what makes them stale, and what becomes of damage and failure."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import BadDefinition, SystemFault
from rewarm.facts.function import FunctionSpec, PolicySpec, Revision
from rewarm.facts.profile import Profile
from rewarm.store.disk import Disk
from rewarm.store.home import Home
from rewarm.store.profiles import Profiles, StoredProfile, digest_of, measured_digest
from rewarm.store.store import Store

Deploy = Callable[..., tuple[Revision, bool]]
Spec = Callable[..., FunctionSpec]
PROFILE = Profile((1, 4), (10, 20), ((0.01, 0.02), (0.02, 0.04)))


def stored(digest: str = "ab", measured_at: float = 1.0, version: int = 3) -> StoredProfile:
    return StoredProfile(PROFILE, digest, version, measured_at)


def test_what_is_put_is_there_after_a_restart(tmp_path: Path) -> None:
    with Home.open(tmp_path / "home") as home:
        Profiles(home, Disk()).put("f.1", stored())
        assert list(home.tmp_dir.iterdir()) == []
    with Home.open(tmp_path / "home") as home:
        profiles = Profiles(home, Disk())
        assert profiles.get("f.1", "ab") == profiles.newest("f.1") == stored()
        assert profiles.get("f.1", "cd") is profiles.get("other", "ab") is profiles.newest("other") is None


def test_the_newest_four_are_kept(home: Home) -> None:
    profiles = Profiles(home, Disk())
    for number in range(6):
        profiles.put("f", stored(f"d{number}", measured_at=float(number)))
    assert sorted(path.stem for path in (home.profiles_dir / "f").iterdir()) == ["d2", "d3", "d4", "d5"]
    assert profiles.newest("f") == stored("d5", 5.0)
    profiles.put("f", stored("d3", measured_at=9.0))
    assert profiles.newest("f") == stored("d3", 9.0)


def test_remove(home: Home) -> None:
    profiles = Profiles(home, Disk())
    profiles.put("f", stored())
    assert profiles.remove("f") is True
    assert profiles.remove("f") is False
    assert profiles.newest("f") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sizes": [1]}', '{"version": null}', "\x00", "[" * 10_000])
def test_a_damaged_one_is_none(home: Home, text: str) -> None:
    profiles = Profiles(home, Disk())
    profiles.put("f", stored())
    (home.profiles_dir / "f" / "ab.json").write_text(text)
    assert profiles.get("f", "ab") is profiles.newest("f") is None
    profiles.put("f", stored())
    assert profiles.get("f", "ab") == stored()


def test_a_full_disk_is_told_and_leaves_the_old_one(home: Home) -> None:
    class Full(Disk):
        def replace(self, source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

    Profiles(home, Disk()).put("f", stored(version=1))
    with pytest.raises(SystemFault, match=r"cannot store the profile: .*free some space"):
        Profiles(home, Full()).put("f", stored(version=2))
    assert Profiles(home, Disk()).get("f", "ab") == stored(version=1)
    assert list(home.tmp_dir.iterdir()) == []


def test_the_digest_is_of_what_an_instance_runs(make_spec: Spec) -> None:
    spec = make_spec()
    same = measured_digest(spec, "code", None)
    for field, value in [("batching", PolicySpec("aimd")), ("keepalive", PolicySpec("none")), ("slo_s", 0.1),
                         ("timeout_s", 9.0), ("max_instances", 9), ("queue_max", 9)]:  # fmt: skip
        assert measured_digest(dataclasses.replace(spec, **{field: value}), "code", None) == same, field
    others = [make_spec(memory_bytes=1 << 29), make_spec(env=(("A", "b"),)), make_spec(preload=("json",))]
    digests = {same, *(measured_digest(other, "code", None) for other in others)}
    digests |= {measured_digest(spec, "other", None), measured_digest(spec, "code", "weights")}
    assert len(digests) == 6


def test_a_profile_belongs_to_what_was_deployed(store: Store, deploy: Deploy, make_spec: Spec) -> None:
    revision, _ = deploy(store)
    assert store.profile(revision) is None
    store.profiles.put("digits", StoredProfile(PROFILE, digest_of(revision), 1, 1.0))
    assert store.profile(revision) == PROFILE
    told: list[Profile | None] = []

    def again(text: str, **fields: Any) -> Revision:
        staged = store.stage()
        (staged / "app.py").write_text(text)
        (staged / "lib").mkdir()
        (staged / "lib" / "util.py").write_text("shared")
        (staged / "model.onnx").write_bytes(b"w")
        return store.deploy(staged, make_spec(weights="model.onnx", **fields), told.append)[0]

    assert store.profile(again("one", batching=PolicySpec("aimd"))) == PROFILE
    assert store.profile(again("two")) is None
    assert store.profile(again("one", slo_s=0.1)) == PROFILE, "back to the code that was measured"
    assert told == [PROFILE, None, PROFILE]
    store.remove("digits")
    assert store.profiles.newest("digits") is None


def test_who_is_not_admitted_changes_nothing(store: Store, deploy: Deploy, make_spec: Spec) -> None:
    before, _ = deploy(store)

    def refuse(profile: Profile | None) -> None:
        raise BadDefinition("no")

    staged = store.stage()
    (staged / "app.py").write_text("new")
    with pytest.raises(BadDefinition, match="no"):
        store.deploy(staged, make_spec(), refuse)
    assert store.get("digits") == before
    assert not staged.exists()
    assert store.unreferenced() == []
