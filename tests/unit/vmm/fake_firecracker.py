"""Speaks Firecracker's API: a real HTTP server on a real Unix socket. It takes no request that the specification
(swagger/firecracker.yaml, 1.17) does not describe, nor one that comes too early or too late."""

from __future__ import annotations

import http.server
import json
import os
import socket
import socketserver
import sys
import threading
from typing import Any

BEFORE, AFTER = "before it is started", "after it is started"
# (method, path) -> (when, required, allowed): name -> type or set of values
SPECIFIED: dict[tuple[str, str], tuple[str, dict[str, Any], dict[str, Any]]] = {
    ("PUT", "/boot-source"): (BEFORE, {"kernel_image_path": str}, {"boot_args": str, "initrd_path": str}),
    ("PUT", "/machine-config"): (
        BEFORE, {"vcpu_count": int, "mem_size_mib": int}, {"smt": bool, "track_dirty_pages": bool},
    ),
    ("PUT", "/drives/*"): (
        BEFORE, {"drive_id": str, "is_root_device": bool}, {"is_read_only": bool, "path_on_host": str},
    ),
    ("PATCH", "/drives/*"): (AFTER, {"drive_id": str}, {"path_on_host": str}),
    ("PUT", "/vsock"): (BEFORE, {"guest_cid": int, "uds_path": str}, {}),
    ("PUT", "/actions"): (BEFORE, {"action_type": {"InstanceStart"}}, {}),
    ("PATCH", "/vm"): (AFTER, {"state": {"Paused", "Resumed"}}, {}),
    ("PUT", "/snapshot/create"): (
        AFTER, {"mem_file_path": str, "snapshot_path": str}, {"snapshot_type": {"Full", "Diff"}},
    ),
    ("PUT", "/snapshot/load"): (
        BEFORE, {"snapshot_path": str},
        {"mem_backend": {"backend_type": {"File", "Uffd"}, "backend_path": str}, "resume_vm": bool},
    ),
}  # fmt: skip


def fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and value.keys() == shape.keys() and all(fits(value[k], shape[k]) for k in shape)
    return value in shape if isinstance(shape, set) else type(value) is shape


class Refusal(Exception):
    pass


class Machine:
    started = paused = False
    vsock = ""

    def do(self, method: str, path: str, body: dict[str, Any]) -> None:
        drive = path.startswith("/drives/")
        when, required, allowed = SPECIFIED.get((method, "/drives/*" if drive else path), ("", {}, {}))
        if not when:
            raise Refusal(f"Invalid request method and/or path: {method} {path}.")
        shapes = {**allowed, **required}
        if not required.keys() <= body.keys() <= shapes.keys() or not all(fits(body[k], shapes[k]) for k in body):
            raise Refusal(f"The request has unknown, missing or wrong fields: {body}")
        if drive and body["drive_id"] != path.removeprefix("/drives/"):
            raise Refusal("The id from the path does not match the id from the body!")
        if (when == AFTER) != self.started:
            raise Refusal(f"The requested operation is not supported: {method} {path} is for {when}")
        read = ["snapshot_path"] if path == "/snapshot/load" else ["kernel_image_path", "initrd_path", "path_on_host"]
        for key in read:
            if key in body and not os.path.exists(body[key]):
                raise Refusal(f"No such file or directory: {body[key]}")
        if path == "/vsock":
            if body["guest_cid"] < 3:
                raise Refusal("Guest CID below 3")
            self.vsock = body["uds_path"]
        elif path == "/actions":
            self.start()
        elif path == "/vm":
            self.paused = body["state"] == "Paused"
        elif path == "/snapshot/create":
            if not self.paused:
                raise Refusal("Cannot create snapshot: the microVM is not paused")
            with open(body["snapshot_path"], "w") as state, open(body["mem_file_path"], "wb") as memory:
                json.dump({"vsock": self.vsock}, state)
                memory.write(b"memory")
        elif path == "/snapshot/load":
            with open(body["snapshot_path"]) as state:
                self.vsock = json.load(state)["vsock"]
            self.paused = True
            self.start()

    def start(self) -> None:
        self.started = True
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.vsock)
        listener.listen()
        threading.Thread(target=self.guest, args=(listener,), daemon=True).start()

    def guest(self, listener: socket.socket) -> None:
        """Nobody listens in it at first. Then it upcases what comes on port 5001, and says hello on 5002."""
        refusals = 3
        while True:
            channel, _ = listener.accept()
            stream = channel.makefile("rwb", buffering=0)
            words = stream.readline().split()
            if refusals or words[0] != b"CONNECT" or words[1] not in (b"5001", b"5002"):
                refusals -= 1
                channel.close()
                stream.close()
                continue
            stream.write(b"OK 1073741824\n" + (b"log\n" if words[1] == b"5002" else b""))
            threading.Thread(target=self.shout, args=(stream,), daemon=True).start()

    def shout(self, stream: Any) -> None:
        while line := stream.readline():
            if line == b"die\n":
                os._exit(3)
            stream.write(line.upper())


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("requests", "a") as log:
            log.write(json.dumps([self.command, self.path, body]) + "\n")
        try:
            machine.do(self.command, self.path, body)
            status, said = 204, b""
        except Refusal as refusal:
            status, said = 400, json.dumps({"fault_message": str(refusal)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_PUT = do_PATCH = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Somebody only looked whether it listens."""


machine = Machine()
if "--version" in sys.argv:
    print("Firecracker v1.17.0")
else:
    assert sys.argv[1] == "--api-sock" and sys.argv[3] == "--id", sys.argv
    print("up", flush=True)
    Server(sys.argv[2], Handler).serve_forever()
