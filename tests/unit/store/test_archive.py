from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.errors import BadDefinition, BadRequest, BodyTooLarge, RewarmError, SystemFault
from rewarm.store.archive import MANIFEST, MANIFEST_BYTES_MAX, MEMBERS_MAX, DeployRequest, extract, pack, safe_path

GOOD = json.dumps({"file": "app.py"}).encode()
Member = tuple[str, bytes] | tarfile.TarInfo


def tar_of(path: Path, *members: Member, format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar as anyone could write it: nothing is checked."""
    with tarfile.open(path, "w:", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member, io.BytesIO(bytes(member.size)))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., bytes]:
    def run(files: dict[str, bytes], manifest: dict[str, Any]) -> bytes:
        sources = {}
        for number, (name, content) in enumerate(files.items()):
            sources[name] = tmp_path / f"source{number}"
            sources[name].write_bytes(content)
        out = io.BytesIO()
        pack(sources, manifest, out)
        return out.getvalue()

    return run


def test_what_is_packed_is_extracted(tmp_path: Path, into: Path) -> None:
    names = ["app.py", "pkg/deep/mod.py", "x" * 180 + "/" + "y" * 180, "données/µ.txt", "empty", "tool"]
    files = {}
    for number, name in enumerate(names):
        files[name] = tmp_path / f"{number}"
        files[name].write_bytes(b"" if name == "empty" else name.encode() * 1000)
    files["tool"].chmod(0o700)
    manifest = {
        "file": "./app.py",
        "select": None,
        "handler": None,
        "name": "a",
        "overrides": {"memory": "1GB", "n": [1]},
    }
    with (tmp_path / "up.tar").open("wb") as out:
        pack(files, manifest, out)
    assert extract(tmp_path / "up.tar", into) == DeployRequest("app.py", None, None, "a", {"memory": "1GB", "n": [1]})
    found = {path.relative_to(into).as_posix(): path for path in into.rglob("*") if path.is_file()}
    assert set(found) == set(names)
    for name, path in found.items():
        assert path.read_bytes() == files[name].read_bytes()
        assert bool(path.stat().st_mode & 0o100) == (name == "tool")


def test_packing_is_deterministic(tmp_path: Path) -> None:
    archives = []
    for number, mode in enumerate((0o600, 0o664)):
        paths = {}
        for name in ("b.py", "a.py") if number else ("a.py", "b.py"):
            paths[name] = tmp_path / f"{number}{name}"
            paths[name].write_text(name)
            paths[name].chmod(mode)
            os.utime(paths[name], (number, number))
        out = io.BytesIO()
        pack(paths, dict([("name", None), ("file", "a.py")][:: 1 if number else -1]), out)
        archives.append(out.getvalue())
    assert archives[0] == archives[1]


def test_packing_needs_no_seekable_file(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("x")
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as come, os.fdopen(writer, "wb") as out:
        pack({"app.py": tmp_path / "app.py"}, {"file": "app.py"}, out)
        out.close()
        assert MANIFEST.encode() in come.read()


def test_packing_refuses_what_could_not_be_extracted(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("")
    good = {"file": "f"}
    for files, manifest, error in [
        ({"../f": file}, good, BadRequest),
        ({"/f": file}, good, BadRequest),
        ({MANIFEST: file}, good, BadDefinition),
        ({"f": tmp_path / "missing"}, good, BadDefinition),
        ({"f": tmp_path}, good, BadDefinition),
        ({"f": Path("/dev/null")}, good, BadDefinition),
        ({"f": file}, {"fil": "f"}, BadDefinition),
    ]:
        with pytest.raises(error):
            pack(files, manifest, io.BytesIO())


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_any_tar_program_will_do(tmp_path: Path, into: Path, format: int) -> None:
    folder = special("pkg", tarfile.DIRTYPE)
    tar = tar_of(tmp_path / "t", ("./" + MANIFEST, GOOD), folder, ("./app.py", b"1"), ("pkg/m.py", b"2"), format=format)
    assert extract(tar, into) == DeployRequest("app.py")
    assert (into / "pkg" / "m.py").read_bytes() == b"2"


@pytest.mark.parametrize(
    "member",
    [
        ("/etc/cron.d/x", b""),
        ("../x", b""),
        ("a/../../x", b""),
        ("a/..", b""),
        ("bad\udcff", b""),
        special("l", tarfile.SYMTYPE, "/etc/passwd"),
        special("l", tarfile.LNKTYPE, MANIFEST),
        special("d", tarfile.CHRTYPE),
        special("d", tarfile.BLKTYPE),
        special("d", tarfile.FIFOTYPE),
        special("../d", tarfile.DIRTYPE),
        ("app.py", b"again"),
        ("./app.py", b"again"),
        (MANIFEST, GOOD),
        ("app.py/below", b""),
        ("x" * 300, b""),
        ("y/" * 3000 + "z", b""),
        (".", b""),
    ],
    ids=lambda member: repr(member if isinstance(member, tuple) else (member.name, member.type))[:40],
)
def test_unsafe_members_are_refused(tmp_path: Path, into: Path, member: Member) -> None:
    tar = tar_of(tmp_path / "t", (MANIFEST, GOOD), ("app.py", b"1"), member)
    with pytest.raises(BadRequest):
        extract(tar, into)
    assert {path.name for path in tmp_path.iterdir()} == {"t", "into"}
    assert not any(path.is_symlink() for path in into.rglob("*"))


def test_a_file_where_a_folder_was(tmp_path: Path, into: Path) -> None:
    tar = tar_of(tmp_path / "t", (MANIFEST, GOOD), ("a/b", b""), ("a", b""))
    with pytest.raises(BadRequest, match="both a file and a directory"):
        extract(tar, into)


def test_a_path_with_a_zero_byte() -> None:
    with pytest.raises(BadRequest, match="leads out"):
        safe_path("a\0b")


def test_a_sparse_member_is_refused(tmp_path: Path, into: Path) -> None:
    info = tarfile.TarInfo("holes")
    info.type = tarfile.GNUTYPE_SPARSE
    with pytest.raises(BadRequest):
        extract(tar_of(tmp_path / "t", (MANIFEST, GOOD), info, format=tarfile.GNU_FORMAT), into)


def test_the_manifest_comes_first(tmp_path: Path, into: Path) -> None:
    for members in ([("app.py", b""), (MANIFEST, GOOD)], [special(MANIFEST, tarfile.SYMTYPE, "x")]):
        with pytest.raises(BadRequest, match="first member"):
            extract(tar_of(tmp_path / "t", *members), into)
    assert list(into.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "must hold an object"),
        (b"{}", 'needs "file"'),
        (b'{"file": 1}', 'needs "file"'),
        (b'{"file": "app.py", "selcet": "A"}', "unknown keys"),
        (b'{"file": "app.py", "select": 1}', "select must be a string"),
        (b'{"file": "app.py", "handler": []}', "handler must be a string"),
        (b'{"file": "app.py", "name": {}}', "name must be a string"),
        (b'{"file": "app.py", "name": "a/b"}', "not a function name"),
        (b'{"file": "app.py", "overrides": null}', "overrides must be an object"),
        (b'{"file": "../app.py"}', "leads out"),
        (b'{"file": "src/./app.py"}', "deploy the folder that holds the file"),
        (b'{"file": "other.py"}', "not in the upload"),
        (b'{"file": "' + b"x" * MANIFEST_BYTES_MAX + b'"}', "must do"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_manifest_is_a_bad_definition(tmp_path: Path, into: Path, text: bytes, says: str) -> None:
    with pytest.raises(BadDefinition, match=says):
        extract(tar_of(tmp_path / "t", (MANIFEST, text), ("app.py", b"")), into)


def test_too_much(tmp_path: Path, into: Path) -> None:
    tar = tar_of(tmp_path / "t", (MANIFEST, GOOD), ("app.py", b"x" * 60), ("b", b"x" * 41))
    with pytest.raises(BodyTooLarge, match="unpacks to more than 100 B"):
        extract(tar, into, bytes_max=100)
    with pytest.raises(BadRequest, match="more than 2 members"):
        extract(tar, tmp_path / "other", members_max=2)
    assert MEMBERS_MAX == 20_000


def test_every_cut_is_noticed(tmp_path: Path, packed: Callable[..., bytes]) -> None:
    whole = packed({"app.py": b"x" * 700, "b.py": b"y" * 512}, {"file": "app.py"})
    needed = 512 * (2 + 3 + 2)  # manifest, app.py, b.py, each with its header
    for length in (*range(0, needed, 64), needed):
        (tmp_path / "t").write_bytes(whole[:length])
        into = tmp_path / f"into{length}"
        into.mkdir()
        with pytest.raises(BadRequest):
            extract(tmp_path / "t", into)
    (tmp_path / "t").write_bytes(whole)
    into = tmp_path / "into"
    into.mkdir()
    extract(tmp_path / "t", into)


def test_a_damaged_header_in_the_middle_is_noticed(tmp_path: Path, into: Path, packed: Callable[..., bytes]) -> None:
    whole = bytearray(packed({"app.py": b"x", "b.py": b"y"}, {"file": "app.py"}))
    whole[512 * 4 + 10] ^= 1  # header of b.py
    (tmp_path / "t").write_bytes(whole)
    with pytest.raises(BadRequest, match="cut off or damaged"):
        extract(tmp_path / "t", into)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1024), b"\x1f\x8b\x08" + bytes(600), os.urandom(2048)])
def test_what_is_no_tar(tmp_path: Path, into: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(BadRequest):
        extract(tmp_path / "t", into)


def test_a_header_extension_is_not_read_into_memory_whatever_it_announces(tmp_path: Path, into: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 7 << 30
    tar = tar_of(tmp_path / "t", (MANIFEST, GOOD))
    start = tar.read_bytes()[:1024]
    (tmp_path / "t").write_bytes(start + info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(BadRequest, match="announces"):
        extract(tmp_path / "t", into)


def test_an_upload_that_is_not_there_is_our_fault(tmp_path: Path, into: Path) -> None:
    with pytest.raises(SystemFault, match="cannot unpack the upload"):
        extract(tmp_path / "missing", into)


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 512 * 6 - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_is_answered_with_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "into").mkdir()
    tar = tar_of(folder / "t", (MANIFEST, GOOD), ("app.py", b"1"), ("é" * 120, b"2"))
    content = bytearray(tar.read_bytes())
    for offset, value in edits:
        content[offset] = value
    tar.write_bytes(content)
    try:
        assert isinstance(extract(tar, folder / "into"), DeployRequest)
    except RewarmError as error:
        assert isinstance(error, BadRequest | BadDefinition | BodyTooLarge)
    assert {path.name for path in folder.iterdir()} == {"t", "into"}
