"""The file that keeps how often models are started cold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarm.control.cold_starts import NAME, load, save


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert load(tmp_path) == ({}, 0.0)
    save(tmp_path, {"a": 0.5, "b": 1e-9}, 1e9)
    save(tmp_path, {"a": 0.25}, 2e9)
    assert load(tmp_path) == ({"a": 0.25}, 2e9)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("content", [
    b"", b"\xff", b"[" * 100_000, b"[]", b"{}", b'{"at": 1, "per_s": []}', b'{"at": "x", "per_s": {}}',
    b'{"at": 1, "per_s": {"a": -1}}', b'{"at": 1, "per_s": {"a": NaN}}', b'{"at": 1e999, "per_s": {}}',
    b'{"at": 1, "per_s": {"a": null}}',
])  # fmt: skip
def test_what_is_damaged_is_forgotten(content: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert load(tmp_path) == ({}, 0.0)


def test_a_file_that_is_absurdly_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"at": 1, "per_s": {str(n): 1.0 for n in range(400_000)}}))
    assert load(tmp_path) == ({}, 0.0)


def test_where_nothing_can_be_written_nothing_happens(tmp_path: Path) -> None:
    save(tmp_path / "gone", {"a": 1.0}, 1.0)
    assert list(tmp_path.iterdir()) == []
