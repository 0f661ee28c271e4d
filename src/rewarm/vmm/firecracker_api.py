"""Firecracker's HTTP API over its Unix socket, as far as a micro-VM that sleeps needs it.

The requests are those of its specification (src/firecracker/swagger/firecracker.yaml, 1.17): a PUT or PATCH with a JSON
body is answered by 204, or by a status from 400 up and {"fault_message": why}.
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
    """Firecracker refused a request, or hung up."""


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
        body = {"kernel_image_path": str(kernel), "initrd_path": str(initrd), "boot_args": words}
        await self._call("PUT", "/boot-source", body)

    async def machine_config(self, memory_bytes: int) -> None:
        """One processor."""
        await self._call("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": memory_bytes >> 20})

    async def drive(self, name: str, path: Path) -> None:
        """One more drive, read-only. The guest sees them in the order of these calls."""
        body = {"drive_id": name, "path_on_host": str(path), "is_root_device": False, "is_read_only": True}
        await self._call("PUT", f"/drives/{name}", body)

    async def change_drive(self, name: str, path: Path) -> None:
        """Another file for a drive of a machine that exists already."""
        await self._call("PATCH", f"/drives/{name}", {"drive_id": name, "path_on_host": str(path)})

    async def vsock(self, guest_cid: int, path: str) -> None:
        """`path`: of the socket by which the host connects to the guest's ports; a snapshot remembers it."""
        await self._call("PUT", "/vsock", {"guest_cid": guest_cid, "uds_path": path})

    async def start(self) -> None:
        await self._call("PUT", "/actions", {"action_type": "InstanceStart"})

    async def pause(self) -> None:
        await self._call("PATCH", "/vm", {"state": "Paused"})

    async def resume(self) -> None:
        await self._call("PATCH", "/vm", {"state": "Resumed"})

    async def create_snapshot(self, state: Path, memory: Path) -> None:
        """Of a machine that is paused."""
        body = {"snapshot_type": "Full", "snapshot_path": str(state), "mem_file_path": str(memory)}
        await self._call("PUT", "/snapshot/create", body)

    async def load_snapshot(self, state: Path, memory: Path, pager_socket: Path | None) -> None:
        """The machine is paused then; its memory is mapped from `memory`, or filled by a pager that listens."""
        backend = ("File", memory) if pager_socket is None else ("Uffd", pager_socket)
        body = {
            "snapshot_path": str(state), "resume_vm": False,
            "mem_backend": {"backend_type": backend[0], "backend_path": str(backend[1])},
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
            raise FirecrackerError(f"{method} {path}: {why}")
