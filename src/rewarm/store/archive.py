"""The upload of a deploy: an uncompressed tar whose first member says what the others are.

    rewarm-deploy.json   {"file": "app.py", "select": "Name" | null, "handler": "module.attribute" | null,
                          "name": "digits" | null, "overrides": {"memory": "512MB", ...}}
    app.py               regular files under relative paths; of their metadata only the executable bit counts
    models/digits.onnx
    (two blocks of zeros: without them the upload was cut off)

All but "file" may be left out. `pack` writes the same bytes for the same files, whoever packs them and when.
"""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from rewarm.config import HttpLimits
from rewarm.errors import BadDefinition, BadRequest, BodyTooLarge
from rewarm.facts.function import check_name
from rewarm.store.disk import CHUNK_BYTES, disk_errors
from rewarm.units import human_bytes

MANIFEST = "rewarm-deploy.json"
MANIFEST_BYTES_MAX = 1 << 20
MEMBERS_MAX = 20_000
_KEYS = ("file", "select", "handler", "name", "overrides")


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """What rewarm-deploy.json says. `overrides` are arguments of the decorator, as written."""

    file: str
    select: str | None = None
    handler: str | None = None
    name: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(data: object) -> DeployRequest:
        """Raises BadDefinition for a missing or unknown key or a value of a wrong kind."""
        if not isinstance(data, dict):
            raise BadDefinition(f"{MANIFEST} must hold an object")
        unknown = sorted(set(data) - set(_KEYS))
        if unknown:
            raise BadDefinition(f"{MANIFEST} has unknown keys {unknown}; it takes {', '.join(_KEYS)}")
        if not isinstance(data.get("file"), str):
            raise BadDefinition(f'{MANIFEST} needs "file", the name of the file to deploy')
        for key in ("select", "handler", "name"):
            if data.get(key) is not None and not isinstance(data[key], str):
                raise BadDefinition(f"{MANIFEST}: {key} must be a string or null, not {data[key]!r}")
        if not isinstance(data.get("overrides", {}), dict):
            raise BadDefinition(f"{MANIFEST}: overrides must be an object, not {data['overrides']!r}")
        if data.get("name") is not None:
            check_name(data["name"])
        try:
            file = safe_path(data["file"])
        except BadRequest as error:
            raise BadDefinition(f"{MANIFEST}: file: {error.message}") from None
        if "/" in file:  # modules are found from the top of the code folder
            folder, _, name = file.rpartition("/")
            raise BadDefinition(
                f"file {file!r} lies in a subfolder: deploy the folder that holds the file ({folder}), as {name!r}"
            )
        return DeployRequest(**{**data, "file": file})


def extract(
    tar_path: Path, into: Path, *, bytes_max: int = HttpLimits().deploy_bytes_max, members_max: int = MEMBERS_MAX
) -> DeployRequest:
    """Unpacks an upload into the empty directory `into` (without the manifest) and returns what it asks for.

    Nothing is written outside `into`, and nothing but files and directories inside it; after an error it may be half
    full. Raises BadRequest for a tar that is malformed, cut off or unsafe, BadDefinition for a bad manifest,
    BodyTooLarge if the files together have more than `bytes_max`, SystemFault if the disk fails.
    """
    with disk_errors("unpack the upload", into), tar_path.open("rb") as raw, _tar_errors():
        reader = _BoundedReader(raw)
        with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r:") as tar:
            request: DeployRequest | None = None
            seen: set[str] = set()
            bytes_left = bytes_max
            for count, member in enumerate(tar, start=1):
                if count > members_max:
                    raise BadRequest(f"the upload has more than {members_max} members")
                path = safe_path(member.name)
                if request is None:
                    request = _read_manifest(tar, member, path)
                elif member.isdir():
                    continue  # made when a file needs it
                elif not member.isreg() or member.issparse():
                    raise BadRequest(f"{path!r} in the upload is not a regular file; links and devices are not taken")
                elif path in seen or path == MANIFEST:
                    raise BadRequest(f"{path!r} is in the upload twice")
                else:
                    bytes_left -= member.size
                    if bytes_left < 0:
                        raise BodyTooLarge(f"the upload unpacks to more than {human_bytes(bytes_max)}")
                    seen.add(path)
                    _write(tar, member, into, path)
            # tarfile takes a damaged header in the middle for the end of the archive; the format ends in zeros.
            reader.seek(tar.offset)
            if reader.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise BadRequest("the upload is cut off or damaged; send it again")
    if request is None:
        raise BadRequest(f"the upload is empty; its first member must be {MANIFEST}")
    if request.file not in seen:
        raise BadDefinition(f"{MANIFEST} names file {request.file!r}, which is not in the upload")
    return request


