"""Firecracker's HTTP API over its Unix socket, as far as a micro-VM that sleeps needs it.

The requests are those of its specification (src/firecracker/swagger/firecracker.yaml, 1.17): a PUT or PATCH with a JSON
body is answered by 204, or by a status from 400 up and {"fault_message": why}. Paths are made absolute, since
Firecracker has a working directory of its own; what is a name here (of a drive, of a socket) is one in that.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WAIT_S = 30.0  # for one answer: a snapshot of all memory is written meanwhile
_ANSWER_BYTES_MAX = 1 << 16


class FirecrackerError(Exception):
    """Firecracker does not do as it is asked: it hung up, or there is nobody."""


class FirecrackerRefusal(FirecrackerError):
    """It answered so."""


class _Connection(http.client.HTTPConnection):
    """Over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_WAIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class FirecrackerApi:
    """Each request is a connection of its own, in a thread. All of them raise FirecrackerError."""

    def __init__(self, path: str) -> None:
        self._path = path

    async def boot_source(self, kernel: Path, initrd: Path, words: str) -> None:
        await self._call("PUT", "/boot-source", _boot_source(kernel, initrd, words))

    async def machine_config(self, memory_bytes: int) -> None:
        """One processor."""
        await self._call("PUT", "/machine-config", _machine_config(memory_bytes))

    async def drive(self, name: str) -> None:
        """One more drive, read-only: the file `name`. The guest sees them in the order of these calls."""
        body = {"drive_id": name, "path_on_host": name, "is_root_device": False, "is_read_only": True}
        await self._call("PUT", f"/drives/{name}", body)

    async def vsock(self, guest_cid: int, path: str) -> None:
        """`path`: of the socket by which the host connects to the guest's ports; a snapshot remembers it."""
        await self._call("PUT", "/vsock", {"guest_cid": guest_cid, "uds_path": path})

    async def start(self) -> None:
        await self._call("PUT", "/actions", {"action_type": "InstanceStart"})

    async def pause(self) -> None:
        await self._call("PATCH", "/vm", {"state": "Paused"})

    async def create_snapshot(self, state: Path, memory: Path) -> None:
        """Of a machine that is paused."""
        body = {"snapshot_type": "Full", "snapshot_path": _named(state), "mem_file_path": _named(memory)}
        await self._call("PUT", "/snapshot/create", body)

    async def load_snapshot(self, state: Path, memory: Path | str) -> None:
        """The guest runs then; its memory is mapped from a file, or filled by a pager that listens at a socket."""
        backend = ("File", _named(memory)) if isinstance(memory, Path) else ("Uffd", memory)
        body = {
            "snapshot_path": _named(state), "resume_vm": True,
            "mem_backend": {"backend_type": backend[0], "backend_path": backend[1]},
        }  # fmt: skip
        await self._call("PUT", "/snapshot/load", body)

    async def _call(self, method: str, path: str, body: Mapping[str, Any]) -> None:
        await asyncio.to_thread(self._ask, method, path, json.dumps(body))

    def _ask(self, method: str, path: str, body: str) -> None:
        connection = _Connection(self._path)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", "Accept": "application/json"})
            answer = connection.getresponse()
            said = answer.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise FirecrackerError(f"{method} {path} was not answered: {error!r}") from error
        finally:
            connection.close()
        if answer.status >= 400:
            try:
                why = str(json.loads(said)["fault_message"])
            except (ValueError, LookupError, TypeError):
                why = f"status {answer.status}"
            raise FirecrackerRefusal(f"{method} {path}: {why}")


def config(kernel: Path, initrd: Path, words: str, memory_bytes: int) -> str:
    """What `--config-file` takes: a machine without drives, which boots at once."""
    boot, machine = _boot_source(kernel, initrd, words), _machine_config(memory_bytes)
    return json.dumps({"boot-source": boot, "machine-config": machine, "drives": []})


def _boot_source(kernel: Path, initrd: Path, words: str) -> dict[str, Any]:
    return {"kernel_image_path": _named(kernel), "initrd_path": _named(initrd), "boot_args": words}


def _machine_config(memory_bytes: int) -> dict[str, Any]:
    return {"vcpu_count": 1, "mem_size_mib": memory_bytes >> 20}


def _named(path: Path) -> str:
    return str(path.absolute())
