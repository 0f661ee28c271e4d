from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarm.errors import SystemFault
from rewarm.snapshot import shim as shim_module
from rewarm.snapshot.manifest import Snapshot
from rewarm.snapshot.record import cached_pages
from rewarm.snapshot.regions import PAGE_BYTES
from rewarm.snapshot.restore import Means, detect_means, plan
from rewarm.snapshot.shim import COMPILERS, build_shim

Make = Callable[..., Snapshot]
Start = Callable[..., Any]
Cold = Callable[[Snapshot], None]


def test_it_compiles_without_a_warning(shim: Path, tmp_path: Path) -> None:
    source = Path(shim_module.__file__).with_name("shim.c")
    flags = ["-std=c11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    compiler = next(found for name in COMPILERS if (found := shutil.which(name)))
    subprocess.run([compiler, *flags, "-o", str(tmp_path / "x.so"), str(source)], check=True)
    assert len(source.read_text().splitlines()) <= 160


def test_it_is_built_once(shim: Path, tmp_path: Path) -> None:
    built = build_shim(tmp_path)
    before = built.stat().st_mtime_ns
    assert build_shim(tmp_path) == built and built.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [built.name]


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    means = detect_means(tmp_path / "cache")
    assert means.shim is None and "install gcc" in means.why["shim"]
    with pytest.raises(SystemFault, match="install gcc"):
        build_shim(tmp_path / "cache")


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no headers >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemFault, match="no headers"):
        build_shim(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_library_that_cannot_be_loaded(shim: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "with space"
    with pytest.raises(SystemFault, match="a space or a colon"):
        build_shim(spaced)


def test_a_directory_that_cannot_be_written(shim: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault, match="cannot be built"):
        build_shim(tmp_path / "file")


@pytest.mark.parametrize("policy", ["lazy", "prefetch", "layered", "lazy-4k"])
def test_every_page_is_what_it_was(
    make: Make, means: Means, shim: Path, start: Start, sample: bytes, tmp_path: Path, policy: str
) -> None:
    restore = plan(make(), policy, means)
    assert restore.policy == policy
    guest = start(restore)
    assert guest.dump(tmp_path / "dump") == sample
    assert guest.end() == ""


def test_clones_do_not_see_each_other_write(
    make: Make, means: Means, shim: Path, start: Start, sample: bytes, tmp_path: Path
) -> None:
    snapshot = make()
    one, other = start(plan(snapshot, "layered", means)), start(plan(snapshot, "layered", means))
    for number in (0, 50, 211, 700, 1001):  # of the loading set, zero, of it, zero, cold
        assert one.ask(f"poke {number}") == "poked"
        assert one.page(number)[:1] == b"X"
    assert other.dump(tmp_path / "dump") == sample
    assert snapshot.memory.read_bytes() == sample


def test_pages_come_from_the_three_layers(make: Make, means: Means, shim: Path, start: Start) -> None:
    snapshot = make(gap_pages=0)
    guest = start(plan(snapshot, "layered", means))
    lines = Path(f"/proc/{guest.pid}/maps").read_text().splitlines()
    loading = snapshot.manifest.loading
    assert loading is not None
    assert sum(line.endswith(str(snapshot.loading_set)) for line in lines) == loading.regions
    assert any(line.endswith(str(snapshot.memory)) for line in lines)
    layout = snapshot.read_layout()
    assert layout is not None and layout.zero


def test_a_cold_fault_fetches_one_page(make: Make, means: Means, shim: Path, start: Start, cold: Cold) -> None:
    snapshot = make()
    cold(snapshot)
    if cached_pages(snapshot.memory):
        pytest.skip("the files of this directory stay in memory")
    guest = start(plan(snapshot, "layered", means))
    guest.page(300)
    assert cached_pages(snapshot.memory) == {300}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("layout", None),
        ("layout", b"short"),
        ("layout", b"RWLAYOUT" + bytes(100)),
        ("loading-set", None),
    ],
)
def test_a_damaged_layout_leaves_the_plain_mapping(
    make: Make, means: Means, shim: Path, start: Start, sample: bytes, tmp_path: Path, name: str, content: bytes | None
) -> None:
    """Nobody restores from such a snapshot; and if one did, the guest would still be right."""
    snapshot = make()
    restore = plan(snapshot, "layered", means)
    (snapshot.folder / name).unlink()
    if content is not None:
        (snapshot.folder / name).write_bytes(content)
    guest = start(restore)
    assert guest.dump(tmp_path / "dump") == sample
    assert "rewarm shim: layered: " in guest.end()


def test_a_layout_that_reaches_beyond_the_memory(
    make: Make, means: Means, shim: Path, start: Start, sample: bytes, tmp_path: Path
) -> None:
    snapshot = make()
    assert snapshot.layout is not None
    restore = plan(snapshot, "layered", means)
    content = bytearray(snapshot.layout.read_bytes())
    # The last record: some are in place when it turns out to be wrong, and all have to go again.
    content[-32 - 24 : -32 - 16] = (len(sample) - PAGE_BYTES).to_bytes(8, "little")
    content[-32 - 16 : -32 - 8] = (2 * PAGE_BYTES).to_bytes(8, "little")
    snapshot.layout.unlink()
    snapshot.layout.write_bytes(content)
    guest = start(restore)
    assert guest.dump(tmp_path / "dump") == sample
    assert "loading-set" not in Path(f"/proc/{guest.pid}/maps").read_text()
    assert "Invalid argument" in guest.end()


def test_other_files_are_left_alone(make: Make, means: Means, shim: Path, start: Start, tmp_path: Path) -> None:
    snapshot, copy = make(), tmp_path / "copy"
    shutil.copy(snapshot.memory, copy)
    restore = plan(snapshot, "layered", means)
    restore.memory = copy
    guest = start(restore)
    assert "loading-set" not in Path(f"/proc/{guest.pid}/maps").read_text()
