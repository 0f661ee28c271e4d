"""`make demo`, shortened: a stranger's first command has to work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import rewarm

ROOT = Path(__file__).resolve().parents[2]
SOURCES = str(Path(rewarm.__file__).resolve().parents[1])
SVG = "{http://www.w3.org/2000/svg}svg"

pytestmark = pytest.mark.e2e


def demo(*words: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("REWARM_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples/digits/demo.py"), *words], capture_output=True, text=True, timeout=120,
        env={**env, "PYTHONPATH": SOURCES, "COLUMNS": "120"}, check=False,
    )  # fmt: skip


def test_demo(tmp_path: Path) -> None:
    done = demo("--quick", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    picture = tmp_path / "out" / "demo.svg"
    assert str(picture) in done.stdout.replace("\n", "")
    assert ElementTree.parse(picture).getroot().tag == SVG
    for told in ("nothing is alive", "of 500 right", "0 instances, 0 zygotes, 0 B held"):
        assert told in done.stdout, done.stdout


def test_a_failure_is_one_line(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    done = demo("--quick", "--out", str(occupied))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("demo failed: ") and "Traceback" not in done.stderr, done.stderr
