from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewarm.errors import HomeLocked, HomeTooNew, SystemFault
from rewarm.store.disk import Disk
from rewarm.store.home import FORMAT, Home


def test_first_open_makes_a_private_home(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "home"
    with Home.open(path) as home:
        assert path.stat().st_mode & 0o777 == 0o700
        assert json.loads((path / "home.json").read_text()) == {"format": FORMAT}
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
        found = {child.name for child in path.iterdir()}
        folders = {"artifacts", "weights", "packs", "tensors", "profiles", "snapshots", "tmp", "run"}
        assert found == {"home.json", "lock", *folders}
        assert repr(home) == f"<Home {path} open>"
        assert home.artifact_dir("ab") == path / "artifacts" / "ab"
        assert home.weights_file("cd", "m.onnx") == path / "weights" / "cd" / "m.onnx"
        assert home.pack_dir("ef") == path / "packs" / "ef"
    assert repr(home) == f"<Home {path} closed>"
    home.close()  # once more is fine


def test_a_second_owner_is_told_who_has_it(tmp_path: Path) -> None:
    with Home.open(tmp_path), pytest.raises(HomeLocked, match=f"in use by process {os.getpid()}; stop that server"):
        Home.open(tmp_path)
    Home.open(tmp_path).close()


def test_a_lock_without_a_pid_still_locks(tmp_path: Path) -> None:
    with Home.open(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(HomeLocked, match="another process"):
            Home.open(tmp_path)


def test_the_lock_is_not_inherited_by_children(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    script = "print('up', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"  # descriptors are closed late in exec; only now is it certain
        home.close()
        Home.open(tmp_path).close()
    finally:
        child.communicate(b"\n")


def test_what_a_killed_server_left_is_removed(tmp_path: Path) -> None:
    Home.open(tmp_path).close()
    closed_dir = tmp_path / "tmp" / "staged" / "read-only"
    closed_dir.mkdir(parents=True)
    (closed_dir / "file").write_text("x")
    closed_dir.chmod(0o555)
    keep = tmp_path / "precious"
    keep.mkdir()
    (tmp_path / "tmp" / "staged" / "link").symlink_to(keep)
    (tmp_path / "run" / "socket").write_text("")
    (tmp_path / "run" / "link").symlink_to(keep)
    with Home.open(tmp_path) as home:
        assert list(home.tmp_dir.iterdir()) == list(home.run_dir.iterdir()) == []
    assert keep.stat().st_mode & 0o777 != 0o700, "a link was followed"


def test_it_is_the_owners_alone_however_it_was_made(tmp_path: Path) -> None:
    home_dir = tmp_path / "home"
    (home_dir / "microvm").mkdir(parents=True)
    for folder in (home_dir, home_dir / "microvm"):
        folder.chmod(0o755)
    Home.open(home_dir).close()
    assert [folder.stat().st_mode & 0o777 for folder in (home_dir, home_dir / "microvm")] == [0o700, 0o700]


def test_a_running_servers_tmp_is_left_alone(tmp_path: Path) -> None:
    with Home.open(tmp_path) as home:
        staged = home.fresh()
        with pytest.raises(HomeLocked):
            Home.open(tmp_path)
        assert staged.is_dir()


def test_a_newer_home_asks_for_an_upgrade(tmp_path: Path) -> None:
    (tmp_path / "home.json").write_text(json.dumps({"format": FORMAT + 1, "more": True}))
    with pytest.raises(HomeTooNew, match="upgrade rewarm"):
        Home.open(tmp_path)
    (tmp_path / "home.json").write_text(json.dumps({"format": FORMAT}))
    Home.open(tmp_path).close()  # the refusal let go of the lock


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "1"}', '{"format": true}', '{"format": 0}', "\xff"])
def test_a_damaged_home_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "home.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemFault, match=r"home\.json is damaged"):
        Home.open(tmp_path)


def test_a_directory_with_other_things_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemFault, match="not a home of rewarm and is not empty"):
        Home.open(tmp_path)
    assert [child.name for child in tmp_path.iterdir()] == ["tmp"]
    assert (tmp_path / "tmp" / "thesis.tex").exists()


def test_an_interrupted_first_start_and_a_fresh_volume_are_fine(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1\n")
    (tmp_path / "home.json.new").write_text('{"for')
    (tmp_path / "lost+found").mkdir()
    Home.open(tmp_path).close()


def test_not_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(SystemFault, match="must be a directory") as caught:
            Home.open(path)
        assert str(file) in caught.value.message


def test_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(SystemFault, match="the right to write there"):
        Home.open(tmp_path / "home")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "right to write there"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "check the disk"),
    ],
)
def test_a_failing_disk_says_what_to_do_and_lets_go(tmp_path: Path, code: int, hint: str) -> None:
    class Failing(Disk):
        def sync(self, path: Path) -> None:
            raise OSError(code, os.strerror(code), str(path))

    with pytest.raises(SystemFault, match=hint):
        Home.open(tmp_path, Failing())
    Home.open(tmp_path).close()
