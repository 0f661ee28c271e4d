"""The keeper: a process that holds weights in memory for the server.

    python -m rewarm.weights.keeper FD SERVER_PID

What it reads is charged to its cgroup, not to the instance that happens to touch a page first, is read once however
many instances start, and stays while there are none. It has no engine and no numpy, and writes no file.

Control channel: one SOCK_SEQPACKET socket; each packet is a JSON object. FOLDER and TENSORS_DIR say where a pack is.

    server → keeper   {"op": "verify", "id": N, "key", "folder", "tensors_dir"}
                      {"op": "prefetch", "key", "folder", "tensors_dir"}
                      {"op": "pin", "key", "folder", "tensors_dir", "bytes": N, "tables": [LAYER]}     N altogether,
                                                                               the tables' first; no tables: []
                      {"op": "forget", "key", "folder", "tensors_dir"}
                      {"op": "status", "id": N}
    keeper → server   {"op": "verified", "id": N, "corrupt": BOOL, "error": "..." or null}
                      {"op": "loaded", "key", "device", "bytes_read", "seconds"}    bytes that were not in memory
                      {"op": "pinned", "key", "bytes", "locked": BOOL, "why"}       not locked, but touched: why
                      {"op": "corrupt", "key", "what", "error"}                     the order named by "what" failed;
                      {"op": "refused", "key", "what", "error"}                     a pin is gone by that
                      {"op": "status", "id": N, "locked_bytes", "resident_bytes", "verified_files"}

It ends when the server hangs up or dies.
"""

from __future__ import annotations

import json
import os
import queue
import re
import resource
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from rewarm import kernel
from rewarm.errors import RewarmError, WeightsCorrupt
from rewarm.kernel import PACKET_BYTES_MAX
from rewarm.weights.format import DataFile, open_pack, verify_file
from rewarm.weights.storage import Order, Storage

_ERROR_CHARS_MAX = 2000
_VERIFIED_MAX = 10_000
_KB = re.compile(r"^(VmLck|VmRSS):\s+(\d+) kB$", re.MULTILINE)

Identity = tuple[int, int, int, int, int]


class Verifier:
    """Reads files against their digests: each once, as long as it stays the same file."""

    def __init__(self) -> None:
        self.verified: dict[Identity, str] = {}

    def verify(self, folder: Path, tensors_dir: Path) -> None:
        """Every file of a pack. Raises WeightsCorrupt, and SystemFault or OSError where it cannot be read."""
        for path, file in open_pack(folder, tensors_dir).files():
            self._verify_file(path, file)

    def _verify_file(self, path: Path, file: DataFile) -> None:
        before = _identity(path)
        if self.verified.get(before) == file.sha256:
            return
        verify_file(path, file)
        if _identity(path) == before:  # else it was touched meanwhile, and is read again the next time
            if len(self.verified) >= _VERIFIED_MAX:
                self.verified.clear()
            self.verified[before] = file.sha256


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Keeper:
    """The main thread takes orders; a thread verifies, and one for each disk fetches and pins."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._storages: dict[int, Storage] = {}
        self._verifier = Verifier()
        self._to_verify: queue.SimpleQueue[tuple[int, Order]] = queue.SimpleQueue()
        threading.Thread(target=self._verify, name="verify", daemon=True).start()

    def serve(self) -> None:
        """Until the server hangs up."""
        while packet := self._control.recv(PACKET_BYTES_MAX):
            try:
                self._take(json.loads(packet))
            except (KeyError, TypeError, ValueError) as error:
                self._report({"op": "refused", "key": "", "what": "order", "error": f"not an order: {error!r}"})

    def _take(self, fields: dict[str, Any]) -> None:
        op = fields["op"]
        if op == "status":
            self._status(int(fields["id"]))
            return
        order = Order(str(fields["key"]), Path(fields["folder"]), Path(fields["tensors_dir"]))
        if op == "verify":
            self._to_verify.put((int(fields["id"]), order))
            return
        try:
            storage = self._storage(order)
        except OSError as error:
            self._report({"op": "corrupt", "key": order.key, "what": op, "error": f"its files are gone: {error}"})
            return
        if op == "prefetch":
            storage.prefetch(order)
        elif op == "pin":
            storage.pin(order, int(fields["bytes"]), tuple(map(int, fields.get("tables", ()))))
        elif op == "forget":
            storage.forget(order)
        else:
            raise ValueError(op)

    def _storage(self, order: Order) -> Storage:
        device = order.tensors_dir.stat().st_dev
        if device not in self._storages:
            self._storages[device] = Storage(device, self._report)
        return self._storages[device]

    def _verify(self) -> None:
        while True:
            number, order = self._to_verify.get()
            error: Exception | None = None
            try:
                self._verifier.verify(order.folder, order.tensors_dir)
            except (OSError, RewarmError) as found:
                error = found
            self._report(
                {"op": "verified", "id": number, "corrupt": isinstance(error, WeightsCorrupt),
                 "error": None if error is None else str(error)}
            )  # fmt: skip

    def _status(self, number: int) -> None:
        kilobytes = dict(_KB.findall(Path("/proc/self/status").read_text()))
        self._report(
            {"op": "status", "id": number, "locked_bytes": int(kilobytes["VmLck"]) << 10,
             "resident_bytes": int(kilobytes["VmRSS"]) << 10, "verified_files": len(self._verifier.verified)}
        )  # fmt: skip

    def _report(self, report: dict[str, Any]) -> None:
        """One packet, from any thread."""
        if report.get("error"):
            report["error"] = report["error"][:_ERROR_CHARS_MAX]
        try:
            self._control.send(json.dumps(report).encode())
        except OSError:
            os._exit(0)  # the server hung up


def raise_memlock() -> None:
    """Lock as much as this user is allowed to."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def _end(failure: threading.ExceptHookArgs) -> None:
    """A thread that failed would never answer again: better a new process."""
    traceback.print_exception(failure.exc_type, failure.exc_value, failure.exc_traceback)
    os._exit(1)


def main(argv: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group, they are the server's to handle
    kernel.die_with(int(argv[1]))
    threading.excepthook = _end
    raise_memlock()
    try:
        Keeper(socket.socket(fileno=int(argv[0]))).serve()
    except OSError:
        pass  # the server is gone
    os._exit(0)  # not waiting for what threads are doing


if __name__ == "__main__":
    main(sys.argv[1:])
