"""The folder where images are made: whose it is, what is left in it, and what its tools leave behind."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rewarm.errors import SystemFault
from rewarm.guest.workshop import Workshop, run

HANGS = """
from rewarm.guest.workshop import run
print("ready", flush=True)
run(["sleep", "{seconds}"], needs="coreutils")
"""


def modes(*folders: Path) -> set[int]:
    return {folder.stat().st_mode & 0o777 for folder in folders}


def test_a_new_home_is_the_owners_alone(tmp_path: Path) -> None:
    home_dir = tmp_path / "home"
    with Workshop(home_dir).staging() as scratch:
        assert modes(home_dir, home_dir / "microvm", scratch.parent, scratch) == {0o700}


def test_what_an_older_one_left_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "microvm").mkdir()
    (tmp_path / "microvm").chmod(0o755)
    with Workshop(tmp_path).staging():
        assert modes(tmp_path / "microvm") == {0o700}


def test_what_was_killed_is_cleared_unless_somebody_is_at_work(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.clear()
    assert not workshop.folder.exists(), "nothing is made for that"
    with workshop.staging() as scratch:
        (scratch / "image").write_bytes(b"half")
        workshop.clear()
        assert (scratch / "image").exists()
    stale = workshop.folder / "tmp" / "left"
    stale.mkdir()
    (stale / "image").write_bytes(b"half")
    workshop.clear()
    assert not stale.exists()


def test_a_tool_has_so_long() -> None:
    with pytest.raises(SystemFault, match="sleep did not end within 0 s; try again"):
        run(["sleep", "25"], needs="coreutils", within_s=0.1)


def test_a_tool_ends_with_whoever_called_it() -> None:
    seconds = f"25.{uuid.uuid4().int % 10**9}"
    caller = subprocess.Popen([sys.executable, "-c", HANGS.format(seconds=seconds)], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    with caller, caller.stdout:
        assert caller.stdout.readline() == b"ready\n"
        _until(seconds, there=True)
        caller.kill()
    _until(seconds, there=False)


def _until(seconds: str, *, there: bool) -> None:
    deadline_s = time.monotonic() + 10.0
    while (f"sleep\0{seconds}".encode() in _commands()) is not there:
        assert time.monotonic() < deadline_s, "it lives on" if not there else "it never began"
        time.sleep(0.02)


def _commands() -> set[bytes]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().rstrip(b"\0")
        except OSError:
            continue
        found.add(words.rpartition(b"/")[2])
    return found
