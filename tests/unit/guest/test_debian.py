"""Packages from an apt: which ones, once, and whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import MicrovmUnavailable
from rewarm.guest.debian import Apt, unpack


def nothing(done: int, total: int) -> None:
    pass


def test_what_is_depended_on_comes_along_once(apt: Any, tmp_path: Path) -> None:
    apt.add("a", "b (>= 1), c:any | d, virtual | e")
    apt.add("b", "a, docs")
    apt.add("d")
    apt.add("e")
    found = Apt(tmp_path).closure(["a"], lambda name: name == "docs")
    assert [deb.name for deb in found] == ["a", "b", "d", "e"]
    assert found[0].version == "1:2.0-3"
    assert found[0].file_name == "a_1%3a2.0-3_amd64.deb"


def test_of_alternatives_the_first_known_or_the_one_that_is_there(apt: Any, tmp_path: Path) -> None:
    apt.add("a", "x | y, z")
    apt.add("z", "y | x")
    apt.add("x")
    apt.add("y")
    assert [deb.name for deb in Apt(tmp_path).closure(["a"], lambda name: False)] == ["a", "x", "z"]


def test_a_package_that_apt_does_not_know(apt: Any, tmp_path: Path) -> None:
    apt.add("a", "gone")
    with pytest.raises(MicrovmUnavailable, match=re.escape("apt knows no package gone: run apt-get update")):
        Apt(tmp_path).closure(["a"], lambda name: False)
    with pytest.raises(MicrovmUnavailable, match="nowhere"):
        Apt(tmp_path).one("nowhere")


def test_no_apt_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MicrovmUnavailable, match="there is no apt-cache; install apt"):
        Apt(tmp_path).show(["a"])


def test_downloads_are_kept_and_told(apt: Any, tmp_path: Path) -> None:
    for name in "abcdefgh":
        apt.add(name)
    debs = [Apt(tmp_path).one(name) for name in "abcdefgh"]
    cache, told = tmp_path / "cache", []
    files = Apt(tmp_path).fetch(debs, cache, lambda done, total: told.append((done, total)))
    assert [file.name[0] for file in files] == list("abcdefgh")
    assert apt.downloads == list("abcdefgh")
    total = sum(deb.size_bytes for deb in debs)
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert len(told) == 3
    Apt(tmp_path).fetch(debs, cache, nothing)
    assert len(apt.downloads) == 8


def test_a_damaged_copy_is_fetched_anew(apt: Any, tmp_path: Path) -> None:
    apt.add("a")
    cache, deb = tmp_path / "cache", Apt(tmp_path).one("a")
    (file,) = Apt(tmp_path).fetch([deb], cache, nothing)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    Apt(tmp_path).fetch([deb], cache, nothing)
    assert apt.downloads == ["a", "a"]
    assert file.read_bytes() == whole


def test_a_mirror_that_lies_or_has_lost_it(apt: Any, tmp_path: Path) -> None:
    apt.add("b")
    mirrored = apt.add("a")
    deb, other = Apt(tmp_path).one("a"), Apt(tmp_path).one("b")
    mirrored.write_bytes(bytes(deb.size_bytes))
    with pytest.raises(MicrovmUnavailable, match=r"something else than a 1:2\.0-3"):
        Apt(tmp_path).fetch([deb], tmp_path / "cache", nothing)
    next(apt.folder.glob("b_*.deb")).unlink()
    with pytest.raises(MicrovmUnavailable, match="run apt-get update as root"):
        Apt(tmp_path).fetch([other], tmp_path / "cache", nothing)
    assert not list((tmp_path / "cache").iterdir())


def test_unpacking_runs_no_script(apt: Any, tmp_path: Path) -> None:
    deb = apt.add("a", files={"usr/bin/tool": b"text"})
    unpack(deb, tmp_path / "tree")  # its postinst would fail
    assert [path.name for path in (tmp_path / "tree").rglob("*") if path.is_file()] == ["tool"]
