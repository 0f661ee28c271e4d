from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.errors import BadDefinition
from rewarm.store.artifacts import drop, is_whole, publish, publish_weights, tree_digest
from rewarm.store.disk import CHUNK_BYTES, Disk
from rewarm.store.home import Home

Files = dict[str, tuple[bytes, int]]
SAMPLE: Files = {"app.py": (b"code", 0o644), "lib/util.py": (b"more", 0o600), "bin/tool": (b"#!", 0o755)}


def fill(folder: Path, files: Files) -> Path:
    for name, (content, mode) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    return folder


def test_the_digest_is_what_the_module_says(tmp_path: Path) -> None:
    fill(tmp_path, {"b": (b"2", 0o644), "a/x": (b"1", 0o755)})
    parts = [b"a/x\0x" + hashlib.sha256(b"1").digest(), b"b\0-" + hashlib.sha256(b"2").digest()]
    assert tree_digest(tmp_path) == hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"app.py": (b"code!", 0o644)},
        {"app.py": (b"code", 0o755)},
        {"extra.py": (b"", 0o644)},
        {"lib/app.py": (b"code", 0o644)},
    ],
)
def test_the_digest_sees_content_path_and_executable_bit(tmp_path: Path, change: Files) -> None:
    one = fill(tmp_path / "one", SAMPLE)
    two = fill(tmp_path / "two", SAMPLE | change)
    assert tree_digest(one) != tree_digest(two)


def test_the_digest_ignores_times_other_modes_and_empty_directories(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", SAMPLE)
    two = fill(tmp_path / "two", dict(reversed(SAMPLE.items())))
    (two / "app.py").chmod(0o444)
    os.utime(two / "app.py", (1, 1))
    (two / "empty").mkdir()
    assert tree_digest(one) == tree_digest(two)


def test_publish_moves_and_makes_read_only(home: Home) -> None:
    staged = fill(home.fresh(), SAMPLE)
    digest = publish(home, staged)
    artifact = home.artifact_dir(digest)
    assert not staged.exists()
    assert tree_digest(artifact) == digest
    modes = {path.relative_to(artifact).as_posix(): path.stat().st_mode & 0o777 for path in artifact.rglob("*")}
    assert modes == {
        "app.py": 0o444, "lib": 0o555, "lib/util.py": 0o444, "bin": 0o555, "bin/tool": 0o555
    }  # fmt: skip
    assert artifact.stat().st_mode & 0o777 == 0o555


def test_the_same_code_twice_is_stored_once(home: Home) -> None:
    first = publish(home, fill(home.fresh(), SAMPLE))
    inode = home.artifact_dir(first).stat().st_ino
    assert publish(home, fill(home.fresh(), SAMPLE)) == first
    assert home.artifact_dir(first).stat().st_ino == inode
    assert list(home.tmp_dir.iterdir()) == []


def _link(path: Path) -> None:
    path.symlink_to("app.py")


def _folder_link(path: Path) -> None:
    path.symlink_to("/")


@pytest.mark.parametrize("make", [_link, _folder_link, os.mkfifo])
def test_links_and_devices_are_refused(home: Home, make: Callable[[Path], None]) -> None:
    staged = fill(home.fresh(), SAMPLE)
    make(staged / "odd")
    with pytest.raises(BadDefinition, match="'odd' is not a regular file"):
        publish(home, staged)
    assert list(home.artifacts_dir.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 7])
def test_weights_are_copied_whole(home: Home, tmp_path: Path, size: int) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(os.urandom(size))
    weights = publish_weights(home, source)
    stored = home.weights_file(weights.sha256, weights.file)
    assert (weights.file, weights.size_bytes) == ("model.onnx", size)
    assert weights.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert stored.read_bytes() == source.read_bytes()
    assert stored.stat().st_mode & 0o777 == 0o444
    assert publish_weights(home, source) == weights
    assert list(home.tmp_dir.iterdir()) == []


def test_weights_under_a_second_name_share_their_pages(home: Home, tmp_path: Path) -> None:
    stored = []
    for name in ("one.onnx", "two.onnx"):
        (tmp_path / name).write_bytes(b"same")
        weights = publish_weights(home, tmp_path / name)
        stored.append(home.weights_file(weights.sha256, name))
    assert stored[0].samefile(stored[1])
    assert list(home.tmp_dir.iterdir()) == []


def test_weights_under_a_second_name_without_links(home: Home, tmp_path: Path) -> None:
    class NoLinks(Disk):
        def link(self, source: Path, target: Path) -> None:
            raise PermissionError(1, "no links here")

    for name in ("one.onnx", "two.onnx"):
        (tmp_path / name).write_bytes(b"same")
        weights = publish_weights(home, tmp_path / name, NoLinks())
        assert home.weights_file(weights.sha256, name).read_bytes() == b"same"


def test_weights_that_were_cut_off_by_hand_are_mended(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(b"whole")
    weights = publish_weights(home, source)
    stored = home.weights_file(weights.sha256, weights.file)
    stored.chmod(0o600)
    stored.write_bytes(b"wh")
    assert not is_whole(home, weights)
    publish_weights(home, source)
    assert is_whole(home, weights)
    assert stored.read_bytes() == b"whole"


def test_drop_copes_with_read_only_trees(home: Home) -> None:
    digest = publish(home, fill(home.fresh(), SAMPLE))
    drop(home, home.artifact_dir(digest))
    assert list(home.artifacts_dir.iterdir()) == list(home.tmp_dir.iterdir()) == []
