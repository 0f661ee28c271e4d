"""A guest of packages in miniature: made twice, found, refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import MicrovmUnavailable
from rewarm.guest import build_guest, find_guest
from rewarm.guest.images import DRIVE_BYTES

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

pytestmark = pytest.mark.usefixtures("mke2fs")


def quiet(step: str, done: int, total: int) -> None:
    pass


def test_made_twice_it_is_the_same(guest_debs: Any, tmp_path: Path) -> None:
    steps: list[str] = []
    one = build_guest(tmp_path / "one", lambda step, done, total: steps.append(step))
    two = build_guest(tmp_path / "two", quiet)
    assert one.guest_id == two.guest_id
    assert one.sha256 == two.sha256
    assert one.folder.name == f"guest-{one.guest_id}"
    assert (one.folder / "guest.json").read_bytes() == (two.folder / "guest.json").read_bytes()
    assert one.rootfs.stat().st_size == DRIVE_BYTES
    assert list(dict.fromkeys(steps)) == [
        "choosing packages", "downloading", "unpacking", "making the root file system",
    ]  # fmt: skip
    assert find_guest(tmp_path / "one") == one
    assert (one.python, one.kernel_version) == (PYTHON, "6.1.0-1-cloud-amd64")
    assert one.kernel.read_bytes() == b"a kernel"
    named = {package["name"] for package in json.loads((one.folder / "guest.json").read_text())["packages"]}
    assert "libc6" in named
    assert not named & {"gcc-12-base", "media-types", "kmod"}


def test_made_again_it_takes_the_place_of_the_last(guest_debs: Any, tmp_path: Path) -> None:
    first = build_guest(tmp_path, quiet)
    assert build_guest(tmp_path, quiet) == first
    guest_debs.add("zlib1g", files={"lib/libz.so.1": b"z"})
    stanza = guest_debs.folder / f"python{PYTHON}-minimal.stanza"
    stanza.write_text(stanza.read_text().replace("libc6 (>= 2.35)", "libc6 (>= 2.35), zlib1g"))
    second = build_guest(tmp_path, quiet)
    assert second.guest_id != first.guest_id
    assert find_guest(tmp_path) == second


def test_a_debian_with_another_python(guest_debs: Any, tmp_path: Path) -> None:
    (guest_debs.folder / f"python{PYTHON}-minimal.stanza").unlink()
    with pytest.raises(MicrovmUnavailable, match=f"no Python {PYTHON}.*run rewarm on Debian's own Python"):
        build_guest(tmp_path, quiet)


def test_no_lists_of_packages(apt: Any, tmp_path: Path) -> None:
    with pytest.raises(MicrovmUnavailable, match="run apt-get update as root"):
        build_guest(tmp_path, quiet)
    with pytest.raises(MicrovmUnavailable, match="run: rewarm microvm build"):
        find_guest(tmp_path)


def test_guests_that_cannot_be_used(guest_debs: Any, tmp_path: Path) -> None:
    guest = build_guest(tmp_path, quiet)
    told = guest.folder / "guest.json"
    told.chmod(0o644)
    whole = told.read_text()
    for damage in ("", "[]", "{}", whole[:-9], whole.replace('"sha256"', '"sha"')):
        told.write_text(damage)
        with pytest.raises(MicrovmUnavailable, match=r"damaged.*rewarm microvm build"):
            find_guest(tmp_path)
    told.write_text(whole.replace('"format": 1', '"format": 2'))
    with pytest.raises(MicrovmUnavailable, match="another version of rewarm"):
        find_guest(tmp_path)
    told.write_text(whole)
    guest.rootfs.unlink()
    with pytest.raises(MicrovmUnavailable, match="a file is missing"):
        find_guest(tmp_path)