def pack(files: Mapping[str, Path], manifest: Mapping[str, Any], out: BinaryIO) -> None:
    """Writes an upload of `files` (path in the upload → path on this disk) to `out`, which need not be seekable.

    Raises BadDefinition if the manifest is wrong or a file cannot be read, BadRequest for a path that would be refused.
    """
    DeployRequest.from_json(dict(manifest))
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        text = json.dumps(dict(manifest), sort_keys=True, indent=1).encode()
        tar.addfile(_member(MANIFEST, len(text), 0o644), io.BytesIO(text))
        paths = {safe_path(name): path for name, path in files.items()}
        for name, path in sorted(paths.items()):
            if name == MANIFEST:
                raise BadDefinition(f"{MANIFEST} is written by the deploy; rename or remove {path}")
            try:
                content = path.open("rb")
            except OSError as error:
                raise BadDefinition(f"cannot read {path}: {error.strerror}") from error
            with content:
                status = os.fstat(content.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise BadDefinition(f"{path} is not a regular file")
                mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
                tar.addfile(_member(name, status.st_size, mode), content)


def safe_path(name: str) -> str:
    """A relative path in its plain spelling ("./a//b" → "a/b"). Raises BadRequest if it could lead anywhere else."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"the path {name!r} is not UTF-8") from None
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise BadRequest(f"the path {name!r} leads out of the deployed folder; use relative paths without '..'")
    return "/".join(parts)


def _read_manifest(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> DeployRequest:
    if path != MANIFEST or not member.isreg() or member.issparse():
        raise BadRequest(f"the first member of an upload must be {MANIFEST}, not {path!r}")
    if member.size > MANIFEST_BYTES_MAX:
        raise BadDefinition(f"{MANIFEST} has {human_bytes(member.size)}; {human_bytes(MANIFEST_BYTES_MAX)} must do")
    content = tar.extractfile(member)
    assert content is not None  # only for members that are not regular files
    text = content.read()
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadDefinition(f"{MANIFEST} is not JSON: {error}") from error
    return DeployRequest.from_json(data)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path, path: str) -> None:
    """`into` had no links before and gets none, so a checked path stays inside."""
    target, mode = into / path, 0o755 if member.mode & stat.S_IXUSR else 0o644
    content = tar.extractfile(member)
    assert content is not None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise BadRequest(f"{path!r} in the upload is both a file and a directory") from None
    except OSError as error:
        if len(path) > 255:  # ENAMETOOLONG, of the name or of the whole path
            raise BadRequest(f"the path {path[:40]!r}… is too long: {error.strerror}") from None
        raise
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(CHUNK_BYTES):
            file.write(chunk)


def _member(name: str, size: int, mode: int) -> tarfile.TarInfo:
    """Owner and time stay 0, so that the same files make the same bytes."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, mode
    return member


@contextmanager
def _tar_errors() -> Iterator[None]:
    """A damaged header shows as any of these, depending on the field."""
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError) as error:
        raise BadRequest(f"the upload is not an uncompressed tar: {error}") from error


class _BoundedReader:
    """A file whose reads are bounded: tarfile reads a header extension of any announced length in one piece."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * CHUNK_BYTES:
            raise tarfile.ReadError(f"a header announces {size} bytes")
        return self._file.read(size)
