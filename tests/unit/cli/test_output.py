"""Tables for people."""

from __future__ import annotations

import os
import re
import shutil
import sys

import pytest

from rewarm.cli.output import TABLE_COLUMNS, show_table

PATH = "/a/path/that/is/longer/than/any/word/of/a/language/that/people/speak"
ROWS = [["first", "1234.5 MB", f"what is told of it in a sentence, and then {PATH}"], ["second", "7", "short"]]


def widest(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tty: bool = True) -> int:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, 40)))
    show_table(["name", "size", "note"], ROWS, right=["size"])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)  # bold titles
    assert "1234.5 MB" in shown, "figures stay whole"
    assert PATH in "".join(shown.split())
    return max(map(len, shown.splitlines()))


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for columns in (50, 80, 120):
        assert widest(columns, monkeypatch, capsys) <= columns


@pytest.mark.parametrize(("columns", "tty"), [(80, False), (30, True)])
def test_a_pipe_and_a_terminal_that_is_too_narrow_get_whole_lines(
    columns: int, tty: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 120 < widest(columns, monkeypatch, capsys, tty) <= TABLE_COLUMNS
