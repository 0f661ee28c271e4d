"""Looking into a file before it is deployed: in a process that leaves nothing behind."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from rewarm.control.deploy import inspect
from rewarm.errors import BadDefinition, RewarmError

HELLO = "def handler(event, context):\n    return 'hello'\n"


def app(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "app.py"
    path.write_text("\n".join((*lines, HELLO)))
    return path


def running(text: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                return True
        except OSError:
            pass
    return False


def test_children_and_threads_of_the_import_do_not_hold_it_up(tmp_path: Path) -> None:
    length = f"25.{uuid.uuid4().int % 10**9}"
    file = app(
        tmp_path, "import atexit, subprocess, threading, time", f'subprocess.Popen(["sleep", "{length}"])',
        "threading.Thread(target=time.sleep, args=(25,)).start()", "atexit.register(print, 'bye')", "print('hello')",
    )  # fmt: skip
    since = time.monotonic()
    found = inspect(file, None, "app.handler")
    assert time.monotonic() - since < 10
    assert found["name"] == "app"
    assert not running(length)


def test_what_is_printed_is_no_report(tmp_path: Path) -> None:
    file = app(tmp_path, "import os", "os.write(1, b'x' * 3_000_000 + b'\\n')")
    assert inspect(file, None, "app.handler")["entry"] == "app:handler"
    with pytest.raises(BadDefinition, match="ended with status 3"):
        inspect(app(tmp_path, "import os", "os.write(1, b'[]')", "os._exit(3)"), None, "app.handler")


def test_a_failed_import_says_why(tmp_path: Path) -> None:
    with pytest.raises(RewarmError, match=r"ValueError: no \(app.py line 1\)"):
        inspect(app(tmp_path, "raise ValueError('no')"), None, "app.handler")
