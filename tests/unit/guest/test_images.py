"""File systems made without root: the same bytes for the same files, and what is in them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.errors import MicrovmUnavailable, SystemFault
from rewarm.guest.images import DRIVE_BYTES, blank_image, function_image, make_image
from rewarm.guest.workshop import Workshop, find_tool

pytestmark = pytest.mark.usefixtures("mke2fs")


Debugfs = Callable[[Path, str], bytes]


def fill(tree: Path, names: list[str], mode: int, time_s: int) -> None:
    for name in names:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 999)
        path.chmod(mode | (0o111 if name.endswith("tool") else 0))
        os.utime(path, (time_s, time_s))


NAMES = [f"d{i % 7}/e{i % 3}/file-{i}" for i in range(400)] + ["bin/tool", "Ä", "z"]


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fill(one, NAMES, 0o644, 1_000_000_000)
    (one / "link").symlink_to("z")
    (two / "d4").mkdir(parents=True)
    (two / "link").symlink_to("z")
    fill(two, NAMES[::-1], 0o400, 1_700_000_000)
    first, second = make_image(one, tmp_path / "1.img", "label"), make_image(two, tmp_path / "2.img", "label")
    assert first.read_bytes() == second.read_bytes()
    (two / "z").chmod(0o600)
    (two / "z").write_bytes(b"!")
    assert first.read_bytes() != make_image(two, tmp_path / "3.img", "label").read_bytes()


def test_it_is_a_sound_file_system_of_root(tmp_path: Path, debugfs: Debugfs) -> None:
    fill(tmp_path / "tree", NAMES, 0o600, 1_000_000_000)
    (tmp_path / "tree" / "big").write_bytes(os.urandom(5_000_000))
    image = make_image(tmp_path / "tree", tmp_path / "image", "label")
    checked = subprocess.run([find_tool("e2fsck", "e2fsprogs"), "-fn", str(image)], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert debugfs(image, "cat /big") == (tmp_path / "tree" / "big").read_bytes()
    told = debugfs(image, "stat /bin/tool").decode()
    assert "Mode:  0755" in told
    assert "User:     0   Group:     0" in told
    assert told.count("Jan  1 00:00:00 2020") == 4 or told.count("0x5e0be100") == 4
    assert "Mode:  0644" in debugfs(image, "stat /z").decode()


def test_the_drive_of_a_function(tmp_path: Path, debugfs: Debugfs) -> None:
    code, weights = tmp_path / "code", tmp_path / "model.onnx"
    fill(code, ["app.py", "data/x.json"], 0o444, 1)
    weights.write_bytes(b"weights")
    home = tmp_path / "home"
    image = function_image(home, "ab" * 32, code, weights)
    assert image == home / "microvm" / f"function-{'ab' * 32}.img"
    assert image.stat().st_size == DRIVE_BYTES
    assert image.stat().st_blocks * 512 < 2 << 20
    assert image.stat().st_mode & 0o777 == 0o444
    assert debugfs(image, "cat /code/data/x.json") == (code / "data/x.json").read_bytes()
    assert debugfs(image, "cat /weights/model.onnx") == b"weights"
    assert not list((home / "microvm" / "tmp").iterdir())
    before = image.stat().st_mtime_ns
    assert function_image(home, "ab" * 32, code, weights) == image
    assert image.stat().st_mtime_ns == before
    assert b"weights" not in debugfs(function_image(home, "cd" * 32, code, None), "ls /")
    assert weights.read_bytes() == b"weights"


def test_the_blank_drive_is_made_once(tmp_path: Path) -> None:
    image = blank_image(tmp_path)
    assert image.stat().st_size == DRIVE_BYTES
    assert blank_image(tmp_path) == image


def test_code_that_cannot_be_read_is_an_error_of_ours_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemFault, match="cannot make an image for micro-VMs"):
        function_image(tmp_path, "ab" * 32, tmp_path / "nowhere", None)
    assert not list((tmp_path / "microvm" / "tmp").iterdir())
    assert Workshop(tmp_path).contents() == {}


def test_what_a_killed_process_left_is_cleared_but_not_what_another_is_making(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    stale = tmp_path / "microvm" / "tmp" / "stale"
    stale.mkdir(parents=True)
    with workshop.staging() as mine:
        assert not stale.exists()
        with Workshop(tmp_path).staging() as other:
            assert mine.is_dir()
            assert other != mine
    assert not list((tmp_path / "microvm" / "tmp").iterdir())


def test_a_tool_that_is_not_there() -> None:
    with pytest.raises(MicrovmUnavailable, match="install e2fsprogs"):
        find_tool("mke2fs-of-another-world", "e2fsprogs")


def test_a_tool_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mke2fs").write_text("#!/bin/sh\necho 'mke2fs: no room' >&2\nexit 1\n")
    (tmp_path / "mke2fs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SystemFault, match=r"mke2fs failed \(1\): mke2fs: no room"):
        blank_image(tmp_path / "home")
